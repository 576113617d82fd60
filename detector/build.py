"""From a Config to objects: the only module that knows both."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datasets.annotations import Annotations, check_same_classes, frequency_groups, read_annotations
from datasets.emoji import draw_dataset
from datasets.loader import DetectionDataset, evaluation_loader, training_loader
from datasets.samplers import TrainingStream
from losses import BOX_LOSSES, CLASSIFICATION_LOSSES

from . import config as c
from .checkpoint import load_checkpoint
from .distributed import Process, barrier
from .evaluation.predict import Evaluation
from .model.anchors import AnchorGenerator
from .model.backbone import resnet
from .model.fpn import FPN
from .model.head import RetinaHead
from .model.postprocess import Postprocess
from .model.retinanet import RetinaNet
from .training.criterion import Criterion
from .training.engine import Run
from .training.matching import MATCHERS
from .training.optim import build_optimizer, learning_rate
from .yaml_files import ConfigError


class Classes(NamedTuple):
    """The K classes of a model: label k is class k of each list."""

    ids: list[int]  # category ids of the annotation file, ascending
    names: list[str]
    frequencies: list[str]  # "r", "c" or "f", by the training set

    def plain(self) -> dict[str, list]:
        return self._asdict()

    def check_same(self, other: dict[str, list], where: str) -> None:
        """Raise ConfigError if `other` (what `plain` returned) lists other ids or names."""
        if self.ids == other["ids"] and self.names == other["names"]:
            return
        ours, theirs = dict(zip(self.ids, self.names, strict=True)), dict(zip(other["ids"], other["names"], strict=True))
        differing = [i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i)]
        shown = "; ".join(f"id {i}: {ours.get(i, 'none')!r} here, {theirs.get(i, 'none')!r} there" for i in differing[:5])
        raise ConfigError(
            f"the data have {len(self.ids)} classes, {where} has {len(other['ids'])}; {len(differing)} differ: {shown}; "
            "use the annotation files which the model was trained on"
        )


class Data(NamedTuple):
    """Both splits and their classes."""

    train: Annotations
    val: Annotations
    train_set: DetectionDataset
    val_set: DetectionDataset
    stream: TrainingStream
    classes: Classes
    image_counts: list[int]  # training images with an object of the class

    def describe(self) -> str:
        """A few lines on what is in the data, for the log."""
        ...
