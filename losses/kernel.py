"""The sum over anchors and classes that all our dense classification losses are, with a small memory footprint.

Every entry costs weight * |q - p|^gamma * BCE(z, q), where p = sigmoid(z) and q is what p should be: 0 for a negative
entry; for the positive entry that a row may have, its quality (1 unless the loss asks for another). This is quality
focal loss (Li et al. 2020, arXiv:2006.04388, eq. 3); at quality 1 it is focal loss, at gamma 0 cross entropy.

All entries are first treated as negatives, chunk by chunk; then the positive ones, one row in a hundred, are put in by
index. There is no one-hot target.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .dense import IGNORE, check_labels, check_quality, check_shapes

# Entries of all temporaries of one chunk of rows together: 8 MB in float32, where the logits of an image have 224 MB
# (1203 classes, 2 anchors per location). Larger is hardly faster.
CHUNK = 2**21
_TEMPORARIES = 10  # of the size of the chunk's logits, at most
_POSITIVES = 2**15  # at a time: 8 MB of float64 vectors at most

RowWeight = Callable[[Tensor, Tensor], Tensor]
GradientHook = Callable[[Tensor], None]


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, otherwise float32: the type in which losses are computed."""
    return torch.promote_types(tensor.dtype, torch.float32)


def focal_sum(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: Tensor | float,
    positive_weight: Tensor | float = 1.0,
    negative_weight: Tensor | float = 1.0,
    quality: Tensor | None = None,
    row_weight: RowWeight | None = None,
    gradient_hook: GradientHook | None = None,
) -> Tensor:
    """Sum over all entries of weight * |q - p|^gamma * BCE(z, q). Differentiable once, in the logits alone.

    Args:
        logits: (..., K), any float type; half types are computed in float32.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        gamma, positive_weight, negative_weight: (K,) or one for all classes; constants in backward.
        quality: (...,) in [0, 1], q of the positives; what it says of other rows is not used. None: 1.
        row_weight: called with the logits (r, K) and labels (r,) of some rows; returns a factor of their negative
            entries, broadcastable to (r, K), a constant in backward.
        gradient_hook: called once by every backward with (2, K) float64: for each class the sum of |gradient| of its
            positive (row 0) and of its negative entries (row 1), as it is before it is rounded to the type of the logits.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: labels or quality of another shape than the rows of logits; on a CPU also labels that are none, and
            a quality of a positive outside [0, 1].
    """
    check_shapes(logits, labels, quality)
    check_labels(labels, logits.shape[-1])

    def per_class(value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=logits.device).detach().expand(logits.shape[-1])

    labels = labels.flatten()
    (rows,) = (labels >= 0).nonzero(as_tuple=True)
    if quality is None:
        quality = torch.ones((), dtype=torch.float64, device=logits.device).expand(len(rows))
    else:
        quality = quality.detach().flatten()[rows].double()
        check_quality(quality)
    positives = _Positives(rows, labels[rows], quality)
    factors = _Factors(per_class(gamma), per_class(positive_weight), per_class(negative_weight), row_weight)
    return _FocalSum.apply(logits.flatten(0, -2), labels, positives, factors, gradient_hook)


class _Positives(NamedTuple):
    rows: Tensor  # (P,) of the logits, as are the next two
    columns: Tensor
    quality: Tensor  # float64


class _Factors(NamedTuple):
    gamma: Tensor  # (K,) float64, as are the next two
    positive_weight: Tensor
    negative_weight: Tensor
    row_weight: RowWeight | None


class _Negatives(NamedTuple):
    """Factors of the negative entries, in the type in which they are computed."""

    gamma: Tensor  # (K,), as are the next two
    gamma_of_2: Tensor  # p^gamma = 2^(gamma_of_2 * log p)
    weight: Tensor
    row_weight: RowWeight | None


