import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn

from datasets.samplers import ClassAwareStream, TrainingStream
from detector.build import (
    build_criterion,
    build_data,
    build_evaluation,
    build_network,
    build_run,
    build_schedule,
    build_training_loader,
    build_val,
    images_per_pass,
)
from detector.checkpoint import save_checkpoint
from detector.classes import Classes
from detector.config import parse_config
from detector.distributed import Process
from detector.pretrained import start_from
from detector.training.matching import ATSSMatcher, IoUMatcher
from detector.yaml_files import ConfigError
from losses import EqualizedFocalLoss, FocalLoss
from losses.box import GIoULoss, SmoothL1Loss

CLASSES = Classes([3, 7, 12, 90], ["red square", "green ring", "yellow disc", "blue bar"], list("ffcr"), [9, 9, 5, 1])


class Stream:
    epoch_length = 40.0


def processes(world_size, rank=0):
    return Process(rank, world_size, torch.device("cpu"))


# ---------------------------------------------------------------------------------------------------------- the schedule


def schedule(**changes):
    values = {"schedule": {"length": 3, "milestones": [1, 2.5], "warmup_steps": 0}, "train": {"batch_size": 16}}
    for section, options in changes.items():
        values[section] = {**values.get(section, {}), **options}
    return build_schedule(parse_config(values), Stream)


def test_epochs_become_steps_of_the_repeated_images():
    # 40 images an epoch in batches of 16: 2.5 steps an epoch. round() goes to the even number: 2.5 -> 2, 6.25 -> 6.
    found = schedule(train={"checkpoint_every": 2, "batch_size": 16}, eval={"every": 1})
    assert (found.total_steps, found.save_every, found.evaluate_every) == (8, 5, 2)
    rates = [found.learning_rate(step) for step in range(8)]
    assert rates == pytest.approx([0.01] * 2 + [0.001] * 4 + [0.0001] * 2)


def test_steps_stay_steps():
    found = schedule(
        schedule={"unit": "steps", "length": 30, "milestones": [20]},
        train={"checkpoint_every": 7},
        eval={"every": None},
    )
    assert (found.total_steps, found.save_every, found.evaluate_every) == (30, 7, None)
    assert [found.learning_rate(step) for step in (19, 20)] == pytest.approx([0.01, 0.001])


def test_intervals_lie_between_one_step_and_the_whole_run():
    found = schedule(train={"checkpoint_every": 0.01, "batch_size": 16}, eval={"every": 100})
    assert (found.save_every, found.evaluate_every) == (1, 8)
    assert schedule(schedule={"length": 0.01, "milestones": []}).total_steps == 1


def test_the_warm_up_takes_a_quarter_of_a_short_run_at_most():
    rates = [schedule(schedule={"warmup_steps": 500, "factor": 1.0}).learning_rate(step) for step in range(8)]
    assert rates == pytest.approx([0.01 * 0.001, 0.01 * 0.5005] + [0.01] * 6)


def test_every_option_of_the_schedule_reaches_the_learning_rate():
    found = schedule(
        schedule={"name": "cosine", "milestones": [], "final_factor": 0.5, "warmup_steps": 2, "warmup_factor": 0.25},
        optimizer={"lr": 0.8},
    )
    assert found.learning_rate(0) == pytest.approx(0.8 * 0.25)
    assert found.learning_rate(4) == pytest.approx(0.8 * 0.75)
    assert found.learning_rate(8) == pytest.approx(0.8 * 0.5)
    assert found.learning_rate(1) == pytest.approx(0.8 * (0.25 + 0.75 / 2) * 0.98097, rel=1e-4)
    step = schedule(schedule={"factor": 0.5})
    assert step.learning_rate(7) == pytest.approx(0.01 * 0.25)


# ------------------------------------------------------------------------------------------------------ passes and batches


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
    assert data.classes[:3] == CLASSES[:3]
    assert data.stream.epoch_length == 24
    repeated = make_config(differences={"data": {"sampler": {"name": "repeat_factor", "threshold": 1.0}}})
    assert build_data(repeated, cpu).stream.epoch_length > 30
    assert len(build_data(make_config(differences={"data": {"keep_empty": False}}), cpu).train) < 24
    assert len(build_val(make_config(), cpu)) == 7


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


def test_a_drawn_dataset_takes_the_place_of_files(cpu, shapes, monkeypatch):
    calls = []

    def draw(folder, **options):
        calls.append((folder, options["categories"]))
        if options["categories"] == 11:
            raise ValueError("there are no 11")
        return SimpleNamespace(train=shapes.train, val=shapes.val, images=shapes.folder)

    monkeypatch.setattr("detector.build.draw_dataset", draw)
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
        ConfigError, match=r"train.json \(train\) has 4 classes, .*id 3: 'red square' here, 'a dog' there"
    ):
        build_data(config, cpu)


