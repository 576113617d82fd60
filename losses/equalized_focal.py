"""Equalized Focal Loss and its quality form (Li et al. 2022, arXiv:2201.02593)."""

from torch import Tensor

from .dense import alpha_weights, check_focal_options
from .gradient_collection import GradientGuidedLoss
from .kernel import GradientHook, focal_sum


def equalized_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None,
    gamma: float,
    scale: float,
    gradient_ratio: Tensor,
    use_focusing: bool = True,
    use_weighting: bool = True,
    gradient_hook: GradientHook | None = None,
) -> Tensor:
    """Sum of the Equalized Focal Loss over anchors and classes (arXiv:2201.02593, eq. 6).

    Class j has the exponent gamma_j = gamma + scale * (1 - gradient_ratio_j) and the weight gamma_j / gamma; both are
    constants in backward. With a ratio of 1 throughout this is the focal loss.

    Args:
        logits: (..., K), any float type. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent of a balanced class, above 0.
        scale: how much the exponent of a class without positive gradient is raised.
        gradient_ratio: (K,) in [0, 1], gradient of positives over that of negatives.
        use_focusing: False leaves the exponent of every class at gamma (an ablation of the paper).
        use_weighting: False leaves the weight of every class at 1 (likewise).
        gradient_hook: see `kernel.focal_sum`.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    _check_options(alpha=alpha, gamma=gamma, scale=scale)
    exponent, weight = _factors(gamma, scale, gradient_ratio, use_focusing, use_weighting)
    positive, negative = alpha_weights(alpha)
    return focal_sum(
        logits, labels, gamma=exponent,
        positive_weight=positive * weight, negative_weight=negative * weight, gradient_hook=gradient_hook,
    )  # fmt: skip


def equalized_quality_focal_loss(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor,
    *,
    gamma: float,
    scale: float,
    gradient_ratio: Tensor,
    gradient_hook: GradientHook | None = None,
) -> Tensor:
    """Sum over anchors and classes of the Equalized Quality Focal Loss (official code of arXiv:2201.02593).

    An entry of class j costs w_j |q - p|^gamma_j BCE(z, q), with gamma_j and w_j those of `equalized_focal_loss`, q the
    quality at the class of a positive and 0 elsewhere. The gradient flows through |q - p| too. There is no alpha.

    Args:
        logits: (..., K), any float type. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        quality: (...,) in [0, 1], the IoU of the decoded box with its object; a constant in backward. What it says of
            rows that are not positive is not used.
        gamma, scale, gradient_ratio, gradient_hook: see `equalized_focal_loss`.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    _check_options(alpha=None, gamma=gamma, scale=scale)
    exponent, weight = _factors(gamma, scale, gradient_ratio)
    return focal_sum(
        logits, labels, gamma=exponent,
        positive_weight=weight, negative_weight=weight, quality=quality, gradient_hook=gradient_hook,
    )  # fmt: skip


def _factors(
    gamma: float, scale: float, gradient_ratio: Tensor, use_focusing: bool = True, use_weighting: bool = True
) -> tuple[Tensor, Tensor]:
    """Exponent and weight (K,) of each class (arXiv:2201.02593, eq. 4 and 5)."""
    raised = gamma + scale * (1 - gradient_ratio.detach())
    balanced = raised.new_full(raised.shape, gamma)
    return raised if use_focusing else balanced, (raised if use_weighting else balanced) / gamma


def _check_options(*, alpha: float | None, gamma: float, scale: float) -> None:
    check_focal_options(alpha=alpha, gamma=gamma)
    if gamma == 0 or scale < 0:
        raise ValueError(f"gamma is {gamma} and scale {scale}; expected gamma above 0 and scale at least 0")


class EqualizedFocalLoss(GradientGuidedLoss):
    """Equalized Focal Loss over the levels of a feature pyramid, with the gradients it collects.

    See `equalized_focal_loss` for the formula, `GradientGuidedLoss` for the state and how a step goes.

    Args:
        num_classes: K.
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent of a balanced class, above 0.
        scale: how much the exponent of a class without positive gradient is raised (8 in the paper's ResNet models).
        use_focusing: False leaves the exponent of every class at gamma (an ablation of the paper).
        use_weighting: False leaves the weight of every class at 1 (likewise).
        weight: factor of the whole loss, above 0.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        scale: float = 8.0,
        use_focusing: bool = True,
        use_weighting: bool = True,
        weight: float = 1.0,
    ):
        super().__init__(num_classes, weight=weight)
        _check_options(alpha=alpha, gamma=gamma, scale=scale)
        self.alpha = alpha
        self.gamma = gamma
        self.scale = scale
        self.use_focusing = use_focusing
        self.use_weighting = use_weighting

    def level_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar sum of the Equalized Focal Loss over one level, with a gradient hook on it."""
        return equalized_focal_loss(
            logits, labels,
            alpha=self.alpha, gamma=self.gamma, scale=self.scale, gradient_ratio=self.gradient_ratio,
            use_focusing=self.use_focusing, use_weighting=self.use_weighting, gradient_hook=self.gradient_hook,
        )  # fmt: skip


class EqualizedQualityFocalLoss(GradientGuidedLoss):
    """Equalized Quality Focal Loss over the levels of a feature pyramid, with the gradients it collects.

    See `equalized_quality_focal_loss` for the formula, `GradientGuidedLoss` for the state and how a step goes.

    Args:
        num_classes: K.
        gamma: focusing exponent of a balanced class, above 0.
        scale: how much the exponent of a class without positive gradient is raised (4 in the official models).
        weight: factor of the whole loss, above 0.
    """

    uses_quality = True
    neutral_form = "quality focal loss"

    def __init__(self, num_classes: int, *, gamma: float = 2.0, scale: float = 4.0, weight: float = 1.0):
        super().__init__(num_classes, weight=weight)
        _check_options(alpha=None, gamma=gamma, scale=scale)
        self.gamma = gamma
        self.scale = scale

    def level_sum(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """Scalar sum of the Equalized Quality Focal Loss over one level, with a gradient hook on it."""
        return equalized_quality_focal_loss(
            logits, labels, quality,
            gamma=self.gamma, scale=self.scale, gradient_ratio=self.gradient_ratio, gradient_hook=self.gradient_hook,
        )  # fmt: skip
