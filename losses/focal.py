"""Focal loss."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .kernel import FocalSum, computing_dtype


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sum of the focal loss over anchors and classes (Lin et al. 2017, arXiv:1708.02002, eq. 5).

    Args:
        logits: (..., K), any float type; half types are computed in float32. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        alpha: weight of the positive class, in (0, 1); negatives get 1 - alpha.
        gamma: focusing exponent, at least 0.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    exponent = torch.full(logits.shape[-1:], gamma, dtype=computing_dtype(logits), device=logits.device)
    return FocalSum.apply(logits.flatten(0, -2), labels.flatten(), alpha, exponent, torch.ones_like(exponent))


class FocalLoss(nn.Module):
    """Sigmoid focal loss over the levels of a feature pyramid.

    Args:
        num_classes: K.
        alpha: weight of the positive class, in (0, 1); negatives get 1 - alpha.
        gamma: focusing exponent, at least 0.
        weight: factor of the whole loss, above 0.
    """

    def __init__(self, num_classes: int, *, alpha: float = 0.25, gamma: float = 2.0, weight: float = 1.0):
        super().__init__()
        check_options(alpha=alpha, gamma=gamma, weight=weight)
        self.num_classes = num_classes
        self.alpha = alpha
        self.gamma = gamma
        self.weight = weight

    def forward(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Scalar sum times `weight`. Not normalized.

        Args:
            logits: (N, R_l, K) per level.
            labels: (N, R_l) int64 per level: class, BACKGROUND or IGNORE.
        """
        check_classes(logits, self.num_classes)
        levels = zip(logits, labels, strict=True)
        return self.weight * sum(sigmoid_focal_loss(z, y, alpha=self.alpha, gamma=self.gamma) for z, y in levels)

    def begin_step(self) -> None:
        """Nothing: focal loss has no state. Call it as for EqualizedFocalLoss."""

    def after_backward(self, *, gradient_scale: float = 1.0, step_taken: bool = True) -> None:
        """Nothing: focal loss has no state. Call it as for EqualizedFocalLoss."""


def check_options(*, alpha: float, gamma: float, weight: float) -> None:
    """Raises ValueError for options that no focal loss can have."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; expected a value between 0 and 1, the weight of positives")
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}; expected a focusing exponent of at least 0")
    if weight <= 0:
        raise ValueError(f"weight is {weight}; expected a factor above 0")


def check_classes(logits: Sequence[Tensor], num_classes: int) -> None:
    """Raises ValueError if a level has other than `num_classes` logits per anchor."""
    for level, level_logits in enumerate(logits):
        if level_logits.shape[-1] != num_classes:
            raise ValueError(
                f"logits of level {level} have shape {tuple(level_logits.shape)}, but this loss was built for "
                f"{num_classes} classes; expected (N, R_l, {num_classes})"
            )
