"""What the processes of a run tell each other in an optimizer step."""

from typing import NamedTuple

from torch import nn

from losses.stepwise import StepwiseLoss

from ..model.box_coding import DistributionCoding
from ..training.criterion import Criterion


class Collective(NamedTuple):
    """Messages of one kind in a step."""

    name: str
    kind: str  # "all-reduce", "broadcast" or "all-gather"
    size: int  # bytes of the tensors that a process hands over in a step
    count: int  # calls in a step
    hidden: bool = False  # whether backward goes on meanwhile

    def sent(self, gpus: int) -> float:
        """Bytes that a process sends, in a ring: Patarasuk and Yuan 2009 (doi:10.1016/j.jpdc.2008.09.002)."""
        factor = {"all-reduce": 2 * (gpus - 1) / gpus, "broadcast": (gpus - 1) / gpus, "all-gather": gpus - 1}
        return factor[self.kind] * self.size


def collectives(network: nn.Module, criterion: Criterion, *, passes: int) -> list[Collective]:
    """Every message of a step of `training.engine.optimize` under DistributedDataParallel.

    Args:
        network: in training mode; on the meta device it will do.
        passes: over which gradients are accumulated; they are summed over processes in the last one.
    """
    gradients = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    losses = 2 + (criterion.quality != "none") + isinstance(criterion.coding, DistributionCoding)
    # Positives; losses, norm and whether to stop; and in each pass the sum and number of the weights of boxes.
    numbers = [1, losses + 2] + [2] * passes * (criterion.box_weighting != "none")
    messages = [
        Collective("gradients", "all-reduce", gradients, 1, hidden=True),
        Collective("buffers", "broadcast", buffers, 1),
        Collective("counts, losses, norm", "all-reduce", 4 * sum(numbers), len(numbers)),
    ]
    if isinstance(criterion.classification, StepwiseLoss):
        sums = criterion.classification.pending
        messages.append(Collective("sums per class (float64)", "all-reduce", sums.nbytes, 1))
    return messages + _of_sync_bn(network, passes)


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
