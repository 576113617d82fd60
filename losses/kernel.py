"""The sum that focal and equalized focal loss share, with a small memory footprint.

With p = sigmoid(z), a negative entry costs f(z) = p^gamma * -log(1 - p) and a positive one f(-z), each times a weight.
Hence one formula and one derivative serve both, and every entry is first treated as a negative; then the one positive
entry that a row may have is put in by index. There is no one-hot target and no synchronization with the device.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .labels import IGNORE

# Entries of (R, K) in work at a time: 4 MB per temporary in float32. With 1203 classes the whole is 224 MB per image.
CHUNK = 2**20


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, otherwise float32: the type in which losses are computed."""
    return torch.promote_types(tensor.dtype, torch.float32)


def row_chunks(matrix: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of (R, K) and (R,) in chunks of rows that hold about CHUNK entries each."""
    rows = max(1, CHUNK // matrix.shape[1])
    return zip(matrix.split(rows), labels.split(rows), strict=True)


def negative_cost(z: Tensor, gamma: Tensor) -> Tensor:
    """f(z) = p^gamma * -log(1 - p), accurate to float precision for every finite z."""
    return torch.sigmoid(z).pow(gamma) * -F.logsigmoid(-z)


def negative_slope(z: Tensor, gamma: Tensor) -> Tensor:
    """f'(z) = p^gamma * (p - gamma (1 - p) log(1 - p)). All terms are positive: nothing cancels."""
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    return p.pow(gamma) * (p - gamma * q * F.logsigmoid(-z))


class FocalSum(torch.autograd.Function):
    """Sum over all entries of weight_k * alpha_t * f(-z or z). Differentiable once, in the logits alone.

    The gradient is computed anew in backward, chunk by chunk in float32, and multiplied by the upstream gradient before
    it is rounded to the type of the logits. A gradient kept from forward would lose its small entries in half types
    (2e-9 at a prior of 0.001, before any loss scale).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, labels: Tensor, alpha: float, gamma: Tensor, weight: Tensor
    ) -> Tensor:
        """Scalar of the computing type.

        Args:
            logits: (R, K).
            labels: (R,) int64 in [0, K), or BACKGROUND, or IGNORE.
            alpha: weight of positives; negatives get 1 - alpha.
            gamma: (K,) focusing exponents, in the computing type.
            weight: (K,) class weights, in the computing type.
        """
        ctx.save_for_backward(logits, labels, gamma, weight)
        ctx.alpha = alpha
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for z, y in row_chunks(logits, labels):
            z = z.to(gamma.dtype)
            cost = negative_cost(z, gamma).mul_((1 - alpha) * weight)
            k = y.clamp(min=0)
            positive = alpha * weight[k] * negative_cost(-pick(z, k), gamma[k])
            put(cost, k, torch.where(y >= 0, positive, pick(cost, k)))
            total += cost.sum(1).masked_fill_(y == IGNORE, 0).sum(dtype=torch.float64)
        return total.to(gamma.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, labels, gamma, weight = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for (z, y), (out, _) in zip(row_chunks(logits, labels), row_chunks(gradient, labels), strict=True):
            z = z.to(gamma.dtype)
            slope = negative_slope(z, gamma).mul_((1 - ctx.alpha) * weight)
            k = y.clamp(min=0)
            positive = -ctx.alpha * weight[k] * negative_slope(-pick(z, k), gamma[k])
            put(slope, k, torch.where(y >= 0, positive, pick(slope, k)))
            out.copy_(slope.mul_(upstream).masked_fill_((y == IGNORE)[:, None], 0))
        return gradient, None, None, None, None


def pick(matrix: Tensor, columns: Tensor) -> Tensor:
    """(R,) one entry of each row of (R, K)."""
    return matrix.gather(1, columns[:, None]).squeeze(1)


def put(matrix: Tensor, columns: Tensor, values: Tensor) -> None:
    """Replaces one entry of each row."""
    matrix.scatter_(1, columns[:, None], values[:, None])