class _FocalSum(torch.autograd.Function):
    """See `focal_sum`.

    Full precision: forward computes the gradient along with the loss. Half types: backward computes it anew, chunk by
    chunk in float32, multiplied by the upstream gradient before it is rounded. Kept from forward it would lose its small
    entries (2e-9 at a prior of 0.001) before any loss scale could save them. Backward of a retained graph does the same.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        logits: Tensor,
        labels: Tensor,
        positives: _Positives,
        factors: _Factors,
        gradient_hook: GradientHook | None,
    ) -> Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.positives, ctx.factors, ctx.gradient_hook = positives, factors, gradient_hook
        ctx.gradient = ctx.sums = None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        if ctx.needs_input_grad[0] and logits.dtype == computing_dtype(logits):
            ctx.gradient, ctx.sums = torch.empty_like(logits), _no_sums(logits)
        _pass(logits, labels, positives, factors, total=total, gradient=ctx.gradient, sums=ctx.sums)
        return total.to(computing_dtype(logits))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, sums = ctx.gradient, ctx.sums
        ctx.gradient = None  # handed over, to be changed in place by whoever gets it
        if gradient is not None:
            gradient *= upstream
            sums = sums * upstream.abs()
        else:
            logits, labels = ctx.saved_tensors
            gradient, sums = torch.empty_like(logits), _no_sums(logits)
            scaled = ctx.factors._replace(
                positive_weight=ctx.factors.positive_weight * upstream,
                negative_weight=ctx.factors.negative_weight * upstream,
            )
            _pass(logits, labels, ctx.positives, scaled, total=None, gradient=gradient, sums=sums)
        if ctx.gradient_hook is not None:
            ctx.gradient_hook(sums)
        return gradient, None, None, None, None


def _no_sums(logits: Tensor) -> Tensor:
    return torch.zeros(2, logits.shape[1], dtype=torch.float64, device=logits.device)


def _pass(
    logits: Tensor,
    labels: Tensor,
    positives: _Positives,
    factors: _Factors,
    *,
    total: Tensor | None,
    gradient: Tensor | None,
    sums: Tensor | None,
) -> None:
    """Goes over (R, K) logits once: adds their cost to `total`, unless None; unless `gradient` is None, writes the gradient
    into it and adds the sizes of its positive and negative entries to `sums` (2, K)."""
    dtype = computing_dtype(logits)
    # With AVX-512, log1p takes 20 times as long until it has met a -0.0: every call loads, masked out, what it returns for
    # that, and such a load is slow from a page that nothing has brought into memory.
    torch.log1p(torch.tensor(-0.0, dtype=dtype))
    of_classes = (factors.gamma, factors.gamma / math.log(2), factors.negative_weight)
    negatives = _Negatives(*(value.to(dtype) for value in of_classes), factors.row_weight)
    rows = max(1, CHUNK // (_TEMPORARIES * (logits.shape[1] + 1)))  # 1: what has a number for each row
    for part in (slice(start, start + rows) for start in range(0, len(logits), rows)):
        _negatives(logits[part], labels[part], negatives, total, None if gradient is None else gradient[part], sums)
    for chunk in zip(*(values.split(_POSITIVES) for values in positives), strict=True):
        _positives(logits, _Positives(*chunk), factors, total, gradient, sums)


def _negatives(
    logits: Tensor,
    labels: Tensor,
    factors: _Negatives,
    total: Tensor | None,
    gradient: Tensor | None,
    sums: Tensor | None,
) -> None:
    """The negative entries of some rows, see `_pass`; writes 0 at the positive ones.

    A function of its own, so that its temporaries are gone before those of the next chunk come.
    """
    z, ignored = logits.to(factors.gamma.dtype), labels == IGNORE
    power, softplus = power_and_softplus(z, factors.gamma_of_2)
    power *= factors.weight
    if factors.row_weight is not None:
        power *= factors.row_weight(z, labels)
    # Left out before anything is summed: "all - positives" would cancel, one being 1e8 times the other at first.
    _clear_positives(power, labels)
    if total is not None:
        total += (power * softplus).sum(1).masked_fill_(ignored, 0).sum(dtype=torch.float64)
    if gradient is not None:
        slope = torch.sigmoid(z).addcmul_(softplus.mul_(factors.gamma), z.neg().sigmoid_()).mul_(power)
        _clear(slope, ignored)
        sums[1] += slope.sum(0).abs()  # they all have the same sign
        gradient.copy_(slope)


def _positives(
    logits: Tensor,
    positives: _Positives,
    factors: _Factors,
    total: Tensor | None,
    gradient: Tensor | None,
    sums: Tensor | None,
) -> None:
    """Some positive entries, see `_pass`."""
    rows, columns, quality = positives
    cost, slope = cost_and_slope(logits[rows, columns].double(), quality, factors.gamma[columns])
    weight = factors.positive_weight[columns]
    if total is not None:
        total += (weight * cost).sum()
    if gradient is not None:
        slope *= weight
        sums[0].index_add_(0, columns, slope.abs())
        gradient[rows, columns] = slope.to(gradient.dtype)


def _clear_positives(matrix: Tensor, labels: Tensor) -> None:
    """Sets the positive entry of each row of (r, K) that has one to 0."""
    columns = labels.clamp(min=0)[:, None]
    matrix.scatter_(1, columns, matrix.gather(1, columns).masked_fill_(labels[:, None] >= 0, 0))


def _clear(matrix: Tensor, rows: Tensor) -> None:
    """Sets some rows to 0, whatever they hold, as masked_fill_ does; on a CPU in a fifth of its time."""
    bits = matrix.view(torch.int32 if matrix.dtype == torch.float32 else torch.int64)
    bits &= torch.where(rows, 0, -1)[:, None].to(bits.dtype)


def power_and_softplus(z: Tensor, gamma_of_2: Tensor) -> tuple[Tensor, Tensor]:
    """p^gamma and -log(1 - p), accurate to float precision for every finite z.

    The cost of a negative entry is their product; its derivative p^gamma * (p + gamma (1 - p) * -log(1 - p)) has positive
    terms only: nothing cancels.
    """
    smaller = z.abs().neg_().sigmoid_()  # of p and 1 - p
    larger = smaller.neg_().log1p_()  # log of the other
    softplus = z.clamp(min=0).sub_(larger)
    log_p = z.clamp(max=0).add_(larger)
    # On some processors PyTorch's exp takes four times as long as exp2.
    return log_p.mul_(gamma_of_2).exp2_(), softplus


def cost_and_slope(z: Tensor, quality: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """|q - p|^gamma * BCE(z, q) and its derivative, of (P,) entries; float64, as q - p may cancel.

    -(gamma |q - p|^(gamma - 1) sign(q - p) p (1 - p) BCE + |q - p|^gamma (q - p))
    """
    p, rest = torch.sigmoid(z), torch.sigmoid(-z)
    cross_entropy = -(quality * F.logsigmoid(z) + (1 - quality) * F.logsigmoid(-z))
    distance = quality * rest - (1 - quality) * p  # q - p, exact also where p is nearly q = 1
    # At distance 0 the power has a pole for gamma below 1.
    size = distance.abs().clamp(min=torch.finfo(z.dtype).tiny)
    power = size.pow(gamma)
    turn = gamma * size.pow(gamma - 1) * distance.sign() * p * rest * cross_entropy
    return power * cross_entropy, -(turn + power * distance)
