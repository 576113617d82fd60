"""Losses of dense detectors, and of classification and segmentation. Needs torch alone, and plain keyword arguments."""

from .binary_focal import BinaryFocalLoss, binary_focal_loss
from .box import GIoULoss, L1Loss, SmoothL1Loss, giou_loss, l1_loss, smooth_l1_loss
from .class_weighted import ClassWeightedFocalLoss, class_weighted_focal_loss, class_weights
from .dense import BACKGROUND, IGNORE, DenseLoss
from .distribution_focal import distribution_focal_loss, expected_value
from .equalization import EqualizationLoss, EqualizationLossV2, equalization_loss, equalization_loss_v2
from .equalized_focal import (
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    equalized_focal_loss,
    equalized_quality_focal_loss,
)
from .focal import CrossEntropyLoss, FocalLoss, sigmoid_cross_entropy_loss, sigmoid_focal_loss
from .focusing import adaptive_gamma, equal_gradient_gamma, flsd_gamma
from .gradient_collection import GradientGuidedLoss
from .quality_focal import QualityFocalLoss, quality_focal_loss
from .seesaw import SeesawLoss, seesaw_loss
from .softmax_focal import InverseFocalLoss, SoftmaxFocalLoss, inverse_focal_loss, softmax_focal_loss

CLASSIFICATION_LOSSES = {
    "cross_entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "equalized_focal": EqualizedFocalLoss,
    "quality_focal": QualityFocalLoss,
    "equalized_quality_focal": EqualizedQualityFocalLoss,
    "equalization": EqualizationLoss,
    "equalization_v2": EqualizationLossV2,
    "class_weighted_focal": ClassWeightedFocalLoss,
    "seesaw": SeesawLoss,
}
# Built from `image_counts, num_images` of the training set; all others from `num_classes`.
LOSSES_OF_COUNTS = frozenset({"equalization", "class_weighted_focal"})
BOX_LOSSES = {"l1": L1Loss, "smooth_l1": SmoothL1Loss, "giou": GIoULoss}

__all__ = [
    "BACKGROUND",
    "BOX_LOSSES",
    "CLASSIFICATION_LOSSES",
    "IGNORE",
    "LOSSES_OF_COUNTS",
    "BinaryFocalLoss",
    "ClassWeightedFocalLoss",
    "CrossEntropyLoss",
    "DenseLoss",
    "EqualizationLoss",
    "EqualizationLossV2",
    "EqualizedFocalLoss",
    "EqualizedQualityFocalLoss",
    "FocalLoss",
    "GIoULoss",
    "GradientGuidedLoss",
    "InverseFocalLoss",
    "L1Loss",
    "QualityFocalLoss",
    "SeesawLoss",
    "SmoothL1Loss",
    "SoftmaxFocalLoss",
    "adaptive_gamma",
    "binary_focal_loss",
    "class_weighted_focal_loss",
    "class_weights",
    "distribution_focal_loss",
    "equal_gradient_gamma",
    "equalization_loss",
    "equalization_loss_v2",
    "equalized_focal_loss",
    "equalized_quality_focal_loss",
    "expected_value",
    "flsd_gamma",
    "giou_loss",
    "inverse_focal_loss",
    "l1_loss",
    "quality_focal_loss",
    "seesaw_loss",
    "sigmoid_cross_entropy_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "softmax_focal_loss",
]
