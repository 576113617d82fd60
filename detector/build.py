"""From a Config to objects: the only module that knows both."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from datasets.annotations import Annotations, read_annotations
from datasets.augmentation import AUGMENTATIONS, Augmentation
from datasets.emoji import draw_dataset
from datasets.loader import BatchLoader, DetectionDataset, evaluation_loader, training_loader
from datasets.samplers import TrainingStream, training_stream
from losses import BOX_LOSSES, CLASSIFICATION_LOSSES, LOSSES_OF_COUNTS

from . import config as c
from .classes import Classes
from .distributed import Process, on_rank_zero
from .evaluation.ground_truth import GroundTruth, choose_protocol
from .evaluation.pictures import detection_sheet
from .evaluation.predict import Evaluation
from .model.anchors import AnchorGenerator
from .model.backbone import resnet
from .model.box_coding import BoxCoding, DeltaCoding, DistanceCoding, DistributionCoding
from .model.fpn import FPN
from .model.head import DenseHead
from .model.postprocess import Postprocess
from .model.retinanet import RetinaNet
from .training.criterion import Criterion
from .training.engine import Run
from .training.matching import MATCHERS
from .training.optim import build_optimizer, learning_rate, moving_average
from .yaml_files import ConfigError


@dataclass(frozen=True)
class Data:
    """Both splits, their classes, and the order of training images."""

    train: DetectionDataset
    val: DetectionDataset
    classes: Classes
    stream: TrainingStream


@dataclass(frozen=True)
class Schedule:
    """The schedule in steps."""

    total_steps: int
    save_every: int
    evaluate_every: int | None
    learning_rate: Callable[[int], float]  # of a step


def build_data(config: c.Config, process: Process) -> Data:
    """Read both annotation files, after drawing the dataset if the configuration asks for that.

    Raises ConfigError for paths that are not set, DataError for everything that is wrong with the data.
    """
    (annotations, images), (val_annotations, val_images) = _splits(config.data, process, "train", "val")
    train = DetectionDataset(annotations, images, keep_empty=config.data.keep_empty)
    val = DetectionDataset(val_annotations, val_images)
    known, other = train.annotations, val.annotations
    classes = Classes.from_annotations(known, rare=config.data.rare, common=config.data.common)
    classes.check_same(other.category_ids, other.class_names, here=f"{known.path} (train)", there=f"{other.path} (val)")
    return Data(train, val, classes, _stream(config, train))


def build_val(config: c.Config, process: Process) -> DetectionDataset:
    """The validation set alone: a trained model needs no training set to be evaluated. Raises as `build_data` does."""
    ((annotations, images),) = _splits(config.data, process, "val")
    return DetectionDataset(annotations, images)


def build_network(config: c.Model, num_classes: int, *, pretrained: bool = True) -> RetinaNet:
    """The network, with the trunk's weights if there are any and unless `pretrained` is False.

    Raises ConfigError for weights that are not there or do not fit.
    """
    with _config_errors("model.backbone"):
        options = config.backbone.options() | ({} if pretrained else {"weights": None})
        backbone = resnet(config.backbone.name, **options)
    fpn = FPN(backbone.out_channels, **config.fpn.options())
    with _config_errors("model.anchors"):
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
    anchors = config.anchors
    if config.head.box == "deltas":
        return DeltaCoding()
    if len(anchors.scales) * len(anchors.ratios) > 1 or anchors.ratios != (1.0,):
        raise ConfigError(
            f"model.head.box {config.head.box} needs one square anchor per location, found scales "
            f"{list(anchors.scales)} and ratios {list(anchors.ratios)}; for instance base_size: 8, scales: [1], ratios: [1]"
        )
    anchor_size = anchors.base_size * anchors.scales[0]
    if config.head.box == "distances":
        return DistanceCoding(anchor_size=anchor_size)
    return DistributionCoding(anchor_size=anchor_size, bins=config.head.bins)


def build_criterion(config: c.Config, image_counts: Sequence[int], num_images: int) -> Criterion:
    """The losses and the matcher of the configuration; class k is in image_counts[k] of the num_images training images."""
    loss, matcher = config.loss, config.matching.matcher
    counts = (image_counts, num_images) if loss.classification.name in LOSSES_OF_COUNTS else (len(image_counts),)
    with _config_errors("loss or matching"):
        return Criterion(
            CLASSIFICATION_LOSSES[loss.classification.name](*counts, **loss.classification.options()),
            BOX_LOSSES[loss.box.name](**loss.box.options()),
            MATCHERS[matcher.name](**matcher.options()),
            coding=build_coding(config.model),
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
            network, name=options.name, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay,
            decay_norm_and_bias=options.decay_norm_and_bias,
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
    unit = 1.0 if config.schedule.unit == "steps" else stream.epoch_length / config.train.batch_size
    total = max(1, round(config.schedule.length * unit))

    def steps(length: float) -> int:
        return min(total, max(1, round(length * unit)))

    rate = partial(
        learning_rate,
        lr=config.optimizer.lr,
        total_steps=total,
        name=config.schedule.name,
        milestones=tuple(steps(milestone) for milestone in config.schedule.milestones),
        factor=config.schedule.factor,
        final_factor=config.schedule.final_factor,
        # A set of fifty images is over before the usual warm-up is.
        warmup_steps=min(config.schedule.warmup_steps, total // 4),
        warmup_factor=config.schedule.warmup_factor,
    )
    every = config.eval.every
    return Schedule(total, steps(config.train.checkpoint_every), steps(every) if every else None, rate)


def images_per_pass(config: c.Config, process: Process) -> int:
    """Images that a process holds at once. Raises ConfigError if passes and processes do not divide the batch."""
    batch = config.train.batch_size
    per_pass = config.train.images_per_pass or max(1, batch // process.world_size)
    if batch % (per_pass * process.world_size):
        raise ConfigError(
            f"train.batch_size {batch} is not divisible by {process.world_size} processes times {per_pass} images per "
            "pass; change train.batch_size, train.images_per_pass or the number of processes"
        )
    return per_pass


def build_training_loader(config: c.Config, data: Data, process: Process, *, first: int, total: int) -> BatchLoader:
    """This process's share of the batches of steps first, …, total - 1."""
    return training_loader(
        data.train, data.stream,
        short_sides=config.data.short_sides, long_side=config.data.long_side, flip=config.data.flip,
        augmentation=_augmentation(config.data), pad_multiple=config.data.pad_multiple, seed=config.seed,
        start_step=first, num_steps=total - first, images_per_pass=images_per_pass(config, process),
        rank=process.rank, world_size=process.world_size, workers=config.data.workers,
    )  # fmt: skip


