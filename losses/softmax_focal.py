"""Softmax focal loss and its inverse, for classification and dense segmentation. Called like `F.cross_entropy`.

Let m = z_t - log(sum of exp(z_j), j != t), the log-odds of the true class t. Then p = sigmoid(m), and -log p,
log(1 - p) and their derivatives are accurate for every m: no 1 - p is ever computed by subtraction. With two classes
this is the sigmoid loss, see `binary_focal`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from .dense import check_focal_options
from .kernel import computing_dtype

# One exponent, or a function that gives every sample its own: p of the true class -> exponents of the same shape.
Gamma = float | Callable[[Tensor], Tensor]


def softmax_focal_loss(
    logits: Tensor, target: Tensor, *, gamma: Gamma, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """-(1 - p)^gamma log p, p the softmax probability of the true class (Lin et al. 2017, arXiv:1708.02002, eq. 4).

    Used against overconfidence by Mukhoti et al. 2020, arXiv:2002.09437. Differentiable once, in the logits.

    Args:
        logits: (N, K) or (N, K, ...), any float type; half types are computed in float32.
        target: (N) or (N, ...) int64 in [0, K), or ignore_index (contributes nothing, whatever the logits are there).
        gamma: focusing exponent, at least 0; at 0 this is `F.cross_entropy`. Or a function of p, such as `flsd_gamma` or
            `adaptive_gamma`; what it returns is a constant in backward.
        ignore_index: value of target that marks what to leave out.
        reduction: "mean" over what is not ignored, 0 where that is nothing (`F.cross_entropy` returns nan); "sum"; "none".

    Returns:
        Scalar, or the shape of target for "none"; float32 (float64 for float64 logits).
    """
    check_options(gamma=gamma, reduction=reduction)
    log_odds, counted = target_log_odds(logits, target, ignore_index)
    return reduce_losses(focal_of_log_odds(log_odds, gamma), counted, reduction)


def inverse_focal_loss(
    logits: Tensor, target: Tensor, *, gamma: float, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """-(1 + p)^gamma log p: focal loss turned round, easy samples weigh more (Wang et al. 2021, NeurIPS).

    From "Rethinking calibration of deep neural networks: do not be afraid of overconfidence": overconfident models
    leave temperature scaling more to gain. Beyond gamma = 3.59 the loss rises with p in places. Differentiable once.

    Args:
        logits, target, ignore_index, reduction: see `softmax_focal_loss`.
        gamma: exponent, at least 0; at 0 this is `F.cross_entropy`.

    Returns:
        Scalar, or the shape of target for "none"; float32 (float64 for float64 logits).
    """
    check_options(gamma=gamma, reduction=reduction)
    log_odds, counted = target_log_odds(logits, target, ignore_index)
    losses = -(1 + log_odds.sigmoid()).pow(gamma) * F.logsigmoid(log_odds)
    return reduce_losses(losses, counted, reduction)


def check_options(*, alpha: float | None = None, gamma: Gamma, reduction: str) -> None:
    """Raises ValueError for options that no focal loss of samples can have."""
    check_focal_options(alpha=alpha, gamma=0.0 if callable(gamma) else gamma)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")


def focal_of_log_odds(log_odds: Tensor, gamma: Gamma) -> Tensor:
    """-(1 - p)^gamma log p of every entry, where p = sigmoid(log_odds)."""
    # An infinite exponent times log(1 - p) = 0 would be nan; one of 1e30 leaves room for the factors of backward.
    exponent = gamma(log_odds.detach().sigmoid()).detach().clamp(max=1e30) if callable(gamma) else gamma
    return -(exponent * F.logsigmoid(-log_odds)).exp() * F.logsigmoid(log_odds)


def reduce_losses(losses: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """Mean over the counted entries (0 if there are none), their sum, or ("none") all entries, 0 where not counted."""
    losses = torch.where(counted, losses, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / counted.sum().clamp(min=1)


def target_log_odds(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Log-odds of the true class, in the shape of target, and where that is not ignored, bool."""
    _check_shapes(logits, target)
    counted = target != ignore_index
    # On another device a class out of range fails as an index.
    num_classes = logits.shape[1]
    allowed = ~counted | ((target >= 0) & (target < num_classes))
    check_target(target, allowed, f"a class in [0, {num_classes}) or ignore_index {ignore_index}")
    return _LogOdds.apply(logits.to(computing_dtype(logits)), target.where(counted, 0), counted), counted


class _LogOdds(torch.autograd.Function):
    """z_t - log(sum of exp(z_j), j != t) along dimension 1; a gradient only where counted.

    Left to autograd, forward and backward would take twice the memory: five copies of the logits at the peak.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        index = target.unsqueeze(1)
        # The lowest number instead of -inf: if there is no other class, the log-odds are huge, but finite.
        others = logits.scatter(1, index, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
        ctx.save_for_backward(logits, index, counted.unsqueeze(1), others)
        return (logits.gather(1, index) - others).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, index, counted, others = ctx.saved_tensors
        upstream = upstream.unsqueeze(1)
        gradient = (logits - others).exp_().mul_(-upstream)
        return gradient.scatter_(1, index, upstream).masked_fill_(~counted, 0), None, None


def _check_shapes(logits: Tensor, target: Tensor) -> None:
    expected = logits.shape[:1] + logits.shape[2:]
    if logits.dim() < 2 or target.shape != expected:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and target {tuple(target.shape)}; "
            "expected (N, K, ...) and (N, ...), classes in dimension 1 of the logits alone"
        )


def check_target(target: Tensor, allowed: Tensor, expected: str) -> None:
    """Raises ValueError if an entry of target is not `allowed`, on a CPU: elsewhere it would wait for the device."""
    if target.device.type == "cpu" and not allowed.all():
        raise ValueError(
            f"target holds {target[~allowed][0]}; expected {expected}. Does the dataset mark what to ignore by another "
            "value?"
        )


class SoftmaxFocalLoss(nn.Module):
    """Softmax focal loss, see `softmax_focal_loss`; with `gamma=flsd_gamma` that of FLSD-53.

    Args:
        gamma: focusing exponent, at least 0, or a function of p, the probability of the true class.
        ignore_index: value of target that marks what to leave out.
        reduction: "mean" over what is not ignored, "sum" or "none".
    """

    def __init__(self, *, gamma: Gamma = 2.0, ignore_index: int = -100, reduction: str = "mean"):
        super().__init__()
        check_options(gamma=gamma, reduction=reduction)
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar, or the shape of target for "none"; logits are (N, K, ...), target is (N, ...)."""
        return softmax_focal_loss(
            logits, target, gamma=self.gamma, ignore_index=self.ignore_index, reduction=self.reduction
        )


class InverseFocalLoss(nn.Module):
    """Inverse focal loss, see `inverse_focal_loss`.

    Args:
        gamma: exponent, at least 0.
        ignore_index: value of target that marks what to leave out.
        reduction: "mean" over what is not ignored, "sum" or "none".
    """

    def __init__(self, *, gamma: float = 2.0, ignore_index: int = -100, reduction: str = "mean"):
        super().__init__()
        check_options(gamma=gamma, reduction=reduction)
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar, or the shape of target for "none"; logits are (N, K, ...), target is (N, ...)."""
        return inverse_focal_loss(
            logits, target, gamma=self.gamma, ignore_index=self.ignore_index, reduction=self.reduction
        )
