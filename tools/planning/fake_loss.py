"""What takes the memory of the losses where tensors have no content."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from longshot.losses.kernel import CHUNK
from longshot.tools.planning.ledger import Ledger
from longshot.tools.planning.meter import CHUNK_OF_LOSS, LOGITS_GRADIENT


class FakeLoss(torch.autograd.Function):
    """A loss that takes the memory of `losses.kernel.focal_sum`, which asks where the positives are; fakes cannot tell.

    In full precision its forward makes the gradient, for half types its backward does, in both a chunk at a time.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, outputs: Tensor, ledger: Ledger, account: str) -> Tensor:
        """A scalar."""
        ctx.save_for_backward(outputs)
        ctx.ledger, ctx.account = ledger, account
        ctx.gradient = _gradient(outputs, ledger, account) if outputs.dtype == torch.float32 else None
        return outputs.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the outputs."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            gradient = _gradient(ctx.saved_tensors[0], ctx.ledger, ctx.account)
        return gradient, None, None


def _gradient(outputs: Tensor, ledger: Ledger, account: str) -> Tensor:
    ledger.account = account
    gradient = torch.empty_like(outputs)
    if account == LOGITS_GRADIENT:
        ledger.account = CHUNK_OF_LOSS
        torch.empty(CHUNK, dtype=torch.float32)
    return gradient