def build_evaluation(config: c.Config, val: DetectionDataset, classes: Classes, process: Process) -> Evaluation:
    """The scoring of networks on the validation set. Raises ConfigError if its file does not support the protocol."""
    with _config_errors("eval.protocol"):
        protocol = choose_protocol(config.eval.protocol, val.annotations)
        ground_truth = GroundTruth.from_annotations(val.annotations, protocol)
    batches = evaluation_loader(
        val, short_side=config.data.test_short_side, long_side=config.data.long_side,
        pad_multiple=config.data.pad_multiple, batch_size=config.eval.batch_size,
        rank=process.rank, world_size=process.world_size, workers=config.data.workers,
    )  # fmt: skip
    return Evaluation(
        batches, ground_truth, Postprocess(**config.test.options()), process,
        category_ids=classes.ids, class_names=classes.names, frequencies=classes.frequencies,
        train_image_counts=classes.train_images,
    )  # fmt: skip


def build_pictures(config: c.Config, data: Data, network: RetinaNet) -> np.ndarray:
    """Validation images with their objects and the network's detections; (H, W, 3) uint8."""
    return detection_sheet(
        network, data.val, Postprocess(**config.test.options()), data.classes.names,
        count=config.eval.pictures, short_side=config.data.test_short_side,
        long_side=config.data.long_side, pad_multiple=config.data.pad_multiple,
    )  # fmt: skip


def _splits(data: c.Data, process: Process, *names: Literal["train", "val"]) -> list[tuple[Annotations, str | Path]]:
    """Annotations and the folder of images of each split. Rank 0 parses the files, the others map the cache it leaves."""
    files = _files(data, process, names)
    return [(on_rank_zero(process, partial(read_annotations, annotations)), images) for annotations, images in files]


def _files(data: c.Data, process: Process, names: Sequence[str]) -> list[tuple[str | Path, str | Path]]:
    """(annotations, images) of each of the splits."""
    if data.generate:
        with _config_errors("data.generate"):
            files = on_rank_zero(process, partial(draw_dataset, **data.generate.options()))
        return [(getattr(files, name), files.images) for name in names]
    splits = {name: getattr(data, name) for name in names}
    missing = [
        f"data.{name}.{key}"
        for name, split in splits.items()
        for key in ("annotations", "images")
        if getattr(split, key) is None
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not set; name the files in the configuration or on the command line, "
                          f"for instance {missing[0]}=PATH")  # fmt: skip
    return [(split.annotations, split.images) for split in splits.values()]


def _augmentation(data: c.Data) -> Augmentation:
    chosen = {}
    for name, kind in AUGMENTATIONS.items():
        with _config_errors(f"data.{name}"):
            chosen[name] = (options := getattr(data, name)) and kind(**options.options())
    return Augmentation(**chosen)


def _stream(config: c.Config, train: DetectionDataset) -> TrainingStream:
    wide = train.sizes[:, 1] >= train.sizes[:, 0] if config.data.aspect_grouping else None
    return training_stream(
        *train.learned_objects(), num_images=len(train), name=config.data.sampler.name, **config.data.sampler.options(),
        batch_size=config.train.batch_size, seed=config.seed, wide=wide,
    )  # fmt: skip


@contextmanager
def _config_errors(where: str) -> Iterator[None]:
    """Tell which part of the configuration the ValueError of a constructor is about."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
