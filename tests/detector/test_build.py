import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn

from longshot.datasets import DataError
from longshot.datasets.classes import Classes
from longshot.detector.build import (
    build_criterion,
    build_evaluation,
    build_network,
    build_postprocess,
    build_run,
    build_schedule,
)
from longshot.detector.build_data import build_val
from longshot.detector.checkpoint.file import save_checkpoint
from longshot.detector.config.schema import parse_config
from longshot.detector.errors import ConfigError
from longshot.detector.matching.assign import LEGACY_MATCHERS, MATCHERS, ATSSMatcher
from longshot.detector.matching.center_sampling import CenterSamplingMatcher
from longshot.detector.matching.iou import IoUMatcher
from longshot.detector.model.boxes import DistributionCoding
from longshot.detector.model.legacy import LegacyPostprocess
from longshot.detector.run.initial_weights import start_from
from longshot.losses import EqualizedFocalLoss, FocalLoss
from longshot.losses.box import GIoULoss, SmoothL1Loss

CLASSES = Classes([3, 7, 12, 90], ["red square", "green ring", "yellow disc", "blue bar"], list("ffcr"), [9, 9, 5, 1])


class Stream:
    epoch_length = 40.0


# ---------------------------------------------------------------------------------------------------------- the schedule


def schedule(**changes):
    values = {"schedule": {"length": 3, "milestones": [1, 2.5], "warmup_steps": 0}, "train": {"batch_size": 16}}
    for section, options in changes.items():
        values[section] = {**values.get(section, {}), **options}
    return build_schedule(parse_config(values), Stream)


def test_epochs_become_steps_of_the_repeated_images():
    # 40 images an epoch in batches of 16: 2.5 steps an epoch. round() goes to the even number: 2.5 -> 2, 6.25 -> 6.
    found = schedule(train={"checkpoint_every": 2, "batch_size": 16}, eval={"every": 1})
    assert (found.total_steps, found.save_every, found.evaluate_every) == (8, 5, 2.5)
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


def test_intervals_are_at_least_a_step():
    found = schedule(train={"checkpoint_every": 0.01, "batch_size": 16}, eval={"every": 0.01})
    assert (found.save_every, found.evaluate_every) == (1, 1)
    assert schedule(schedule={"length": 0.01, "milestones": []}).total_steps == 1


def test_the_warm_up_takes_a_quarter_of_a_short_run_at_most():
    rates = [schedule(schedule={"warmup_steps": 500, "factor": 1.0}).learning_rate(step) for step in range(8)]
    assert rates == pytest.approx([0.01 * 0.001, 0.01 * 0.5005] + [0.01] * 6)


def test_lr_schedule_is_that_of_the_reference():
    # United-Perception (52aaeb9, run on a CPU): 24 epochs of 50 iterations, a warm-up of one epoch, the rate of every step.
    with np.load(Path(__file__).parents[1] / "fixtures" / "lr_schedule.npz") as file:
        expected, per_image, batch = file["lr"], float(file["base_lr_per_image"]), int(file["total_batch"])
    config = parse_config(
        {
            "optimizer": {"lr_per_image": per_image},
            "schedule": {"length": 24, "milestones": [16, 22], "warmup_epochs": 1},
            "train": {"batch_size": batch},
        }
    )
    found = build_schedule(config, SimpleNamespace(epoch_length=50.0 * batch))
    assert found.total_steps == len(expected) == 1200
    rates = [found.learning_rate(step) for step in range(1200)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_the_learning_rate_of_an_image_is_multiplied_by_the_batch(make_config, cpu):
    config = make_config(differences={"optimizer": {"lr": None, "lr_per_image": 0.003}, "train": {"batch_size": 8}})
    assert build_schedule(config, Stream).learning_rate(5) == pytest.approx(0.024 * 0.0669873, rel=1e-5)  # of a cosine
    run = build_run(config, CLASSES, cpu, num_images=24)
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([0.024, 0.024])


def test_a_warm_up_in_epochs_is_as_long_as_it_says():
    def rates(epochs, **options):
        changes = {"warmup_steps": None, "warmup_epochs": epochs, "factor": 1.0, **options}
        found = schedule(schedule=changes)
        return [found.learning_rate(step) / 0.01 for step in range(found.total_steps)]

    # 2.5 steps an epoch; the last step of the warm-up has the full rate.
    assert rates(2.0) == pytest.approx([0.001 + 0.999 * i / 4 for i in range(4)] + [1.0] * 4)
    assert rates(9.0) == pytest.approx([0.001 + 0.999 * i / 7 for i in range(8)])  # not beyond the end of the run
    assert rates(0.0) == rates(0.3) == [1.0] * 8
    in_steps = rates(1.2, unit="steps", length=5, milestones=[])  # an epoch, whatever the unit of the length
    assert in_steps == pytest.approx([0.001, 0.5005, 1.0, 1.0, 1.0])


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


def test_every_option_of_the_test_and_of_the_boxes_reaches_the_postprocessing(make_config):
    test = {
        "score_threshold": 0.1, "candidates_per_level": 70, "limit_to_anchors": True, "nms_threshold": 0.3,
        "detections_per_image": 9,
    }  # fmt: skip
    model = {"legacy_offset": True, "head": {"box": "distribution", "bins": 9}}
    made = build_postprocess(make_config(differences={"test": test, "model": model}))
    assert {key: getattr(made, key) for key in test} == test
    assert type(made) is LegacyPostprocess
    assert (type(made.coding), made.coding.bins, made.coding.anchor_size) == (DistributionCoding, 9, 3.0)


def test_matchers_get_what_the_model_says(make_config):
    def matcher(name, **model):
        differences = {"model": model, "matching": {"matcher": {"name": name}}}
        return build_criterion(make_config(differences=differences), CLASSES.train_images, 24).matcher

    for name in ("iou", "atss"):
        assert type(matcher(name, legacy_offset=True)) is LEGACY_MATCHERS[name]
        assert type(matcher(name)) is MATCHERS[name] is not LEGACY_MATCHERS[name]
    points = {"base_size": 8.0, "ratios": [1.0], "scales": [0.5]}
    sampled = matcher("center_sampling", anchors=points)
    assert (type(sampled), sampled.radius, sampled.anchor_size) == (CenterSamplingMatcher, 1.5, 4.0)
    needed = r"matching.matcher center_sampling needs one square anchor per location, found scales \[1.0, 2.0\]"
    with pytest.raises(ConfigError, match=needed):
        matcher("center_sampling", anchors={**points, "scales": [1.0, 2.0]})


@pytest.mark.parametrize(("name", "option"), [("atss", "legacy_offset"), ("center_sampling", "anchor_size")])
def test_what_the_model_says_is_no_option_of_matchers(name, option, make_config):
    with pytest.raises(ConfigError, match=rf"matching.matcher.{option}: unknown key"):
        make_config(differences={"matching": {"matcher": {"name": name, option: 1}}})


def test_a_value_that_a_constructor_refuses_is_told_with_its_section(make_config):
    matcher = {"name": "iou", "positive": 0.4, "negative": 0.5}
    with pytest.raises(ConfigError, match=r"^matching.matcher: IoU thresholds must keep"):
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
    with pytest.raises(DataError, match=r"init_from .*start.pt.* id 12: 'sun' here, 'yellow disc' there"):
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
