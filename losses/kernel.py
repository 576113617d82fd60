"""The sum over anchors and classes that all our dense classification losses are, with a small memory footprint.

Every entry costs weight * |q - p|^gamma * BCE(z, q), where p = sigmoid(z) and q is what p should be: 0 for a negative
entry; for the positive entry that a row may have, its quality (1 unless the loss asks for another). This is quality
focal loss (Li et al. 2020, arXiv:2006.04388, eq. 3); at quality 1 it is focal loss, at gamma 0 cross entropy.

All entries are first treated as negatives; then the one positive entry of a row is put in by index. There is no one-hot
target and no synchronization with the device.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .labels import BACKGROUND, IGNORE

# Entries of all temporaries of one chunk of rows together: 8 MB in float32, where the logits of an image have 224 MB
# (1203 classes, 2 anchors per location). Larger is hardly faster.
CHUNK = 2**21
_TEMPORARIES = 10  # of the size of the chunk's logits, at most

RowWeight = Callable[[Tensor, Tensor], Tensor]


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
    collected: Tensor | None = None,
) -> Tensor:
    """Sum over all entries of weight * |q - p|^gamma * BCE(z, q). Differentiable once, in the logits alone.

    Args:
        logits: (..., K), any float type; half types are computed in float32.
        labels: (...,) int64 in [0, K), or BACKGROUND, or IGNORE (contributes nothing).
        gamma, positive_weight, negative_weight: (K,) or one for all classes; constants in backward.
        quality: (...,) in [0, 1], q of the positives; what it says of other rows is not used. None: 1.
        row_weight: called with the logits (r, K) and labels (r,) of some rows; returns a factor of their negative
            entries, broadcastable to (r, K), a constant in backward.
        collected: (2, K); backward adds |gradient| of the positive (row 0) and the negative entries (row 1) of each
            class, as it is before it is rounded to the type of the logits.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: labels or quality of another shape than the rows of logits; on a CPU also labels that are none.
    """
    _check_rows(logits, labels, quality)
    dtype, rows = computing_dtype(logits), labels.flatten()

    def per_class(value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=dtype, device=logits.device).detach().expand(logits.shape[-1])

    quality = torch.ones_like(rows, dtype=dtype) if quality is None else quality.detach().flatten().to(dtype)
    factors = _Factors(per_class(gamma), per_class(positive_weight), per_class(negative_weight), row_weight)
    return _FocalSum.apply(logits.flatten(0, -2), rows, quality, factors, collected)


def _check_rows(logits: Tensor, labels: Tensor, quality: Tensor | None) -> None:
    for name, values in (("labels", labels), ("quality", quality)):
        if values is not None and values.shape != logits.shape[:-1]:
            raise ValueError(
                f"logits have shape {tuple(logits.shape)} and {name} {tuple(values.shape)}; expected (..., K) and (...,): "
                "one row of K logits for each"
            )
    # On another device the check would wait for it; a class out of range fails there by its index.
    if labels.device.type != "cpu":
        return
    strange = (labels < IGNORE) | (labels >= logits.shape[-1])
    if strange.any():
        raise ValueError(
            f"labels hold {labels[strange][0]}; expected a class in [0, {logits.shape[-1]}), BACKGROUND ({BACKGROUND}) or "
            f"IGNORE ({IGNORE})"
        )


class _Factors(NamedTuple):
    gamma: Tensor  # (K,), as are the next two
    positive_weight: Tensor
    negative_weight: Tensor
    row_weight: RowWeight | None


class _FocalSum(torch.autograd.Function):
    """See `focal_sum`.

    Full precision: forward computes the gradient along with the loss. Half types: backward computes it anew, chunk by
    chunk in float32, multiplied by the upstream gradient before it is rounded. Kept from forward it would lose its small
    entries (2e-9 at a prior of 0.001) before any loss scale could save them. Backward of a retained graph does the same.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, labels: Tensor, quality: Tensor, factors: _Factors, collected: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(logits, labels, quality)
        ctx.factors, ctx.collected, ctx.gradient, ctx.sums = factors, collected, None, None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        if ctx.needs_input_grad[0] and logits.dtype == factors.gamma.dtype:
            ctx.gradient, ctx.sums = torch.empty_like(logits), _no_sums(logits)
        _pass(logits, labels, quality, factors, total=total, gradient=ctx.gradient, sums=ctx.sums)
        return total.to(factors.gamma.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, sums = ctx.gradient, ctx.sums
        ctx.gradient = None  # handed over, to be changed in place by whoever gets it
        if gradient is not None:
            gradient *= upstream
            sums = sums * upstream.abs()
        else:
            logits, labels, quality = ctx.saved_tensors
            gradient, sums = torch.empty_like(logits), _no_sums(logits)
            scaled = ctx.factors._replace(
                positive_weight=ctx.factors.positive_weight * upstream,
                negative_weight=ctx.factors.negative_weight * upstream,
            )
            _pass(logits, labels, quality, scaled, total=None, gradient=gradient, sums=sums)
        if ctx.collected is not None:
            ctx.collected += sums
        return gradient, None, None, None, None


def _no_sums(logits: Tensor) -> Tensor:
    return torch.zeros(2, logits.shape[1], dtype=torch.float64, device=logits.device)


def _pass(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor,
    factors: _Factors,
    *,
    total: Tensor | None,
    gradient: Tensor | None,
    sums: Tensor | None,
) -> None:
    """Goes over (R, K) logits once: adds their cost to `total`, unless None; unless `gradient` is None, writes the gradient
    into it and adds the sizes of its positive and negative entries to `sums` (2, K)."""
    gamma, is_positive, k = factors.gamma, labels >= 0, labels.clamp(min=0)
    cost, slope = _positive(_pick(logits, k).to(gamma.dtype), quality, gamma[k])
    cost, slope = (torch.where(is_positive, factors.positive_weight[k] * value, 0.0) for value in (cost, slope))
    if total is not None:
        total += cost.sum(dtype=torch.float64)
    if gradient is not None:
        sums[0].index_add_(0, k, slope.abs().double())
    rows = max(1, CHUNK // (_TEMPORARIES * len(gamma)))
    for part in (slice(start, start + rows) for start in range(0, len(logits), rows)):
        chunk = _Chunk(logits[part], labels[part], k[part], slope[part])
        _negatives(chunk, factors, total, None if gradient is None else gradient[part], sums)


class _Chunk(NamedTuple):
    logits: Tensor  # (r, K)
    labels: Tensor  # (r,), as are the next two
    column: Tensor  # of the positive entry, if there is one
    slope: Tensor  # of the positive entry, else 0


def _negatives(
    chunk: _Chunk, factors: _Factors, total: Tensor | None, gradient: Tensor | None, sums: Tensor | None
) -> None:
    """The negative entries of some rows, see `_pass`; into `gradient` go the positive ones too.

    A function of its own, so that its temporaries are gone before those of the next chunk come.
    """
    z, ignored = chunk.logits.to(factors.gamma.dtype), chunk.labels == IGNORE
    power, softplus = _power_and_softplus(z, factors.gamma)
    if factors.row_weight is not None:
        power *= factors.row_weight(z, chunk.labels)
    # Left out before anything is summed: "all - positives" would cancel, one being 1e8 times the other at first.
    _put(power, chunk.column, torch.where(chunk.labels >= 0, 0.0, _pick(power, chunk.column)))
    if total is not None:
        cost = (power * softplus).mul_(factors.negative_weight).sum(1)
        total += cost.masked_fill_(ignored, 0).sum(dtype=torch.float64)
    if gradient is not None:
        slope = softplus.mul_(factors.gamma).mul_(torch.sigmoid(-z)).add_(torch.sigmoid(z)).mul_(power)
        slope *= factors.negative_weight
        _clear(slope, ignored)
        sums[1] += slope.sum(0).abs()  # they all have the same sign
        _put(slope, chunk.column, _pick(slope, chunk.column) + chunk.slope)
        gradient.copy_(slope)


def _power_and_softplus(z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """p^gamma and -log(1 - p), accurate to float precision for every finite z.

    The cost of a negative entry is their product; its derivative p^gamma * (p + gamma (1 - p) * -log(1 - p)) has positive
    terms only: nothing cancels.
    """
    smaller = torch.sigmoid(-z.abs())  # of p and 1 - p
    larger = smaller.neg_().log1p_()  # log of the other
    softplus = z.clamp(min=0).sub_(larger)
    log_p = z.clamp(max=0).add_(larger)
    return log_p.mul_(gamma).exp_(), softplus


def _positive(z: Tensor, quality: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """|q - p|^gamma * BCE(z, q) and its derivative, of (R,) entries.

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


def _clear(matrix: Tensor, rows: Tensor) -> None:
    """Sets some rows to 0, whatever they hold, as masked_fill_ does; on a CPU in a fifth of its time."""
    bits = matrix.view(torch.int32 if matrix.dtype == torch.float32 else torch.int64)
    bits &= torch.where(rows, 0, -1)[:, None].to(bits.dtype)


def _pick(matrix: Tensor, columns: Tensor) -> Tensor:
    """(R,) one entry of each row of (R, K)."""
    return matrix.gather(1, columns[:, None]).squeeze(1)


def _put(matrix: Tensor, columns: Tensor, values: Tensor) -> None:
    """Replaces one entry of each row."""
    matrix.scatter_(1, columns[:, None], values[:, None])
