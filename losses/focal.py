"""Sigmoid focal loss, and the cross entropy that it is at gamma 0."""

from torch import Tensor

from .dense import DenseLoss, alpha_weights, check_focal_options
from .kernel import focal_sum


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, *, alpha: float | None, gamma: float) -> Tensor:
    """Sum of the focal loss over anchors and classes (Lin et al. 2017, arXiv:1708.02002, eq. 5).

    Args:
        logits: (..., K), any float type; half types are computed in float32. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        alpha: weight of the positive class, in (0, 1); negatives get 1 - alpha. None: weight 1 for both.
        gamma: focusing exponent, at least 0. At 0 this is alpha-balanced cross entropy (eq. 3).

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    check_focal_options(alpha=alpha, gamma=gamma)
    positive, negative = alpha_weights(alpha)
    return focal_sum(logits, labels, gamma=gamma, positive_weight=positive, negative_weight=negative)


def sigmoid_cross_entropy_loss(logits: Tensor, labels: Tensor, *, alpha: float | None) -> Tensor:
    """Sum of the alpha-balanced cross entropy over anchors and classes (Lin et al. 2017, arXiv:1708.02002, eq. 3).

    Args:
        logits, labels, alpha: see `sigmoid_focal_loss`.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    return sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=0.0)


class FocalLoss(DenseLoss):
    """Sigmoid focal loss over the levels of a feature pyramid, see `sigmoid_focal_loss`.

    Args:
        num_classes: K.
        alpha: weight of the positive class, in (0, 1); negatives get 1 - alpha. None: weight 1 for both.
        gamma: focusing exponent, at least 0.
        weight: factor of the whole loss, above 0.
    """

    def __init__(self, num_classes: int, *, alpha: float | None = 0.25, gamma: float = 2.0, weight: float = 1.0):
        super().__init__(num_classes, weight=weight)
        check_focal_options(alpha=alpha, gamma=gamma)
        self.alpha = alpha
        self.gamma = gamma

    def level_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar sum of the focal loss over one level."""
        return sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma)


class CrossEntropyLoss(DenseLoss):
    """Sigmoid cross entropy over the levels of a feature pyramid, see `sigmoid_cross_entropy_loss`.

    Args:
        num_classes: K.
        alpha: weight of the positive class, in (0, 1); negatives get 1 - alpha. None: weight 1 for both.
        weight: factor of the whole loss, above 0.
    """

    def __init__(self, num_classes: int, *, alpha: float | None = 0.75, weight: float = 1.0):
        super().__init__(num_classes, weight=weight)
        check_focal_options(alpha=alpha, gamma=0.0)
        self.alpha = alpha

    def level_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar sum of the cross entropy over one level."""
        return sigmoid_cross_entropy_loss(logits, labels, alpha=self.alpha)
