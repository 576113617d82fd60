import pickle
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from longshot.datasets import DataError, read_annotations
from longshot.datasets.images.augmentation import Augmentation, ColorJitter, Crop, LargeScaleJitter, MixUp, Mosaic
from longshot.datasets.images.transforms import View, apply_view
from longshot.datasets.loading.batches import (
    BatchLoader,
    EvaluationBatches,
    TrainingBatches,
    padded_size,
    share_of_step,
)
from longshot.datasets.loading.dataset import DetectionDataset
from longshot.datasets.loading.legacy import LegacyDataset
from longshot.datasets.loading.samplers import TrainingStream, repeat_factors
from longshot.datasets.loading.scenes import draw_scenes

OPTIONS = {"short_sides": (24, 32, 40), "long_side": 64, "flip": 0.5, "pad_multiple": 16, "seed": 3}
AUGMENTED = Augmentation(LargeScaleJitter(size=(64, 64)), Crop(), ColorJitter(hue=0.1), Mosaic(size=(48, 80)), MixUp())


@pytest.fixture
def dataset(write, content, image_folder) -> DetectionDataset:
    return DetectionDataset(read_annotations(write(content)), image_folder)


def _stream(dataset, batch_size=8):
    sizes = dataset.sizes
    return TrainingStream(len(dataset), batch_size=batch_size, seed=3, wide=sizes[:, 1] >= sizes[:, 0])


def training_loader(
    dataset, stream, *, start_step, num_steps, pad_multiple, seed, augmentation=None, pad_together=None, rank=0, world_size=1,
    images_per_pass=None, workers=0, **view,
):  # fmt: skip
    """This process's share of the batches of some steps."""
    per_pass = images_per_pass or stream.batch_size // world_size
    draw = partial(
        draw_scenes, stream, size_of=dataset.size, augmentation=augmentation or Augmentation(), seed=seed, **view
    )
    share = share_of_step(stream.batch_size, per_pass, rank, world_size)
    batches = TrainingBatches(dataset, stream, draw, share=share, pad_multiple=pad_multiple, pad_together=pad_together)
    return BatchLoader(batches, range(start_step, start_step + num_steps), workers=workers)


def evaluation_loader(dataset, *, rank=0, world_size=1, workers=0, **options):
    """This process's share of the batches that hold every image once."""
    batches = EvaluationBatches(dataset, **options)
    return BatchLoader(batches, range(rank, len(batches), world_size), workers=workers)


def _assert_equal(a, b):
    assert a[2:] == b[2:]
    assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    for ours, theirs in zip(a.targets, b.targets, strict=True):
        assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def test_targets_by_hand(dataset):
    image, targets = dataset.read(1, View((120, 80), flip=False))  # image id 5, 60 x 40, scaled by 2
    assert image.shape == (3, 120, 80)
    assert targets.boxes.tolist() == [[8, 12, 28, 36]]
    assert targets.labels.tolist() == [0]
    assert targets.ignore_boxes.tolist() == [[40, 60, 80, 120]]
    assert [array.dtype for array in targets] == [np.float32, np.int64, np.float32]


def test_boxes_are_clipped_to_the_image(dataset):
    _, targets = dataset.read(0, View((80, 30), flip=False))
    assert targets.boxes.tolist() == [[0, 70, 15, 80]]


def test_image_without_objects_has_empty_targets(dataset):
    _, targets = dataset.read(2, View((48, 48), flip=True))
    assert [array.shape for array in targets] == [(0, 4), (0,), (0, 4)]


def test_bad_boxes_are_not_among_the_targets_and_are_reported(write, content, image_folder):
    content["annotations"][0]["bbox"] = [float("nan"), 0, 5, 5]
    content["annotations"][4]["bbox"] = [0, 0, 0, 5]  # the crowd
    dataset = DetectionDataset(read_annotations(write(content)), image_folder)
    assert dataset.read(4, View((30, 80), flip=False))[1].labels.tolist() == [1]
    assert len(dataset.read(1, View((60, 40), flip=False))[1].ignore_boxes) == 0
    assert "2 of 6 boxes left out" in dataset.report


