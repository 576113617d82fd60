"""Steps whose loss or gradient is not finite: how they are told, undone and kept for inspection."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...datasets.loading.batches import Batch

MOST_IN_A_ROW = 10  # skipped steps; more are no accident
MOST_WRITTEN = 3  # files per process: each may hold hundreds of megabytes


class NonFiniteStep(FloatingPointError):
    """Raised on all processes by a step that is not finite on one of them; the step has changed nothing.

    Args:
        step: steps done before it.
        losses, norm, state: of all processes, of the gradient, and of what the step began with (`Run.norm`).
        rank, image_ids: of this process.
    """

    def __init__(
        self, step: int, losses: dict[str, float], norm: float, state: float, *, rank: int, image_ids: list[int]
    ):
        super().__init__(
            f"step {step}: loss {losses}, norm of the state {state}, norm of the gradient {norm}: not finite. Process {rank} "
            f"had the images {image_ids}. The weights were not changed and no checkpoint was written; resume from the last "
            "one with a lower learning rate, a longer warm-up, optimizer.clip_norm or fp32, or look at these images. "
            "train.on_nonfinite=skip leaves such steps out"
        )
        self.numbers = {"loss": sum(losses.values()), **losses, "gradient_norm": norm, "state_norm": state}


class MovingStatistics(NamedTuple):
    """The statistics that BatchNorms move in every forward pass, and a copy of them."""

    buffers: list[Tensor]
    copies: list[Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> "MovingStatistics":
        """Those of a network as they are now."""
        moving = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
        buffers = [buffer for module in moving for buffer in module.buffers()]
        return cls(buffers, [buffer.clone() for buffer in buffers])

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back: a forward pass with one bad image leaves NaN in all of them."""
        for buffer, copy in zip(self.buffers, self.copies, strict=True):
            buffer.copy_(copy)


def batch_content(batch: Batch) -> dict[str, object]:
    """A batch as tensors and plain values."""
    return {
        "images": [image.contiguous() for image in batch.images],
        "targets": [target._asdict() for target in batch.targets],
        "image_ids": batch.image_ids,
        "padded_sizes": batch.padded_sizes,
    }
