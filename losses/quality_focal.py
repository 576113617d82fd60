"""Quality focal loss: the score of a positive learns how well its box fits."""

from torch import Tensor

from .dense import DenseLoss, check_focal_options
from .kernel import focal_sum


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, *, gamma: float) -> Tensor:
    """Sum over anchors and classes of |q - p|^gamma * BCE(z, q) (Li et al. 2020, arXiv:2006.04388, eq. 3).

    q is the quality at the class of a positive, and 0 at every other entry; the gradient flows through |q - p| too.

    Args:
        logits: (..., K), any float type. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        quality: (...,) in [0, 1], the IoU of the decoded box with its object; a constant in backward. What it says of
            rows that are not positive is not used.
        gamma: exponent (beta in the paper), at least 0.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    check_focal_options(alpha=None, gamma=gamma)
    return focal_sum(logits, labels, gamma=gamma, quality=quality)


class QualityFocalLoss(DenseLoss):
    """Quality focal loss over the levels of a feature pyramid, see `quality_focal_loss`.

    Args:
        num_classes: K.
        gamma: exponent (beta in the paper), at least 0.
        weight: factor of the whole loss, above 0.
    """

    uses_quality = True

    def __init__(self, num_classes: int, *, gamma: float = 2.0, weight: float = 1.0):
        super().__init__(num_classes, weight=weight)
        check_focal_options(alpha=None, gamma=gamma)
        self.gamma = gamma

    def level_sum(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """Scalar sum of the quality focal loss over one level."""
        return quality_focal_loss(logits, labels, quality, gamma=self.gamma)
