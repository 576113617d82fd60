"""Box losses: sums over the P positive anchors, each times its weight if there are weights (P,); not normalized.

Weights are constants in backward. Each module says by `on_deltas` what it compares: deltas, or boxes decoded from them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernel import computing_dtype


def l1_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Scalar sum of |prediction - target| over (P, 4). Half types are computed in float32."""
    dtype = computing_dtype(prediction)
    return _weighted_sum(F.l1_loss(prediction.to(dtype), target.to(dtype), reduction="none"), weights)


def smooth_l1_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None, *, beta: float) -> Tensor:
    """Scalar sum over (P, 4): d^2 / (2 beta) where d = |prediction - target| is below beta, else d - beta / 2.

    Half types are computed in float32. beta = 0 is the L1 loss.
    """
    dtype = computing_dtype(prediction)
    return _weighted_sum(F.smooth_l1_loss(prediction.to(dtype), target.to(dtype), beta=beta, reduction="none"), weights)


def giou_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Scalar sum over P of 1 - GIoU, each in [0, 2] (Rezatofighi et al. 2019, arXiv:1902.09630).

    Args:
        prediction, target: (P, 4) xyxy boxes with x1 <= x2 and y1 <= y2. Half types are computed in float32. Boxes
            without area are allowed.
    """
    dtype = computing_dtype(prediction)
    prediction, target = prediction.to(dtype), target.to(dtype)
    intersection = _area(torch.max(prediction[:, :2], target[:, :2]), torch.min(prediction[:, 2:], target[:, 2:]))
    hull = _area(torch.min(prediction[:, :2], target[:, :2]), torch.max(prediction[:, 2:], target[:, 2:]))
    union = _area(prediction[:, :2], prediction[:, 2:]) + _area(target[:, :2], target[:, 2:]) - intersection
    # Two boxes without area have no union: 0 / tiny = 0 keeps value and gradient finite.
    tiny = 1e-7
    giou = intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
    return _weighted_sum(1 - giou, weights)


def _weighted_sum(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Scalar sum of losses (P, …), those of each box times its weight (P,)."""
    if weights is None:
        return losses.sum()
    per_box = losses.flatten(1).sum(dim=1) if losses.ndim > 1 else losses
    return (per_box * weights.detach().to(losses.dtype)).sum()


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    """(P,) areas; 0 where the corners have changed places."""
    width, height = (bottom_right - top_left).clamp(min=0).unbind(1)
    return width * height


def _checked_weight(weight: float) -> float:
    if weight <= 0:
        raise ValueError(f"weight is {weight}; expected a factor above 0")
    return weight


class L1Loss(nn.Module):
    """L1 loss on box deltas, summed over boxes and coordinates, times `weight`."""

    on_deltas = True

    def __init__(self, *, weight: float = 1.0):
        super().__init__()
        self.weight = _checked_weight(weight)

    def forward(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Scalar; prediction and target are (P, 4) deltas, weights (P,)."""
        return self.weight * l1_loss(prediction, target, weights)


class SmoothL1Loss(nn.Module):
    """Smooth L1 loss on box deltas, summed over boxes and coordinates, times `weight`."""

    on_deltas = True

    def __init__(self, *, beta: float = 1 / 9, weight: float = 1.0):
        super().__init__()
        if beta < 0:
            raise ValueError(f"beta is {beta}; expected a distance of at least 0, below which the loss is quadratic")
        self.beta = beta
        self.weight = _checked_weight(weight)

    def forward(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Scalar; prediction and target are (P, 4) deltas, weights (P,)."""
        return self.weight * smooth_l1_loss(prediction, target, weights, beta=self.beta)


class GIoULoss(nn.Module):
    """GIoU loss on decoded boxes, summed over boxes, times `weight`."""

    on_deltas = False

    def __init__(self, *, weight: float = 1.0):
        super().__init__()
        self.weight = _checked_weight(weight)

    def forward(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Scalar; prediction and target are (P, 4) xyxy boxes, weights (P,)."""
        return self.weight * giou_loss(prediction, target, weights)
