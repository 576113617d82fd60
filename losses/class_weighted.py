"""Focal loss with a fixed weight for each class, from how often it occurs in the training set."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .dense import DenseLoss, alpha_weights, check_focal_options
from .kernel import computing_dtype, focal_sum


def checked_counts(image_counts: Sequence[int], num_images: int) -> Tensor:
    """(K,) float64; raises ValueError unless every class is in 0 to `num_images` images, and there are some."""
    for k, count in enumerate(image_counts):
        if not 0 <= count <= num_images:
            raise ValueError(
                f"image_counts: class {k} is in {count} images, but num_images is {num_images}; expected for each class "
                "the number of training images that hold it"
            )
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; expected the number of training images, at least 1")
    return torch.tensor(image_counts, dtype=torch.float64)


def class_weights(
    counts: Tensor, *, weighting: Literal["inverse_frequency", "effective_number"], beta: float = 0.999
) -> Tensor:
    """A weight for each class, larger for rarer ones, whose mean over the training samples is 1.

    With n samples of a class, "inverse_frequency" is 1 / n and "effective_number" is (1 - beta) / (1 - beta^n) (Cui et
    al. 2019, arXiv:1901.05555), both times a constant. The paper chooses it so that the weights sum to K: it knows no
    background. With a long tail objects would then weigh far less against background than without weights. Here the mean
    over samples (each class counted n times) is 1, which keeps that balance.

    Args:
        counts: (K,) number of samples of each class; 0 counts as 1.
        beta: effective_number alone, in [0, 1): 0 gives equal weights, and towards 1 they approach inverse_frequency.

    Returns:
        (K,) float64.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; expected at least 0 and below 1")
    n = counts.double().clamp(min=1)
    weights = 1 / n if weighting == "inverse_frequency" else (1 - beta) / (1 - beta**n)
    return weights * n.sum() / (n * weights).sum()


def class_weighted_focal_loss(
    logits: Tensor, labels: Tensor, *, class_weight: Tensor, alpha: float | None, gamma: float
) -> Tensor:
    """Sum over anchors and classes of focal loss, all entries of a row weighted by the row's class.

    This is the class-balanced focal loss of Cui et al. 2019, arXiv:1901.05555, section 4.3. Background is no class: its
    rows have weight 1.

    Args:
        logits: (..., K), any float type. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        class_weight: (K,) at least 0, on the device of the logits, see `class_weights`; a constant in backward.
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent, at least 0.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    check_focal_options(alpha=alpha, gamma=gamma)
    positive, negative = alpha_weights(alpha)
    # A factor of another type would slow down the product with all entries.
    of_class = class_weight.detach().to(computing_dtype(logits))

    def of_rows(_: Tensor, row_labels: Tensor) -> Tensor:
        return torch.where(row_labels >= 0, of_class[row_labels.clamp(min=0)], 1.0)[:, None]

    return focal_sum(
        logits, labels,
        gamma=gamma, positive_weight=positive * of_class, negative_weight=negative, row_weight=of_rows,
    )  # fmt: skip


class ClassWeightedFocalLoss(DenseLoss):
    """Focal loss weighted by class over the levels of a feature pyramid, see `class_weighted_focal_loss`.

    Args:
        image_counts: (K,) number of training images that hold each class; 0 counts as 1.
        num_images: number of training images; nothing but a bound of the counts, as the weights are relative.
        weighting: what the weight of a class follows from, see `class_weights`.
        beta: effective_number alone, in [0, 1): 0 gives equal weights, and towards 1 they approach inverse_frequency.
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent, at least 0.
        weight: factor of the whole loss, above 0.

    Attributes:
        class_weight: (K,) float64. Not saved: it follows from the training set.
    """

    def __init__(
        self,
        image_counts: Sequence[int],
        num_images: int,
        *,
        weighting: Literal["inverse_frequency", "effective_number"] = "effective_number",
        beta: float = 0.999,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        weight: float = 1.0,
    ):
        super().__init__(len(image_counts), weight=weight)
        check_focal_options(alpha=alpha, gamma=gamma)
        self.alpha = alpha
        self.gamma = gamma
        weights = class_weights(checked_counts(image_counts, num_images), weighting=weighting, beta=beta)
        self.register_buffer("class_weight", weights, persistent=False)

    def level_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar sum of the class-weighted focal loss over one level."""
        return class_weighted_focal_loss(
            logits, labels, class_weight=self.class_weight, alpha=self.alpha, gamma=self.gamma
        )
