"""Losses whose state is summed over a step and changes once, when the step is over."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from .dense import DenseLoss


class StepwiseLoss(DenseLoss):
    """A dense loss with running sums per class, which change once per optimizer step, and alike on all ranks.

    For every optimizer step: `begin_step()`; any number of passes of forward and backward, which add to `pending`;
    `after_backward(...)`. The sums are float64 buffers, saved in checkpoints, and stay float64 when the module is cast.

    Args:
        num_classes: K.
        weight: factor of the whole loss, above 0.
        sums: names of the buffers, (K,) each.

    Attributes:
        pending: (len(sums), K) float64, this rank's share of the step in work.
    """

    def __init__(self, num_classes: int, *, weight: float, sums: tuple[str, ...]):
        super().__init__(num_classes, weight=weight)
        self._sums = sums
        for name in sums:
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.float64))
        # No buffer: DistributedDataParallel would replace it by that of rank 0 between two passes of a step.
        self.pending = torch.zeros(len(sums), num_classes, dtype=torch.float64)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StepwiseLoss":
        # Where .to(), .cuda() and .half() end. Sums of a million small terms need float64, whatever the model is cast to.
        exact = {name: getattr(self, name) for name in self._sums}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            device = getattr(self, name).device
            setattr(self, name, value.to(device))
            self.pending = self.pending.to(device)
        return self

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
        step = self.pending / gradient_scale if step_taken else torch.full_like(self.pending, torch.nan)
        self.pending.zero_()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(step)
        step = torch.where(step.isfinite().all(), step, 0.0)
        for name, of_step in zip(self._sums, step, strict=True):
            getattr(self, name).add_(of_step)
