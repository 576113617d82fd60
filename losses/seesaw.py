"""Seesaw Loss (Wang et al. 2021, arXiv:2008.10032), carried over from softmax to sigmoid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense import alpha_weights, check_focal_options
from .kernel import computing_dtype, focal_sum
from .stepwise import StepwiseLoss

SMALLEST_SCORE = 0.01  # of the row's own class, in the compensation factor; so in the authors' code


def seesaw_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    counts: Tensor,
    mitigation: float,
    compensation: float,
    alpha: float | None,
    gamma: float,
) -> Tensor:
    """Sum over anchors and classes of focal loss with the negatives of object rows weighted as in Seesaw Loss.

    The factor of class j in a row of class i is S_ij = M_ij C_ij (arXiv:2008.10032): M_ij = (n_j / n_i)^mitigation if
    n_j < n_i, else 1, spares rarer classes; C_ij = (p_j / p_i)^compensation if p_j > p_i, else 1, punishes classes that
    score higher than the right one. The paper adds log S_ij to logit j within the softmax, which bounds the gradient
    however large S_ij is (up to 10,000). The like of it for sigmoid is a shift of the logit by log S_ij, and this is what
    the gradient of cross entropy (alpha None, gamma 0) becomes: sigmoid(z_j + log S_ij) in place of sigmoid(z_j). Focal
    loss gets the same weight, sigmoid(z_j + log S_ij) / sigmoid(z_j), a constant in backward.

    An adaptation, not the paper's loss: without its objectness branch and normalized classifier, background is one more
    row here, and is left as it is, since it has no n_i. In a one-stage detector background gives most of the negative
    gradient; Seesaw balances the rest.

    Args:
        logits: (..., K), any float type. Finite results for any finite logit.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        counts: (K,) n, positives of each class so far, on the device of the logits; below 1 counts as 1.
        mitigation: exponent of M, at least 0 (p in the paper). 0: M is 1.
        compensation: exponent of C, at least 0 (q in the paper). 0: C is 1.
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent, at least 0.

    Returns:
        Scalar, float32 (float64 for float64 logits). Not normalized: divide by the number of positives.
    """
    _check_options(alpha=alpha, gamma=gamma, mitigation=mitigation, compensation=compensation)
    log_counts = counts.detach().double().clamp(min=1).log().to(computing_dtype(logits))

    def of_rows(z: Tensor, row_labels: Tensor) -> Tensor:
        weight, of_object = torch.ones_like(z), row_labels >= 0
        # One row in a thousand is of an object: picking them out is worth the synchronization with the device.
        z, own = z[of_object], row_labels[of_object]
        log_p = F.logsigmoid(z)
        log_own = log_p.gather(1, own[:, None]).clamp(min=math.log(SMALLEST_SCORE))
        log_factor = mitigation * (log_counts - log_counts[own, None]).clamp(max=0)
        log_factor += compensation * (log_p - log_own).clamp(min=0)
        weight[of_object] = (F.logsigmoid(z + log_factor) - log_p).exp()
        return weight

    positive, negative = alpha_weights(alpha)
    return focal_sum(
        logits, labels, gamma=gamma, positive_weight=positive, negative_weight=negative, row_weight=of_rows
    )


def _check_options(*, alpha: float | None, gamma: float, mitigation: float, compensation: float) -> None:
    check_focal_options(alpha=alpha, gamma=gamma)
    if mitigation < 0 or compensation < 0:
        raise ValueError(
            f"mitigation is {mitigation} and compensation {compensation}; expected exponents of at least 0"
        )


class SeesawLoss(StepwiseLoss):
    """Sigmoid Seesaw Loss over the levels of a feature pyramid, which counts the positives of each class as it goes.

    See `seesaw_loss` for the formula and for what it is not. The counts of a step are in force from the next step on, so
    that M is 1 in the first. For every optimizer step: `begin_step()`; any number of passes of forward and backward;
    `after_backward(...)`.

    Args:
        num_classes: K.
        mitigation: exponent of the ratio of counts, at least 0 (p in the paper).
        compensation: exponent of the ratio of scores, at least 0 (q in the paper).
        alpha: weight of positives, see `sigmoid_focal_loss`.
        gamma: focusing exponent, at least 0.
        weight: factor of the whole loss, above 0.

    Attributes:
        counts: (K,) float64, positives of each class over all steps so far and all ranks. Saved in checkpoints.
        pending: (1, K) float64, this rank's share of the step in work.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mitigation: float = 0.8,
        compensation: float = 2.0,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        weight: float = 1.0,
    ):
        super().__init__(num_classes, weight=weight, sums=("counts",))
        _check_options(alpha=alpha, gamma=gamma, mitigation=mitigation, compensation=compensation)
        self.mitigation = mitigation
        self.compensation = compensation
        self.alpha = alpha
        self.gamma = gamma

    def level_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar sum of the Seesaw Loss over one level; counts its positives in training mode with gradients enabled."""
        if self.training and torch.is_grad_enabled():
            rows = labels.flatten()
            self.pending[0].index_add_(0, rows.clamp(min=0), (rows >= 0).double())
        return seesaw_loss(
            logits, labels,
            counts=self.counts, mitigation=self.mitigation, compensation=self.compensation,
            alpha=self.alpha, gamma=self.gamma,
        )  # fmt: skip

    def after_backward(self, *, gradient_scale: float = 1.0, step_taken: bool = True) -> None:
        """See StepwiseLoss.after_backward; gradient_scale has no effect on counts."""
        super().after_backward(step_taken=step_taken)