def test_a_file_that_does_not_support_the_protocol_is_told(make_config, cpu, shapes, tmp_path):
    content = json.loads(shapes.val.read_text())
    for image in content["images"]:
        del image["neg_category_ids"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    files = {"data": {"val": {"annotations": str(tmp_path / "val.json")}}}
    config = make_config(differences={**files, "eval": {"protocol": "lvis"}})
    with pytest.raises(ConfigError, match=r"eval.protocol: .*needs 'neg_category_ids'"):
        build_evaluation(config, build_val(config, cpu), CLASSES, cpu)
    config = make_config(differences=files)
    evaluation = build_evaluation(config, build_val(config, cpu), CLASSES, cpu)
    assert evaluation.ground_truth.protocol.name == "coco"


# ------------------------------------------------------------------------------------------------------ model and losses


def test_every_option_reaches_its_object(make_config):
    config = make_config(
        differences={
            "loss": {
                "classification": {"name": "equalized_focal", "alpha": 0.3, "gamma": 1.5, "scale": 4.0, "weight": 2.0},
                "box": {"name": "smooth_l1", "beta": 0.5, "weight": 3.0},
            },
            "matching": {"matcher": {"name": "iou", "positive": 0.6, "negative": 0.3}, "ignore_padding": True},
        }
    )
    criterion = build_criterion(config, CLASSES.train_images, 24)
    loss = criterion.classification
    assert type(loss) is EqualizedFocalLoss
    assert (loss.num_classes, loss.alpha, loss.gamma, loss.scale, loss.weight) == (4, 0.3, 1.5, 4.0, 2.0)
    assert (type(criterion.box), criterion.box.beta, criterion.box.weight) == (SmoothL1Loss, 0.5, 3.0)
    assert (type(criterion.matcher), criterion.matcher.positive, criterion.matcher.negative) == (IoUMatcher, 0.6, 0.3)
    assert criterion.ignore_padding
    other = build_criterion(
        make_config(differences={"loss": {"classification": {"name": "focal"}}}), CLASSES.train_images, 24
    )
    assert (type(other.classification), type(other.box), type(other.matcher)) == (FocalLoss, GIoULoss, ATSSMatcher)


def test_a_value_that_a_constructor_refuses_is_told_with_its_section(make_config):
    matcher = {"name": "iou", "positive": 0.4, "negative": 0.5}
    with pytest.raises(ConfigError, match=r"loss or matching: IoU thresholds must keep"):
        build_criterion(make_config(differences={"matching": {"matcher": matcher}}), CLASSES.train_images, 24)
    with pytest.raises(ConfigError, match=r"model.backbone: thin weights 'IMAGENET1K_V1'"):
        build_network(make_config(differences={"model": {"backbone": {"weights": "IMAGENET1K_V1"}}}).model, 4)


def test_norms_that_cannot_work_are_told(make_config, cpu):
    with pytest.raises(ConfigError, match="sync_bn works on GPUs only; on a CPU use bn, gn or frozen_bn"):
        build_run(make_config(differences={"model": {"backbone": {"norm": "sync_bn"}}}), CLASSES, cpu, num_images=24)
    with pytest.raises(ConfigError, match="frozen_bn keeps the statistics of pretrained weights, and there are none"):
        build_run(make_config(differences={"model": {"backbone": {"norm": "frozen_bn"}}}), CLASSES, cpu, num_images=24)


def test_a_run_has_what_its_configuration_asks_for(make_config, cpu):
    run = build_run(make_config(), CLASSES, cpu, num_images=24)
    assert (run.step, run.ema, run.scaler.is_enabled()) == (0, None, False)
    assert type(run.optimizer) is torch.optim.SGD
    options = {"train": {"precision": "fp16", "ema_decay": 0.9}, "optimizer": {"name": "adamw", "weight_decay": 0.2}}
    run = build_run(make_config(differences=options), CLASSES, cpu, num_images=24)
    assert run.scaler.is_enabled()
    assert run.evaluated_network is not run.network
    assert type(run.optimizer) is torch.optim.AdamW
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0.2}


# --------------------------------------------------------------------------------------- starting from another detector


def same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.fixture
def checkpoint(make_config, cpu, tmp_path):
    """The path of a checkpoint of CLASSES whose average differs from its weights, and the average."""
    config = make_config(differences={"train": {"ema_decay": 0.9}})
    run = build_run(config, CLASSES, cpu, num_images=24)
    torch.nn.init.ones_(run.ema.module.head.deltas.weight)
    path = tmp_path / "start.pt"
    save_checkpoint(
        path, {"config": config.model_dump(mode="json"), "classes": CLASSES._asdict(), **run.state_dict(), "step": 7}
    )
    return path, run.ema.module.state_dict()


