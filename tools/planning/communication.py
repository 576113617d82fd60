"""What the processes of a run send each other in an optimizer step."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from longshot.detector.model.boxes import DistributionCoding
from longshot.detector.training.criterion import Criterion
from longshot.losses.stepwise import StepwiseLoss

_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20  # bytes: DistributedDataParallel sends a bucket that holds so many


class Collective(NamedTuple):
    """Messages of one kind in a step."""

    name: str
    kind: str  # "all-reduce", "broadcast" or "all-gather"
    size: int  # bytes of the tensors that a process hands over in a step
    count: int  # calls in a step

    def sent(self, gpus: int) -> float:
        """Bytes that a process sends, in a ring: Patarasuk and Yuan 2009 (doi:10.1016/j.jpdc.2008.09.002)."""
        factor = {"all-reduce": 2 * (gpus - 1) / gpus, "broadcast": (gpus - 1) / gpus, "all-gather": gpus - 1}
        return factor[self.kind] * self.size


def collectives(network: nn.Module, criterion: Criterion, *, passes: int) -> list[Collective]:
    """Every message of a step of `training.step.optimize` under DistributedDataParallel.

    Args:
        network: in training mode; on the meta device it will do.
        passes: over which gradients are accumulated; they are summed over processes in the last one.
    """
    gradients = [parameter.nbytes for parameter in network.parameters() if parameter.requires_grad]
    buffers = list(network.buffers())
    losses = 2 + (criterion.quality != "none") + isinstance(criterion.coding, DistributionCoding)
    # In bytes: positives, images that could not be read; losses, two norms, whether to stop; in each pass, two float64 of
    # the weights of boxes.
    numbers = [8, 4 * (losses + 3)] + [16] * passes * (criterion.box_weighting != "none")
    messages = [
        Collective("gradients", "all-reduce", sum(gradients), _num_buckets(gradients)),
        # Those of a type go together.
        Collective("buffers", "broadcast", sum(b.nbytes for b in buffers), len({b.dtype for b in buffers})),
        Collective("counts, losses, norms", "all-reduce", sum(numbers), len(numbers)),
    ]
    if isinstance(criterion.classification, StepwiseLoss):
        sums = criterion.classification.pending
        messages.append(Collective("sums per class (float64)", "all-reduce", sums.nbytes, 1))
    return messages + _of_sync_bn(network, passes)


def _num_buckets(sizes: Sequence[int]) -> int:
    """In how many messages DistributedDataParallel sends gradients of these bytes, of weights in the order of forward."""
    closed, filled, full = 0, 0, _FIRST_BUCKET
    for size in reversed(sizes):
        filled += size
        if filled >= full:
            closed, filled, full = closed + 1, 0, _BUCKET
    return closed + (filled > 0)


def _of_sync_bn(network: nn.Module, passes: int) -> list[Collective]:
    """Forward gathers mean, inverse deviation and count of each layer, backward sums two numbers per channel."""
    channels = [m.num_features for m in network.modules() if isinstance(m, nn.SyncBatchNorm) and m.training]
    if not channels:
        return []
    calls = passes * len(channels)
    return [
        Collective("SyncBN, forward", "all-gather", 4 * passes * sum(2 * c + 1 for c in channels), calls),
        Collective("SyncBN, backward", "all-reduce", 4 * passes * sum(2 * c for c in channels), calls),
    ]
