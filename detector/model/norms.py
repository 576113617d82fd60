"""Normalization layers by name."""

from collections.abc import Callable

from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, the number of Wu and He 2018 (arXiv:1803.08494); fewer for thin layers.

    The largest power of two up to 32 that divides the channels and leaves at least two of them in a group.
    """
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels >= 2 * g or g == 1))
    return nn.GroupNorm(groups, channels)


class FrozenStatisticsBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its running statistics and never moves them; scale and shift are trained."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenStatisticsBatchNorm2d":
        """Evaluation mode, whatever is asked for."""
        return super().train(False)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,  # statistics and affine parameters are buffers: nothing is learned
    "frozen_stats": FrozenStatisticsBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,
    "gn": group_norm,
}
