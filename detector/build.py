"""From a Config to objects; only this module and `build_data` know both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from ..datasets.classes import Classes
from ..datasets.loading.dataset import DetectionDataset, Splits
from ..datasets.loading.samplers import TrainingStream
from ..losses import BOX_LOSSES, CLASSIFICATION_LOSSES, LOSSES_OF_COUNTS
from .build_data import build_evaluation_loader
from .checkpoint.trunk import load_trunk
from .config import schema as c
from .errors import ConfigError, config_errors
from .evaluation.evaluate import Evaluation
from .evaluation.ground_truth import choose_protocol
from .matching.assign import LEGACY_MATCHERS, MATCHERS, Matcher
from .model.anchors import AnchorGenerator
from .model.backbone import resnet
from .model.boxes import BoxCoding, DeltaCoding, DistanceCoding, DistributionCoding
from .model.head import DenseHead
from .model.legacy import LegacyPostprocess
from .model.postprocess import Postprocess
from .model.retinanet import FPN, RetinaNet
from .pictures.detections import detection_sheet
from .system.distributed import Process
from .training.criterion import Criterion
from .training.optim import build_optimizer, learning_rate, moving_average
from .training.state import Run


@dataclass(frozen=True)
class Schedule:
    """The schedule in steps."""

    total_steps: int
    save_every: int
    evaluate_every: float | None  # may be a fraction: see `evaluates_after`
    learning_rate: Callable[[int], float]  # of a step

    def evaluates_after(self, step: int) -> bool:
        """Whether the run is evaluated after `step`: the first that is not before a multiple of `evaluate_every`; the last.

        Epochs are seldom a whole number of steps. If six of them were rounded to steps, the fourth evaluation of a run of
        24 could come a step before its end, and the same model, nearly, would be evaluated twice.
        """
        every = self.evaluate_every
        return step >= self.total_steps or (every is not None and int(step / every) > int((step - 1) / every))


def build_network(config: c.Model, num_classes: int, *, pretrained: bool = True) -> RetinaNet:
    """The network, with the trunk's weights if there are any and unless `pretrained` is False.

    Raises ConfigError for weights that are not there or do not fit.
    """
    with config_errors("model.backbone"):
        options = config.backbone.options()
        weights = options.pop("weights")
        backbone = resnet(config.backbone.name, **options)
        if weights and pretrained:
            load_trunk(backbone, config.backbone.name, weights)
    fpn = FPN(backbone.out_channels, **config.fpn.options())
    with config_errors("model.anchors"):
        anchors = AnchorGenerator(strides=fpn.strides, **config.anchors.options())
    options = config.head.options()
    head = DenseHead(
        fpn.channels, num_classes=num_classes, num_anchors=anchors.num_anchors,
        **{key: options[key] for key in ("num_convs", "width", "norm", "prior", "recompute")},
        box_depth=build_coding(config).depth, quality=config.head.quality != "none",
        scaled_levels=len(fpn.strides) if config.head.level_scales else 0,
    )  # fmt: skip
    return RetinaNet(backbone, fpn, head, anchors)


def build_coding(config: c.Model) -> BoxCoding:
    """What the box outputs of the head mean. Raises ConfigError if the anchors do not suit it."""
    if config.head.box == "deltas":
        return DeltaCoding()
    anchor_size = _anchor_size(config.anchors, f"model.head.box {config.head.box}")
    if config.head.box == "distances":
        return DistanceCoding(anchor_size=anchor_size)
    return DistributionCoding(anchor_size=anchor_size, bins=config.head.bins)


def _matcher(config: c.Config) -> Matcher:
    """What matches anchors and objects. Raises ConfigError if its options are impossible or the anchors do not suit it."""
    chosen, by_program = config.matching.matcher, {}
    if chosen.name == "center_sampling":
        by_program = {"anchor_size": _anchor_size(config.model.anchors, "matching.matcher center_sampling")}
    with config_errors("matching.matcher"):
        matchers = LEGACY_MATCHERS if config.model.legacy_offset else MATCHERS
        return matchers[chosen.name](**chosen.options(), **by_program)


def _anchor_size(anchors: c.Anchors, needed_by: str) -> float:
    """The side of the only anchor of a location, in strides. Raises ConfigError unless it is the only one and square."""
    if len(anchors.scales) * len(anchors.ratios) > 1 or anchors.ratios != (1.0,):
        raise ConfigError(
            f"{needed_by} needs one square anchor per location, found scales {list(anchors.scales)} and ratios "
            f"{list(anchors.ratios)}; for instance base_size: 8, scales: [1], ratios: [1]"
        )
    return anchors.base_size * anchors.scales[0]


def build_postprocess(config: c.Config) -> Postprocess:
    """What turns the outputs of the network into detections. Raises ConfigError if the anchors do not suit its boxes."""
    kind = LegacyPostprocess if config.model.legacy_offset else Postprocess
    return kind(**config.test.options(), coding=build_coding(config.model))


def build_criterion(config: c.Config, image_counts: Sequence[int], num_images: int) -> Criterion:
    """The losses and the matcher of the configuration; class k is in image_counts[k] of the num_images training images."""
    loss, matcher, coding = config.loss, _matcher(config), build_coding(config.model)
    counts = (image_counts, num_images) if loss.classification.name in LOSSES_OF_COUNTS else (len(image_counts),)
    with config_errors("loss"):
        return Criterion(
            CLASSIFICATION_LOSSES[loss.classification.name](*counts, **loss.classification.options()),
            BOX_LOSSES[loss.box.name](**loss.box.options()),
            matcher,
            coding=coding,
            quality=config.model.head.quality,
            box_weighting=loss.box_weighting,
            quality_weight=loss.quality_weight,
            distribution_weight=loss.distribution_weight,
            ignore_padding=config.matching.ignore_padding,
        )


def build_run(config: c.Config, classes: Classes, process: Process, *, num_images: int) -> Run:
    """A run at step 0, on `num_images` training images: network, criterion, optimizer, and what fp16 and averaging need.

    The weights of `init_from` are not in it yet: see `pretrained.start_from`.
    """
    _check_norm(config, process)
    network = build_network(config.model, len(classes.ids), pretrained=not config.init_from).to(process.device)
    options, decay = config.optimizer, config.train.ema_decay
    return Run(
        network,
        build_criterion(config, classes.train_images, num_images).to(process.device),
        build_optimizer(
            network, name=options.name, lr=options.learning_rate(config.train.batch_size), momentum=options.momentum,
            weight_decay=options.weight_decay, decay_norm_and_bias=options.decay_norm_and_bias,
        ),
        GradScaler(process.device.type, enabled=config.train.precision == "fp16"),
        AveragedModel(network, avg_fn=partial(moving_average, decay=decay)) if decay else None,
    )  # fmt: skip


def _check_norm(config: c.Config, process: Process) -> None:
    backbone = config.model.backbone
    if backbone.norm == "sync_bn" and process.device.type == "cpu":
        raise ConfigError("model.backbone.norm: sync_bn works on GPUs only; on a CPU use bn, gn or frozen_bn")
    if backbone.norm in ("frozen_bn", "frozen_stats") and not (backbone.weights or config.init_from):
        raise ConfigError(
            f"model.backbone: norm {backbone.norm} keeps the statistics of pretrained weights, and there are none; set "
            "model.backbone.weights to a torchvision weight name or a path, or norm to bn or gn"
        )


def build_schedule(config: c.Config, stream: TrainingStream) -> Schedule:
    """The schedule in steps; an epoch is as long as the sampler makes it, repeated images counted."""
    epoch = stream.epoch_length / config.train.batch_size
    unit = 1.0 if config.schedule.unit == "steps" else epoch
    total = max(1, round(config.schedule.length * unit))

    def steps(length: float) -> int:
        return min(total, max(1, round(length * unit)))

    rate = partial(
        learning_rate,
        lr=config.optimizer.learning_rate(config.train.batch_size),
        total_steps=total,
        name=config.schedule.name,
        milestones=tuple(steps(milestone) for milestone in config.schedule.milestones),
        factor=config.schedule.factor,
        final_factor=config.schedule.final_factor,
        warmup_steps=_warmup_steps(config.schedule, epoch, total),
        warmup_factor=config.schedule.warmup_factor,
    )
    every = config.eval.every
    evaluate_every = max(1.0, every * unit) if every else None
    return Schedule(total, steps(config.train.checkpoint_every), evaluate_every, rate)


def _warmup_steps(schedule: c.Schedule, epoch: float, total: int) -> int:
    if schedule.warmup_epochs is None:
        return min(schedule.warmup_steps, total // 4)  # a set of fifty images is over before the usual warm-up is
    # The last step of the warm-up is the first at the full rate, as United-Perception has it.
    return max(0, min(total, round(schedule.warmup_epochs * epoch)) - 1)


def build_evaluation(config: c.Config, val: DetectionDataset, classes: Classes, process: Process) -> Evaluation:
    """The scoring of networks on the validation set. Raises ConfigError if its file does not support the protocol."""
    with config_errors("eval.protocol"):
        protocol = choose_protocol(config.eval.protocol, val.annotations)
    return Evaluation(
        build_evaluation_loader(config, val, process), val.annotations, protocol, build_postprocess(config), process,
        classes,
    )  # fmt: skip


def build_pictures(config: c.Config, data: Splits, network: RetinaNet) -> np.ndarray:
    """Validation images with their objects and the network's detections; (H, W, 3) uint8."""
    return detection_sheet(
        network, data.val, build_postprocess(config), data.classes.names,
        count=config.eval.pictures, short_side=config.data.test_short_side,
        long_side=config.data.long_side, pad_multiple=config.data.pad_multiple,
    )  # fmt: skip
