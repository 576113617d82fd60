"""The configuration: every key, its type, default and meaning. Frozen once loaded.

The options of losses, matchers, augmentations and the drawn dataset are the keyword parameters of the classes and
functions themselves.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...datasets.emoji.dataset import EmojiOptions
from ...datasets.images.augmentation import AUGMENTATIONS
from ...losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from ..matching.assign import MATCHERS
from .sections import (
    AboveZero,
    Channels,
    Fraction,
    Images,
    NotNegative,
    Positive,
    Section,
    Side,
    Strides,
    one_of,
    section_of,
    sections_of,
    validated,
)
from .yaml_files import apply_overrides, find_config, read_yaml

_CLASSIFICATION = sections_of(CLASSIFICATION_LOSSES)
_BOX = sections_of(BOX_LOSSES)
_MATCHERS = sections_of(MATCHERS, set_by_program=("anchor_size",))  # which follows from `model`
_AUGMENTATIONS = {name: section_of(f"{name} options", target) for name, target in AUGMENTATIONS.items()}
Emoji = section_of("emoji options", EmojiOptions, folder=(str, ...))


class Split(Section):
    annotations: str | None = None  # COCO or LVIS JSON
    images: str | None = None  # the folder which its file names are relative to


class Sampler(Section):
    name: Literal["random", "repeat_factor", "class_aware", "instance_balanced"] = "random"
    threshold: Fraction = 0.001  # repeat_factor: classes in a smaller fraction of the images are repeated (LVIS paper)
    # repeat_factor: (threshold / fraction) ** power is a class's factor; LVIS: the square root
    power: Annotated[float, Field(gt=0, le=10)] = 0.5
    rounding: Literal["ceil", "stochastic"] = "ceil"  # repeat_factor: of an image's factor
    legacy_order: bool = False  # random, repeat_factor: RandomState(seed + epoch) shuffles, as in the EFL reference


class Data(Section):
    generate: Emoji | None = None  # draw this dataset first and use it, in place of train and val
    train: Split = Split()
    val: Split = Split()
    short_sides: Annotated[tuple[Side, ...], Field(min_length=1)] = (800,)  # training: one is drawn per image
    test_short_side: Side = 800
    long_side: Annotated[int, Field(gt=0, le=2**17)] = 1333  # at most, in training and test
    antialias: bool = True  # when an image becomes smaller; false: as OpenCV resizes
    flip: Fraction = 0.5  # probability of a horizontal flip
    # Augmentations, in training alone, see datasets/augmentation.py; `crop: {}` turns one on as it is by default.
    large_scale_jitter: _AUGMENTATIONS["large_scale_jitter"] | None = None
    crop: _AUGMENTATIONS["crop"] | None = None
    color_jitter: _AUGMENTATIONS["color_jitter"] | None = None
    mosaic: _AUGMENTATIONS["mosaic"] | None = None
    mixup: _AUGMENTATIONS["mixup"] | None = None
    pad_multiple: Annotated[int, Field(gt=0, le=1024)] = 32
    pad_together: Images | None = None  # images of a step that are padded alike, images_per_pass or more; none: all
    keep_empty: bool = True  # train on images without objects too
    aspect_grouping: bool = True  # tall and wide images in different batches
    sampler: Sampler = Sampler()
    rare: NotNegative = 10  # files without `frequency`: r is in at most so many training images,
    common: NotNegative = 100  # c in at most so many, f in more
    workers: Annotated[int, Field(ge=0, le=1024)] = 2  # per process
    on_unreadable: Literal["stop", "replace"] = "stop"  # what an image that cannot be read does, or a worker that dies

    @model_validator(mode="after")
    def _has_one_source(self) -> "Data":
        if self.generate and (self.train != Split() or self.val != Split()):
            raise ValueError("`generate` draws a dataset in place of train and val, which are set; set it to null")
        if self.rare > self.common:
            raise ValueError(f"rare {self.rare} must not exceed common {self.common}")
        return self


class Backbone(Section):
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "thin"] = "resnet50"
    weights: str | None = None  # a torchvision weight name (IMAGENET1K_V1), the path of a state dict, or none
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 0  # 1: the stem; 2: the stem and layer1; …
    # frozen_stats: the affine part is trained
    norm: Literal["frozen_bn", "frozen_stats", "bn", "sync_bn", "gn"] = "frozen_bn"
    stride_in_1x1: bool = False  # where a stage of resnet50 or resnet101 halves the size: in MSRA's models (detectron2)


class Fpn(Section):
    channels: Channels = 256
    levels: Annotated[int, Field(ge=3, le=5)] = 5  # P3 … P5, P6 or P7
    p6_from: Literal["c5", "p5", "c5_lateral"] = "c5"
    p7_relu: bool = True  # between P6 and P7
    init: Literal["kaiming_uniform", "xavier_normal"] = "kaiming_uniform"


class Head(Section):
    num_convs: Annotated[int, Field(ge=0, le=32)] = 4
    width: Channels = 256
    norm: Literal["none", "gn"] = "none"
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01  # score of every class at the start
    box: Literal["deltas", "distances", "distribution"] = "deltas"  # the last two as in FCOS and GFL: one square anchor
    bins: Annotated[int, Field(ge=2, le=1024)] = 17  # distribution: distances 0 … bins - 1, in strides
    quality: Literal["none", "iou", "centerness"] = "none"  # a branch whose output multiplies the class scores
    level_scales: bool = False  # a learned factor of the box outputs of each level
    recompute: bool = False  # compute the towers anew in backward: less memory, more time


class Anchors(Section):
    base_size: Strides = 4.0  # side of the square anchor of scale 1, in strides
    ratios: Annotated[tuple[Strides, ...], Field(min_length=1, max_length=32)] = (0.5, 1.0, 2.0)  # height / width
    scales: Annotated[tuple[Strides, ...], Field(min_length=1, max_length=32)] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    offset: Fraction = 0.5  # center in its cell: 0.5 is the middle, 0 the corner (torchvision, detectron2)
    style: Literal["exact", "torchvision", "legacy"] = "exact"


class Model(Section):
    backbone: Backbone = Backbone()
    fpn: Fpn = Fpn()
    head: Head = Head()
    anchors: Anchors = Anchors()
    legacy_offset: bool = False  # boxes as in models of the time when a box from x1 to x2 was x2 - x1 + 1 wide


class Matching(Section):
    matcher: one_of(_MATCHERS) = _MATCHERS["iou"]()
    ignore_padding: bool = False  # anchors centered in the padding: ignored, or negatives like any other


class Loss(Section):
    classification: one_of(_CLASSIFICATION) = _CLASSIFICATION["focal"]()
    box: one_of(_BOX) = _BOX["smooth_l1"]()
    # of positives: as the quality branch should say; by score
    box_weighting: Literal["none", "quality", "score"] = "none"
    quality_weight: AboveZero = 1.0
    distribution_weight: AboveZero = 0.25


class Optimizer(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: AboveZero | None = 0.01  # for the whole batch_size; never rescaled
    lr_per_image: AboveZero | None = None  # instead of lr, which then is this times train.batch_size
    momentum: Fraction = 0.9  # sgd only
    weight_decay: Annotated[float, Field(ge=0, le=1e9)] = 1e-4
    decay_norm_and_bias: bool = True  # weight decay on norm parameters and biases too
    clip_norm: AboveZero | None = None  # L2 norm of the whole gradient

    @model_validator(mode="after")
    def _has_one_learning_rate(self) -> "Optimizer":
        return self.with_one_of("lr", "lr_per_image")

    def learning_rate(self, batch_size: int) -> float:
        """That of the whole batch."""
        return self.lr_per_image * batch_size if self.lr_per_image else self.lr


class Schedule(Section):
    name: Literal["multi_step", "cosine"] = "multi_step"
    unit: Literal["epochs", "steps"] = "epochs"  # of length, milestones, train.checkpoint_every and eval.every
    length: AboveZero = 12
    milestones: tuple[float, ...] = (8, 11)  # multi_step: the learning rate is multiplied by `factor` here
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    final_factor: Fraction = 0.0  # cosine: of the learning rate, at the end
    warmup_steps: NotNegative | None = 500  # at most a quarter of the run
    # instead: its last step is the first at the full learning rate
    warmup_epochs: Annotated[float, Field(ge=0, le=1e9)] | None = None
    warmup_factor: Fraction = 0.001

    @model_validator(mode="after")
    def _has_one_warm_up(self) -> "Schedule":
        return self.with_one_of("warmup_steps", "warmup_epochs")

    @model_validator(mode="after")
    def _milestones_rise(self) -> "Schedule":
        inside = all(0 < milestone < self.length for milestone in self.milestones)
        if self.name == "multi_step" and not (inside and list(self.milestones) == sorted(set(self.milestones))):
            raise ValueError(f"milestones {list(self.milestones)} must rise between 0 and length {self.length:g}")
        return self


class Train(Section):
    batch_size: Images = 16  # images per optimizer step, over all processes and passes
    images_per_pass: Images | None = None  # what one device holds at once; none: batch_size / processes
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False  # torch.compile the network: faster steps after minutes of compiling
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    log_every: Positive = 20  # steps
    checkpoint_every: AboveZero = 1  # in schedule.unit
    on_nonfinite: Literal["stop", "skip"] = "stop"  # what a loss or gradient that is not finite does
    keep_checkpoints: Positive = 2  # the newest, besides the best


class Test(Section):
    score_threshold: Fraction = 0.05
    candidates_per_level: Positive = 1000  # (anchor, class) pairs
    # and no more pairs of a level than it has anchors, as EFL's improved baseline has it
    limit_to_anchors: bool = False
    nms_threshold: Fraction = 0.5
    detections_per_image: Positive = 100


class Evaluation(Section):
    every: AboveZero | None = 1  # in schedule.unit; none: at the end only
    batch_size: Images = 8
    protocol: Literal["auto", "lvis", "coco"] = "auto"  # auto: lvis if the file has LVIS fields
    best_metric: Literal["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"] = "AP"
    pictures: Annotated[int, Field(ge=0, le=1024)] = 8  # validation images drawn with their detections


class Config(Section):
    output: str | None = None  # the run folder; none: runs/<name of the configuration file>
    init_from: str | None = None  # a new run's weights: a Longshot checkpoint or a torchvision RetinaNet state dict
    seed: NotNegative = 0
    deterministic: bool = False  # torch.use_deterministic_algorithms
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: Data = Data()
    model: Model = Model()
    matching: Matching = Matching()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    train: Train = Train()
    test: Test = Test()
    eval: Evaluation = Evaluation()


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> Config:
    """The checked configuration of a YAML file, or of the packaged one of that name, with `section.key=value` overrides.

    Raises ConfigError, one line per mistake: unknown keys and choices (with a suggestion), wrong types, values out of
    range, missing values, duplicate keys, options of another choice.
    """
    path = find_config(path)
    config = parse_config(apply_overrides(read_yaml(path), overrides), where=str(path))
    return config if config.output else config.model_copy(update={"output": f"runs/{path.stem}"})


def parse_config(values: Mapping[str, Any], where: str = "config") -> Config:
    """The checked configuration of a plain dictionary (what `Config.model_dump` wrote, for instance)."""
    return validated(Config, values, where)
