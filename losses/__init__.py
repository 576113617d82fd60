"""Losses of dense detectors. Needs torch alone; every loss is built from plain keyword arguments."""

from .box import GIoULoss, L1Loss, SmoothL1Loss, giou_loss, l1_loss, smooth_l1_loss
from .dense import DenseLoss
from .equalized_focal import (
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    equalized_focal_loss,
    equalized_quality_focal_loss,
)
from .focal import CrossEntropyLoss, FocalLoss, sigmoid_focal_loss
from .gradient_collection import GradientGuidedLoss
from .labels import BACKGROUND, IGNORE
from .quality_focal import QualityFocalLoss, quality_focal_loss

CLASSIFICATION_LOSSES = {
    "cross_entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "equalized_focal": EqualizedFocalLoss,
    "quality_focal": QualityFocalLoss,
    "equalized_quality_focal": EqualizedQualityFocalLoss,
}
BOX_LOSSES = {"l1": L1Loss, "smooth_l1": SmoothL1Loss, "giou": GIoULoss}

__all__ = [
    "BACKGROUND",
    "BOX_LOSSES",
    "CLASSIFICATION_LOSSES",
    "IGNORE",
    "CrossEntropyLoss",
    "DenseLoss",
    "EqualizedFocalLoss",
    "EqualizedQualityFocalLoss",
    "FocalLoss",
    "GIoULoss",
    "GradientGuidedLoss",
    "L1Loss",
    "QualityFocalLoss",
    "SmoothL1Loss",
    "equalized_focal_loss",
    "equalized_quality_focal_loss",
    "giou_loss",
    "l1_loss",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]
