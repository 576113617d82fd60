"""Losses of dense detectors. Needs torch alone; every loss is built from plain keyword arguments."""

from .box import GIoULoss, L1Loss, SmoothL1Loss, giou_loss, l1_loss, smooth_l1_loss
from .equalized_focal import EqualizedFocalLoss, equalized_focal_loss
from .focal import FocalLoss, sigmoid_focal_loss
from .labels import BACKGROUND, IGNORE

CLASSIFICATION_LOSSES = {"focal": FocalLoss, "equalized_focal": EqualizedFocalLoss}
BOX_LOSSES = {"l1": L1Loss, "smooth_l1": SmoothL1Loss, "giou": GIoULoss}

__all__ = [
    "BACKGROUND",
    "BOX_LOSSES",
    "CLASSIFICATION_LOSSES",
    "IGNORE",
    "EqualizedFocalLoss",
    "FocalLoss",
    "GIoULoss",
    "L1Loss",
    "SmoothL1Loss",
    "equalized_focal_loss",
    "giou_loss",
    "l1_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]