def test_empty_images_can_be_left_out(write, content, image_folder):
    content["annotations"] = [a for a in content["annotations"] if a["id"] != 102]  # image 5 has its crowd left
    annotations = read_annotations(write(content))
    kept = DetectionDataset(annotations, image_folder, keep_empty=False)
    assert annotations.image_ids[kept.image_indices].tolist() == [2, 11, 90]
    assert kept.sizes.tolist() == [[80, 30], [40, 60], [30, 80]]
    labels, images = kept.learned_objects()
    assert labels.tolist() == [1, 0, 2, 1]
    assert images.tolist() == [0, 1, 2, 2]
    (batch,) = training_loader(kept, _stream(kept, 3), **OPTIONS, start_step=0, num_steps=1)
    assert set(batch.image_indices) <= {0, 3, 4}
    assert batch.image_ids == annotations.image_ids[batch.image_indices].tolist()


def test_legacy_dataset_scales_the_first_and_the_last_pixel(write, content, image_folder):
    dataset = LegacyDataset(read_annotations(write(content)), image_folder)
    _, targets = dataset.read(1, View((120, 80), flip=False))  # 4 … 13 and 6 … 17, scaled by 2
    assert targets.boxes.tolist() == [[8, 12, 27, 35]]
    assert targets.ignore_boxes.tolist() == [[40, 60, 79, 119]]


def test_thin_objects_are_no_targets_in_a_legacy_dataset(write, content, image_folder):
    boxes = {101: [10, 5, 1, 10], 100: [0, 0, 30, 0.5], 102: [4, 6, 10, 1.5]}  # 101 is not alone in its image
    for annotation in content["annotations"]:
        annotation["bbox"] = boxes.get(annotation["id"], annotation["bbox"])
    annotations = read_annotations(write(content))
    legacy = LegacyDataset(annotations, image_folder, keep_empty=False)
    assert annotations.image_ids[legacy.image_indices].tolist() == [2, 5, 90]
    assert [array.tolist() for array in legacy.learned_objects()] == [[1, 0, 2, 1], [0, 1, 2, 2]]
    assert legacy.read(2, View((60, 160), flip=False))[1].labels.tolist() == [1]
    ours = DetectionDataset(annotations, image_folder, keep_empty=False)
    assert annotations.image_ids[ours.image_indices].tolist() == [2, 5, 11, 90]
    assert ours.read(3, View((60, 160), flip=False))[1].labels.tolist() == [2, 1]
    everything = LegacyDataset(annotations, image_folder)
    assert len(everything) == 5
    assert len(everything.read(3, View((40, 60), flip=False))[1].labels) == 0


def test_dataset_resizes_with_antialiasing_unless_told_not_to(write, content, image_folder):
    annotations, view = read_annotations(write(content)), View((15, 10), flip=False)
    for antialias in (True, False):
        dataset = DetectionDataset(annotations, image_folder, antialias=antialias)
        with Image.open(image_folder / "5.png") as image:
            expected, _ = apply_view(np.asarray(image), np.zeros((0, 4)), view, antialias=antialias)
        assert torch.equal(dataset.read(1, view)[0], expected)


def test_learned_objects_feed_repeat_factors(dataset):
    factors = repeat_factors(*dataset.learned_objects(), num_images=len(dataset), threshold=0.8)
    # Classes 0 and 1 are in 2 of 5 images, class 2 in one; image 2 is empty.
    np.testing.assert_allclose(factors, [2**0.5, 2**0.5, 1, 2**0.5, 2])


@pytest.mark.parametrize("augmentation", [None, AUGMENTED])
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bits(dataset, workers, augmentation):
    options = {**OPTIONS, "start_step": 3, "num_steps": 5, "augmentation": augmentation}
    alone = list(training_loader(dataset, _stream(dataset), **options))
    helped = list(training_loader(dataset, _stream(dataset), **options, workers=workers))
    assert len(alone) == len(helped) == 5
    for a, b in zip(alone, helped, strict=True):
        _assert_equal(a, b)


