"""What a head's box outputs mean. Three codings with one face: `depth` outputs per anchor, `decode`d to boxes.

The codings by distances need one square anchor per location. Its side is `anchor_size` strides, which tells the stride.
"""

import torch
from torch import Tensor

from ...losses import expected_value
from .boxes import MAX_LOG_GROWTH, centers, decode


class DeltaCoding:
    """(dx, dy, dw, dh) relative to the anchor, see `boxes.encode`."""

    depth = 4

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (..., 4) from deltas (..., 4) and anchors (..., 4)."""
        return decode(deltas, anchors)


class DistanceCoding:
    """Logarithms of the distances from the anchor's center to the left, top, right and bottom of the box, in strides.

    Tian et al. 2019, arXiv:1904.01355, section 3.2: exp keeps distances above 0. The growth is bounded as that of
    deltas is.
    """

    depth = 4

    def __init__(self, *, anchor_size: float):
        self.anchor_size = anchor_size

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (..., 4) from log-distances (..., 4) and anchors (..., 4)."""
        distances = deltas.clamp(max=MAX_LOG_GROWTH).exp()
        return _at_distances(distances * _strides(anchors, self.anchor_size), anchors)


class DistributionCoding:
    """For each side, logits over the distances 0, 1, …, bins - 1 strides from the anchor's center; their mean counts.

    Li et al. 2020 (Generalized Focal Loss, arXiv:2006.04388), section 3.2 with eq. 5. Output side * bins + i is the
    logit of distance i; sides are left, top, right, bottom.
    """

    def __init__(self, *, anchor_size: float, bins: int = 17):
        if bins < 2:
            raise ValueError(f"bins is {bins}; a distribution over distances needs at least 2")
        self.anchor_size = anchor_size
        self.bins = bins
        self.depth = 4 * bins

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (..., 4) from logits (..., 4 * bins) and anchors (..., 4)."""
        distances = expected_value(self.by_side(deltas))
        return _at_distances(distances * _strides(anchors, self.anchor_size), anchors)

    def by_side(self, deltas: Tensor) -> Tensor:
        """(..., 4 * bins) -> (..., 4, bins)."""
        return deltas.unflatten(-1, (4, self.bins))

    def distances(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(..., 4) how far the sides of boxes (..., 4) are from the centers of anchors (..., 4), in strides.

        Clamped to what a distribution can mean: 0 to just under bins - 1.
        """
        middle = centers(anchors)
        distances = torch.cat((middle - boxes[..., :2], boxes[..., 2:] - middle), dim=-1)
        return (distances / _strides(anchors, self.anchor_size)).clamp(0, self.bins - 1 - 0.1)


BoxCoding = DeltaCoding | DistanceCoding | DistributionCoding


def centerness(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(...) in [0, 1]: 1 where the anchor's center is that of the box, 0 where it is not inside (FCOS, eq. 3).

    Args:
        boxes, anchors: (..., 4).
    """
    middle = centers(anchors)
    before, after = (middle - boxes[..., :2]).clamp(min=0), (boxes[..., 2:] - middle).clamp(min=0)
    tiny = torch.finfo(boxes.dtype).tiny  # 0 / 0 of a box without area
    return (torch.min(before, after) / torch.max(before, after).clamp(min=tiny)).prod(dim=-1).sqrt()


def _strides(anchors: Tensor, anchor_size: float) -> Tensor:
    """(..., 1) pixels."""
    return (anchors[..., 2:3] - anchors[..., :1]) / anchor_size


def _at_distances(distances: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) whose left, top, right, bottom are so many pixels (..., 4) from the centers of anchors (..., 4)."""
    middle = centers(anchors)
    return torch.cat((middle - distances[..., :2], middle + distances[..., 2:]), dim=-1)
