"""Equalization Loss (Tan et al. 2020, arXiv:2003.05176) and its version 2 (Tan et al. 2021, arXiv:2012.08548)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .class_weighted import checked_counts
from .dense import DenseLoss, alpha_weights, check_focal_options
from .gradient_collection import GradientGuidedLoss
from .kernel import GradientHook, focal_sum


def equalization_loss(logits: Tensor, labels: Tensor, *, rare: Tensor, alpha: float | None, gamma: float) -> Tensor:
    """Sum over anchors and classes of focal loss without the negatives that rare classes get from other classes.

    The paper's loss of a row is -sum_j w_j log p_t,j with w_j = 1 - E T_j (1 - y_j) (arXiv:2003.05176, section 3): E is 1
    for rows of an object, T_j for rare classes, y_j for the row's own class. Background remains a negative for every
    class. With alpha None and gamma 0 this is that loss; else cross entropy, -log p_t,j, is replaced by focal loss.

    Args:
        logits: (..., K), any float type. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        rare: (K,) bool, on the device of the logits.
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent, at least 0.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    check_focal_options(alpha=alpha, gamma=gamma)
    positive, negative = alpha_weights(alpha)
    return focal_sum(
        logits, labels, gamma=gamma, positive_weight=positive, negative_weight=negative,
        row_weight=lambda _, row_labels: ~((row_labels >= 0)[:, None] & rare),
    )  # fmt: skip


def equalization_loss_v2(
    logits: Tensor,
    labels: Tensor,
    *,
    gradient_ratio: Tensor,
    alpha: float | None,
    gamma: float,
    slope: float,
    threshold: float,
    boost: float,
    gradient_hook: GradientHook | None = None,
) -> Tensor:
    """Sum over anchors and classes of focal loss times the weights of Equalization Loss v2 (arXiv:2012.08548, section 3).

    With h(g) = 1 / (1 + exp(-slope * (g - threshold))), negatives of class j are weighted h(g_j) and positives
    1 + boost * (1 - h(g_j)), constants in backward. With alpha None and gamma 0 this is the paper's loss; its authors
    recommend the product with focal loss for one-stage detectors.

    Args:
        logits: (..., K), any float type. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        gradient_ratio: (K,) at least 0, g: gradient of positives over that of negatives.
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent, at least 0.
        slope: of h at the threshold, times 4 (gamma in the paper).
        threshold: the ratio at which h is 1/2 (mu in the paper).
        boost: what the weight of positives can gain (alpha in the paper).
        gradient_hook: see `kernel.focal_sum`.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    check_focal_options(alpha=alpha, gamma=gamma)
    _check_weights(slope=slope, boost=boost)
    balanced = _balanced(gradient_ratio.detach(), slope=slope, threshold=threshold)
    positive, negative = alpha_weights(alpha)
    return focal_sum(
        logits, labels, gamma=gamma, positive_weight=positive * (1 + boost * (1 - balanced)),
        negative_weight=negative * balanced, gradient_hook=gradient_hook,
    )  # fmt: skip


def _balanced(gradient_ratio: Tensor, *, slope: float, threshold: float) -> Tensor:
    """h(g) in [0, 1] of each class: towards 1, its positives and negatives keep the weights that they have."""
    return torch.sigmoid(slope * (gradient_ratio - threshold))


def _check_weights(*, slope: float, boost: float) -> None:
    if slope <= 0 or boost < 0:
        raise ValueError(f"slope is {slope} and boost {boost}; expected slope above 0 and boost at least 0")


class EqualizationLoss(DenseLoss):
    """Equalization Loss on focal loss over the levels of a feature pyramid, see `equalization_loss`.

    Args:
        image_counts: (K,) number of training images that hold each class.
        num_images: number of training images.
        threshold: classes in a smaller fraction of the images are rare (lambda in the paper; the authors' code has 0.0011
            for LVIS v1 and 0.00177 for v0.5).
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent, at least 0.
        weight: factor of the whole loss, above 0.

    Attributes:
        rare: (K,) bool. Not saved: it follows from the training set.
    """

    def __init__(
        self,
        image_counts: Sequence[int],
        num_images: int,
        *,
        threshold: float = 1.1e-3,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        weight: float = 1.0,
    ):
        super().__init__(len(image_counts), weight=weight)
        check_focal_options(alpha=alpha, gamma=gamma)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; expected a fraction of the images, between 0 and 1")
        self.alpha = alpha
        self.gamma = gamma
        frequency = checked_counts(image_counts, num_images) / num_images
        self.register_buffer("rare", frequency < threshold, persistent=False)

    def level_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar sum of the Equalization Loss over one level."""
        return equalization_loss(logits, labels, rare=self.rare, alpha=self.alpha, gamma=self.gamma)


class EqualizationLossV2(GradientGuidedLoss):
    """Equalization Loss v2 on focal loss over the levels of a feature pyramid, with the gradients it collects.

    See `equalization_loss_v2` for the formula, `GradientGuidedLoss` for the state and how a step goes. The collected
    gradients contain the weights, as in the paper. The paper's extra score for "any object" is for two-stage detectors
    and not part of this loss.

    Args:
        num_classes: K.
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent, at least 0.
        slope: how steeply weights change with the ratio of gradients, above 0 (gamma in the paper).
        threshold: the ratio at which the weight of negatives is 1/2 (mu in the paper).
        boost: what the weight of positives can gain, at least 0 (alpha in the paper).
        weight: factor of the whole loss, above 0.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        slope: float = 12.0,
        threshold: float = 0.8,
        boost: float = 4.0,
        weight: float = 1.0,
    ):
        super().__init__(num_classes, weight=weight)
        check_focal_options(alpha=alpha, gamma=gamma)
        _check_weights(slope=slope, boost=boost)
        self.alpha = alpha
        self.gamma = gamma
        self.slope = slope
        self.threshold = threshold
        self.boost = boost

    @property
    def gradient_ratio(self) -> Tensor:
        """(K,) float64, at least 0: positive over negative gradient; 100 for every class until the first update.

        At 100 both weights are 1 in float64 with the paper's slope and threshold: the first step is focal loss.
        """
        ratio = self.positive_gradient / (self.negative_gradient + 1e-10)
        return torch.where(self._updated(), ratio, 100.0)

    def is_neutral(self) -> Tensor:
        """Bool scalar: whether h(g) is above 0.99 in every class, which leaves all weights about 1."""
        return (_balanced(self.gradient_ratio, slope=self.slope, threshold=self.threshold) > 0.99).all()

    def level_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar sum of the Equalization Loss v2 over one level, with a gradient hook on it."""
        return equalization_loss_v2(
            logits, labels,
            gradient_ratio=self.gradient_ratio, alpha=self.alpha, gamma=self.gamma,
            slope=self.slope, threshold=self.threshold, boost=self.boost, gradient_hook=self.gradient_hook,
        )  # fmt: skip