@pytest.mark.parametrize("augmentation", [None, AUGMENTED])
def test_start_in_the_middle_equals_going_on(dataset, augmentation):
    options = {**OPTIONS, "augmentation": augmentation}
    whole = list(training_loader(dataset, _stream(dataset), **options, start_step=0, num_steps=40))
    rest = list(training_loader(dataset, _stream(dataset), **options, start_step=30, num_steps=10))
    for a, b in zip(whole[30:], rest, strict=True):
        _assert_equal(a, b)


def test_one_image_is_seen_in_different_views(dataset):
    batches = training_loader(dataset, _stream(dataset), **OPTIONS, start_step=0, num_steps=20)
    shapes = {
        image.shape for batch in batches for image, i in zip(batch.images, batch.image_ids, strict=True) if i == 7
    }
    assert shapes == {(3, 24, 24), (3, 32, 32), (3, 40, 40)}


@pytest.mark.parametrize("augmentation", [None, AUGMENTED])
@pytest.mark.parametrize("images_per_pass", [1, 2, 4, None])
def test_shares_of_two_processes_make_up_the_batch_of_one(dataset, images_per_pass, augmentation):
    options = {**OPTIONS, "start_step": 0, "num_steps": 6, "augmentation": augmentation}
    options["images_per_pass"] = images_per_pass
    (whole, *shares) = (
        list(training_loader(dataset, _stream(dataset), **options, rank=rank, world_size=world))
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    size = images_per_pass or 4
    for one, *two in zip(whole, *shares, strict=True):
        assert one.padded_size == two[0].padded_size == two[1].padded_size
        for start in range(0, 8, size):
            turn, rank = divmod(start // size, 2)
            part = slice(turn * size, (turn + 1) * size)
            assert two[rank].image_ids[part] == one.image_ids[start : start + size]
            for a, b in zip(two[rank].images[part], one.images[start : start + size], strict=True):
                assert torch.equal(a, b)
        assert len(two[0].images) == len(two[1].images) == 4


def test_padded_size_holds_the_largest_image_of_the_step(dataset):
    for batch in training_loader(dataset, _stream(dataset), **OPTIONS, start_step=0, num_steps=10):
        height = max(image.shape[1] for image in batch.images)
        width = max(image.shape[2] for image in batch.images)
        assert batch.padded_size == (-(-height // 16) * 16, -(-width // 16) * 16)
    assert padded_size([(30, 64), (33, 20)], 32) == (64, 64)


@pytest.mark.parametrize(("per_pass", "world_size"), [(2, 1), (1, 2), (2, 2), (1, 4)])
def test_images_padded_together_have_the_size_of_their_largest_whatever_the_passes_and_processes(
    dataset, per_pass, world_size
):
    options = {**OPTIONS, "start_step": 0, "num_steps": 4, "pad_together": 2, "images_per_pass": per_pass}
    stream, padded = _stream(dataset), {}
    for rank in range(world_size):
        for step, batch in enumerate(training_loader(dataset, stream, **options, world_size=world_size, rank=rank)):
            share = [i for i in range(8) if i // per_pass % world_size == rank]
            for i, image, size in zip(share, batch.images, batch.padded_sizes, strict=True):
                padded[step, i] = (tuple(image.shape[1:]), size)
    assert len(padded) == 32
    for (step, i), (_, size) in padded.items():
        pair = [padded[step, i - i % 2][0], padded[step, i - i % 2 + 1][0]]
        assert size == padded_size(pair, 16)
    assert len({size for (step, _), (_, size) in padded.items() if step == 0}) > 1


def test_images_of_several_padded_sizes_have_no_common_one(dataset):
    (batch,) = training_loader(
        dataset, _stream(dataset), **OPTIONS, start_step=0, num_steps=1, pad_together=2, images_per_pass=2
    )
    with pytest.raises(ValueError, match="too many values"):
        _ = batch.padded_size


def test_augmentation_is_seen_in_the_batches(dataset):
    options = {**OPTIONS, "start_step": 0, "num_steps": 10}
    mosaics = training_loader(
        dataset, _stream(dataset), **options, augmentation=Augmentation(mosaic=Mosaic(size=(48, 80), probability=1.0))
    )
    for plain, batch in zip(training_loader(dataset, _stream(dataset), **options), mosaics, strict=True):
        assert {image.shape for image in batch.images} == {(3, 48, 80)}
        assert batch.padded_size == (48, 80)
        assert (batch.image_ids, batch.original_sizes) == (plain.image_ids, plain.original_sizes)


def test_channels_are_last_in_memory(dataset):
    (batch,) = training_loader(dataset, _stream(dataset), **OPTIONS, start_step=0, num_steps=1)
    assert all(image.permute(1, 2, 0).is_contiguous() for image in batch.images)


TEST = {"short_side": 32, "long_side": 64, "pad_multiple": 16, "batch_size": 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_every_image_once_and_again(dataset, workers):
    loader = evaluation_loader(dataset, **TEST, workers=workers)
    assert len(loader) == 3
    for _ in range(2):
        batches = list(loader)
        assert sorted(i for batch in batches for i in batch.image_ids) == [2, 5, 7, 11, 90]
        assert [len(batch.images) for batch in batches] == [2, 2, 1]


def test_evaluation_resizes_and_does_not_flip(dataset):
    for batch in evaluation_loader(dataset, **TEST):
        for image, targets, index, size in zip(
            batch.images, batch.targets, batch.image_indices, batch.original_sizes, strict=True
        ):
            assert size == dataset.size(index)
            expected = dataset.read(index, View(tuple(image.shape[1:]), flip=False))
            assert torch.equal(image, expected[0])
            assert torch.equal(targets.boxes, torch.from_numpy(expected[1].boxes))
            assert min(image.shape[1:]) == 32 or max(image.shape[1:]) == 64


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_take_whole_evaluation_batches_without_duplicates(dataset, world_size):
    alone = list(evaluation_loader(dataset, **TEST))
    shares = [list(evaluation_loader(dataset, **TEST, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for number, batch in enumerate(alone):
        _assert_equal(batch, shares[number % world_size].pop(0))
    assert not any(shares)


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_image_is_named_without_a_traceback_of_the_worker(dataset, image_folder, workers):
    (image_folder / "11.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"^\S*11\.png: cannot be decoded as an image: [^\n]*$"):
        list(evaluation_loader(dataset, **TEST, workers=workers))


def test_image_of_another_size_is_refused(dataset, image_folder):
    Image.new("RGB", (61, 40)).save(image_folder / "11.png")
    with pytest.raises(
        DataError, match=r"11\.png: has height 40 and width 61, but its annotations say height 40 and width 60"
    ):
        list(evaluation_loader(dataset, **TEST))


def test_missing_images_are_found_before_training(write, content, image_folder):
    (image_folder / "7.png").unlink()
    with pytest.raises(DataError, match=r"missing, for example 7\.png"):
        DetectionDataset(read_annotations(write(content)), image_folder)


def test_reading_leaves_the_random_numbers_of_training_alone(dataset):
    before = torch.get_rng_state()
    list(training_loader(dataset, _stream(dataset), **OPTIONS, start_step=0, num_steps=2))
    list(evaluation_loader(dataset, **TEST, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_dataset_survives_the_way_to_a_spawned_worker(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    view = View((60, 40), flip=True)
    assert torch.equal(copy.read(1, view)[0], dataset.read(1, view)[0])


def test_many_images_in_a_batch_do_not_use_up_open_files(dataset):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        loader = training_loader(dataset, _stream(dataset, 64), **OPTIONS, start_step=0, num_steps=4, workers=2)
        kept = list(loader)  # 256 images and 768 target tensors alive at once
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(kept) == 4
