"""Equalized Focal Loss (Li et al. 2022, arXiv:2201.02593)."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .focal import check_classes, check_options
from .kernel import FocalSum, computing_dtype, pick, put, row_chunks


def equalized_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float, gamma: float, scale: float, gradient_ratio: Tensor
) -> Tensor:
    """Sum of the Equalized Focal Loss over anchors and classes (arXiv:2201.02593, eq. 6).

    Class j has the exponent gamma_j = gamma + scale * (1 - gradient_ratio_j) and the weight gamma_j / gamma; both are
    constants in backward. With a ratio of 1 throughout this is the focal loss.

    Args:
        logits: (..., K), any float type; half types are computed in float32. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        alpha: weight of the positive class, in (0, 1); negatives get 1 - alpha.
        gamma: focusing exponent of a balanced class, above 0.
        scale: how much the exponent of a class without positive gradient is raised.
        gradient_ratio: (K,) in [0, 1], gradient of positives over that of negatives.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    exponent = (gamma + scale * (1 - gradient_ratio.detach())).to(computing_dtype(logits))
    return FocalSum.apply(logits.flatten(0, -2), labels.flatten(), alpha, exponent, exponent / gamma)


class EqualizedFocalLoss(nn.Module):
    """Equalized Focal Loss over the levels of a feature pyramid, with the gradients it collects.

    For every optimizer step: `begin_step()`; any number of passes of forward and backward; `after_backward(...)`.
    The gradients of the logits are collected by a hook on each level that forward is given, with that level's own
    labels: it needs no module path, no number or order of levels. Use each logits tensor for one call of forward.

    Args:
        num_classes: K.
        alpha: weight of the positive class, in (0, 1); negatives get 1 - alpha.
        gamma: focusing exponent of a balanced class, above 0.
        scale: how much the exponent of a class without positive gradient is raised (8 in the paper's ResNet models).
        weight: factor of the whole loss, above 0.

    Attributes:
        positive_gradient, negative_gradient: (K,) float64, sums of |d loss / d logit| over all steps so far, of the
            global loss: independent of the loss scale and of the number of ranks and passes. Saved in checkpoints.
    """

    def __init__(
        self, num_classes: int, *, alpha: float = 0.25, gamma: float = 2.0, scale: float = 8.0, weight: float = 1.0
    ):
        super().__init__()
        check_options(alpha=alpha, gamma=gamma, weight=weight)
        if gamma == 0 or scale < 0:
            raise ValueError(f"gamma is {gamma} and scale {scale}; expected gamma above 0 and scale at least 0")
        self.num_classes = num_classes
        self.alpha = alpha
        self.gamma = gamma
        self.scale = scale
        self.weight = weight
        self.register_buffer("positive_gradient", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("negative_gradient", torch.zeros(num_classes, dtype=torch.float64))
        # Row 0: of positives, row 1: of negatives; this rank's share of the step in work.
        self.register_buffer("pending", torch.zeros(2, num_classes, dtype=torch.float64), persistent=False)

    @property
    def gradient_ratio(self) -> Tensor:
        """(K,) float64 in [0, 1]: positive over negative gradient; 1 for every class until the first update."""
        ratio = (self.positive_gradient / (self.negative_gradient + 1e-10)).clamp(0, 1)
        updated = (self.positive_gradient + self.negative_gradient).sum() > 0
        return torch.where(updated, ratio, 1.0)

    def forward(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Scalar sum times `weight`. Not normalized.

        Args:
            logits: (N, R_l, K) per level.
            labels: (N, R_l) int64 per level: class, BACKGROUND or IGNORE.
        """
        check_classes(logits, self.num_classes)
        options = {"alpha": self.alpha, "gamma": self.gamma, "scale": self.scale, "gradient_ratio": self.gradient_ratio}
        total = 0.0
        for level_logits, level_labels in zip(logits, labels, strict=True):
            if level_logits.requires_grad:
                level_logits.register_hook(partial(self._collect, level_labels))
            total = total + equalized_focal_loss(level_logits, level_labels, **options)
        return self.weight * total

    def begin_step(self) -> None:
        """Forgets what an aborted step has left behind."""
        self.pending.zero_()

    @torch.no_grad()
    def after_backward(self, *, gradient_scale: float = 1.0, step_taken: bool = True) -> None:
        """Updates the running sums: once per optimizer step, after its last backward, on every rank.

        A step that is not finite or not taken, on whichever rank, is dropped on all of them.

        Args:
            gradient_scale: factor of the gradients over those of the global loss: the loss scale of mixed precision,
                times the number of ranks where their gradients are averaged.
            step_taken: False if the optimizer step was skipped.
        """
        # NaN spreads through the sum over ranks: the one all-reduce also tells everyone to drop the step.
        gradient = self.pending / gradient_scale if step_taken else torch.full_like(self.pending, torch.nan)
        self.pending.zero_()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(gradient)
        gradient = torch.where(gradient.isfinite().all(), gradient, 0.0)
        self.positive_gradient += gradient[0]
        self.negative_gradient += gradient[1]

    @torch.no_grad()
    def _collect(self, labels: Tensor, gradient: Tensor) -> None:
        """Adds |gradient|, (N, R_l, K), to the pending sums. That of IGNORE rows is zero already."""
        for g, y in row_chunks(gradient.flatten(0, -2), labels.flatten()):
            size = g.to(computing_dtype(g)).abs()
            k = y.clamp(min=0)
            at_label = pick(size, k)
            self.pending[0].index_add_(0, k, torch.where(y >= 0, at_label, 0.0).double())
            # Left out before the sum: "all - positives" would cancel, a positive being 1e8 times a negative at first.
            put(size, k, torch.where(y >= 0, 0.0, at_label))
            self.pending[1] += size.sum(0)