def test_a_run_starts_from_the_averaged_weights_of_a_checkpoint(make_config, cpu, checkpoint):
    path, averaged = checkpoint
    run = build_run(make_config(differences={"seed": 9, "train": {"ema_decay": 0.5}}), CLASSES, cpu, num_images=24)
    told = start_from(run, path, CLASSES)
    assert same_weights(run.network.state_dict(), averaged)
    assert same_weights(run.evaluated_network.state_dict(), averaged)
    assert run.step == 0
    assert told == (
        f"init_from {path}: averaged weights of step 7 of a run with equalized_focal; its loss state "
        "(positive_gradient, negative_gradient) is dropped, the loss of this run starts anew"
    )


def test_the_weights_of_a_trunk_are_not_read_if_those_of_a_detector_follow(make_config, cpu):
    trunk = {"model": {"backbone": {"weights": "/nowhere/trunk.pt"}}}
    with pytest.raises(ConfigError, match=r"/nowhere/trunk\.pt"):
        build_run(make_config(differences=trunk), CLASSES, cpu, num_images=24)
    build_run(make_config(differences={**trunk, "init_from": "start.pt"}), CLASSES, cpu, num_images=24)


def test_a_checkpoint_of_other_classes_or_another_model_is_refused(make_config, cpu, checkpoint):
    path, _ = checkpoint
    other = CLASSES._replace(names=["red square", "green ring", "sun", "blue bar"])
    with pytest.raises(ConfigError, match=r"init_from .*start.pt.* id 12: 'sun' here, 'yellow disc' there"):
        start_from(build_run(make_config(), other, cpu, num_images=24), path, other)
    wider = build_run(make_config(differences={"model": {"fpn": {"channels": 24}}}), CLASSES, cpu, num_images=24)
    with pytest.raises(
        ConfigError, match=r"init_from: .*start.pt does not fit the model of this configuration"
    ) as error:
        start_from(wider, path, CLASSES)
    assert len(str(error.value)) < 1000


def test_a_file_that_is_no_detector_is_refused(make_config, cpu, tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "resnet.pt")
    with pytest.raises(ConfigError, match=r"init_from: .*resnet.pt: not a state dict of torchvision's RetinaNet"):
        start_from(build_run(make_config(), CLASSES, cpu, num_images=24), tmp_path / "resnet.pt", CLASSES)


def test_a_run_starts_from_torchvisions_retinanet(make_config, cpu, tmp_path):
    # 30 million weights: some seconds.
    torchvisions = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    path = tmp_path / "retinanet.pth"
    torch.save(torchvisions.state_dict(), path)
    model = {
        "backbone": {"name": "resnet50", "norm": "frozen_bn"},
        "fpn": {"channels": 256, "levels": 5, "p6_from": "p5"},
        "head": {"num_convs": 4, "width": 256, "norm": "none"},
        "anchors": {"ratios": [0.5, 1.0, 2.0], "scales": [1.0, 1.26, 1.59], "style": "torchvision", "offset": 0.0},
    }
    config = make_config(differences={"init_from": str(path), "model": model})
    animals = Classes([1, 2], ["zebra", "cat"], ["f", "f"], [3, 3])
    run = build_run(config, animals, cpu, num_images=24)
    told = start_from(run, path, animals)
    assert told == f"init_from {path}: weights of torchvision's RetinaNet, the class head included"
    theirs = torchvisions.state_dict()
    assert torch.equal(run.network.backbone.layer4[0].conv2.weight, theirs["backbone.body.layer4.0.conv2.weight"])
    rows = theirs["head.classification_head.cls_logits.weight"].view(9, 91, 256, 3, 3)[:, [24, 17]]  # COCO's ids
    assert torch.equal(run.network.head.logits.weight, rows.flatten(0, 1))
    run = build_run(config, CLASSES, cpu, num_images=24)
    assert "the class head starts anew, since COCO has no class called 'red square'" in start_from(run, path, CLASSES)
    assert run.network.head.logits.bias.unique().numel() == 1  # as a head starts
    assert torch.equal(run.network.head.deltas.weight, theirs["head.regression_head.bbox_reg.weight"])
    model["anchors"]["offset"] = 0.5
    run = build_run(make_config(differences={"init_from": str(path), "model": model}), CLASSES, cpu, num_images=24)
    with pytest.raises(ConfigError, match="was trained with torchvision's anchors"):
        start_from(run, path, CLASSES)
