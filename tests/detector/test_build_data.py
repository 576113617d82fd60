import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from longshot.datasets import DataError
from longshot.datasets.images.transforms import View
from longshot.datasets.loading.samplers import ClassAwareStream, TrainingStream
from longshot.detector.build_data import build_data, build_training_loader, build_val, images_per_pass
from longshot.detector.config.schema import parse_config
from longshot.detector.errors import ConfigError
from longshot.detector.system.distributed import Process

NAMES = ["red square", "green ring", "yellow disc", "blue bar"]


def processes(world_size, rank=0):
    return Process(rank, world_size, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------ passes and batches


def test_a_pass_of_several_padded_sizes_is_refused():
    config = parse_config({"data": {"pad_together": 1}, "train": {"batch_size": 4}})
    with pytest.raises(ConfigError, match=r"pad_together 1 is not a multiple of 2 .* set train.images_per_pass=1"):
        images_per_pass(config, processes(2))
    assert images_per_pass(config, processes(4)) == 1


@pytest.mark.parametrize(
    ("batch", "per_pass", "world", "expected"), [(16, None, 1, 16), (16, None, 4, 4), (16, 2, 4, 2), (16, 16, 1, 16)]
)
def test_images_per_pass_by_default_is_the_share_of_a_process(batch, per_pass, world, expected):
    config = parse_config({"train": {"batch_size": batch, "images_per_pass": per_pass}})
    assert images_per_pass(config, processes(world)) == expected


@pytest.mark.parametrize(("batch", "per_pass", "world"), [(16, None, 3), (16, 3, 1), (2, None, 4), (16, 16, 2)])
def test_numbers_that_do_not_divide_are_an_error(batch, per_pass, world):
    config = parse_config({"train": {"batch_size": batch, "images_per_pass": per_pass}})
    with pytest.raises(ConfigError, match=rf"train.batch_size {batch} is not divisible by {world} processes times"):
        images_per_pass(config, processes(world))


def test_the_loader_gives_each_process_its_share_of_the_same_steps(make_config):
    config = make_config(differences={"train": {"images_per_pass": 1}})
    data = build_data(config, processes(1))
    whole, first, second = (
        [batch.image_ids for batch in build_training_loader(config, data, process, first=3, total=6)]
        for process in (processes(1), processes(2, 0), processes(2, 1))
    )
    assert len(whole) == 3
    assert [[a, c, b, d] for (a, b), (c, d) in zip(first, second, strict=True)] == whole


def test_the_loader_augments_as_the_configuration_says(make_config):
    mosaic = {"size": [40, 72], "probability": 1.0}
    config = make_config(differences={"data": {"mosaic": mosaic, "mixup": {}, "color_jitter": {}, "crop": {}}})
    (batch,) = build_training_loader(config, build_data(config, processes(1)), processes(1), first=0, total=1)
    assert {tuple(image.shape) for image in batch.images} == {(3, 40, 72)}


def test_an_impossible_augmentation_is_named(make_config):
    config = make_config(differences={"data": {"large_scale_jitter": {"size": [64, 64], "min_scale": 3.0}}})
    data = build_data(config, processes(1))
    with pytest.raises(ConfigError, match=r"^data\.large_scale_jitter: min_scale and max_scale must be above 0 and in"):
        build_training_loader(config, data, processes(1), first=0, total=1)


# -------------------------------------------------------------------------------------------------------------- the data


def test_classes_and_splits_are_those_of_the_files(make_config, cpu):
    data = build_data(make_config(), cpu)
    assert (len(data.train), len(data.val)) == (24, 7)
    assert data.classes[:3] == ([3, 7, 12, 90], NAMES, list("ffcr"))
    assert data.stream.epoch_length == 24
    repeated = make_config(differences={"data": {"sampler": {"name": "repeat_factor", "threshold": 1.0}}})
    assert build_data(repeated, cpu).stream.epoch_length > 30
    assert len(build_data(make_config(differences={"data": {"keep_empty": False}}), cpu).train) < 24
    assert len(build_val(make_config(), cpu)) == 7


def test_repeat_factors_are_relative_to_the_images_with_objects(make_config, cpu):
    def data(keep_empty, threshold):
        sampler = {"name": "repeat_factor", "threshold": threshold}
        return build_data(make_config(differences={"data": {"keep_empty": keep_empty, "sampler": sampler}}), cpu)

    every, found = data(True, 0.0), data(False, 0.0)
    counts, here = np.array(found.classes.train_images), len(found.train)
    assert here < len(every.train) == 24
    rarest = counts.min()
    between = (rarest / 24 + rarest / here) / 2  # above its fraction of all images, below that of those with objects
    assert data(True, between).stream.epoch_length > 24
    assert data(False, between).stream.epoch_length == here


def test_the_arithmetic_of_boxes_and_pixels_reaches_the_images(make_config, cpu):
    exact, other = (
        build_data(
            make_config(differences={"model": {"legacy_offset": changed}, "data": {"antialias": not changed}}), cpu
        )
        for changed in (False, True)
    )
    view = View((24, 24), flip=False)
    for a, b in ((exact.train, other.train), (exact.val, other.val)):
        (pixels, targets), (other_pixels, other_targets) = a.read(0, view), b.read(0, view)
        assert not torch.equal(pixels, other_pixels)
        shift = other_targets.boxes - targets.boxes
        assert len(shift) > 0
        height, width = a.size(0)
        expected = [0, 0, 1 - 24 / width, 1 - 24 / height]  # a pixel of the view less one of the file
        np.testing.assert_allclose(shift, np.broadcast_to(expected, shift.shape), rtol=0, atol=1e-5)
    config = make_config(differences={"model": {"legacy_offset": True}})
    assert not np.array_equal(build_val(config, cpu).read(0, view)[1].boxes, exact.val.read(0, view)[1].boxes)


def test_an_epoch_that_would_fill_the_memory_is_refused(make_config, cpu):
    sampler = {"name": "repeat_factor", "threshold": 1.0, "power": 10.0}
    with pytest.raises(ConfigError, match=r"data\.sampler: an epoch would have \S+ images, of the 24 that there are"):
        build_data(make_config(differences={"data": {"sampler": sampler}}), cpu)


def test_sampler_is_the_one_named(make_config, cpu):
    def stream(**sampler):
        data = build_data(make_config(differences={"data": {"sampler": sampler, "aspect_grouping": False}}), cpu)
        return data.stream, *data.train.learned_objects()

    lengths = [stream(name="repeat_factor", threshold=1.0, power=power)[0].epoch_length for power in (0.1, 0.5, 2.0)]
    assert 24 < lengths[0] < lengths[1] < lengths[2]
    balanced, _, images = stream(name="instance_balanced")
    seen = np.bincount(np.concatenate([balanced.sequence(epoch) for epoch in range(1000)]), minlength=24) / 1000
    np.testing.assert_allclose(seen, np.bincount(images, minlength=24) * 24 / len(images), atol=0.08)
    assert isinstance(stream(name="class_aware")[0], ClassAwareStream)
    assert type(stream(name="random")[0]) is TrainingStream
    legacy = stream(name="random", legacy_order=True)[0]
    assert legacy.sequence(2).tolist() == np.random.RandomState(2).permutation(24).tolist()


def test_a_drawn_dataset_takes_the_place_of_files(cpu, shapes, monkeypatch):
    calls = []

    def draw(folder, options):
        calls.append((folder, options.categories))
        if options.categories == 11:
            raise ValueError("there are no 11")
        return SimpleNamespace(train=shapes.train, val=shapes.val, images=shapes.folder)

    monkeypatch.setattr("longshot.detector.build_data.draw_dataset", draw)
    config = parse_config({"data": {"generate": {"folder": "emoji", "categories": 10}}})
    data = build_data(config, cpu)
    assert (len(data.train), len(data.val), calls) == (24, 7, [("emoji", 10)])
    config = parse_config({"data": {"generate": {"folder": "emoji", "categories": 11}}})
    with pytest.raises(ConfigError, match=r"^data.generate: there are no 11"):
        build_data(config, cpu)


def test_paths_that_are_not_set_are_named_with_a_way_out(cpu):
    with pytest.raises(ConfigError) as error:
        build_data(parse_config({"data": {"val": {"images": "x"}}}), cpu)
    assert str(error.value).startswith("data.train.annotations, data.train.images, data.val.annotations: not set; ")
    assert "for instance data.train.annotations=PATH" in str(error.value)
    with pytest.raises(ConfigError, match=r"^data.val.annotations, data.val.images: not set"):
        build_val(parse_config({}), cpu)


def test_class_sets_that_differ_between_train_and_val_are_named(make_config, cpu, shapes, tmp_path):
    content = json.loads(shapes.val.read_text())
    content["categories"][1]["name"] = "a dog"
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = make_config(differences={"data": {"val": {"annotations": str(tmp_path / "val.json")}}})
    with pytest.raises(
        DataError, match=r"train.json \(train\) has 4 classes, .*id 3: 'red square' here, 'a dog' there"
    ):
        build_data(config, cpu)
