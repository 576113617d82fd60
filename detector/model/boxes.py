"""Box arithmetic. Boxes are xyxy, in continuous pixel coordinates."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...losses import expected_value

# A box may grow at most 62.5-fold over its anchor (1000 px from 16 px): exp() of an untrained delta must not overflow.
MAX_LOG_GROWTH = math.log(1000.0 / 16)

# Comparing a pair takes some 40 bytes.
PAIRS_AT_ONCE = 2**19


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas (..., 4) that turn anchors into boxes: `decode(encode(boxes, anchors), anchors)` are the boxes again.

    Ren et al. 2015, arXiv:1506.01497, eq. 2, without weights: (dx, dy) are shifts of the center in sides of the
    anchor, (dw, dh) logarithms of the growth of the sides.

    Args:
        boxes: (..., 4), sides above 0.
        anchors: (..., 4), sides above 0.
    """
    x, y, width, height = _centers_and_sides(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centers_and_sides(anchors)
    return torch.stack(
        (
            (x - anchor_x) / anchor_width,
            (y - anchor_y) / anchor_height,
            torch.log(width / anchor_width),
            torch.log(height / anchor_height),
        ),
        dim=-1,
    )


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) from deltas and anchors, both (..., 4); the inverse of `encode` up to a growth of 62.5."""
    anchor_x, anchor_y, anchor_width, anchor_height = _centers_and_sides(anchors)
    dx, dy, dw, dh = deltas.unbind(-1)
    x, y = dx * anchor_width + anchor_x, dy * anchor_height + anchor_y
    half_width = 0.5 * (dw.clamp(max=MAX_LOG_GROWTH).exp() * anchor_width)
    half_height = 0.5 * (dh.clamp(max=MAX_LOG_GROWTH).exp() * anchor_height)
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1)


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) with every corner moved into the image of size (height, width)."""
    height, width = image_size
    left, top, right, bottom = boxes.unbind(-1)
    corners = left.clamp(0, width), top.clamp(0, height), right.clamp(0, width), bottom.clamp(0, height)
    return torch.stack(corners, dim=-1)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area in pixels² shared by boxes (..., 4) and (..., 4), which broadcast."""
    sides = torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])
    return sides.clamp(min=0).prod(dim=-1)


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """IoU in [0, 1] of boxes (..., 4) and (..., 4), which broadcast."""
    shared = intersection(a, b)
    return shared / (area(a) + area(b) - shared)


def area(boxes: Tensor) -> Tensor:
    """(...) area in pixels² of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def centers(boxes: Tensor) -> Tensor:
    """(..., 2) x and y of the middle of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _centers_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    left, top, right, bottom = boxes.unbind(-1)
    width, height = right - left, bottom - top
    return left + 0.5 * width, top + 0.5 * height, width, height


def objects_in_parts(boxes: Tensor, num_anchors: int) -> Iterator[tuple[int, Tensor]]:
    """Yields parts of (G, 4) boxes, with the index of their first, that are few enough to be compared with all anchors."""
    size = max(1, PAIRS_AT_ONCE // num_anchors)
    for first in range(0, len(boxes), size):
        yield first, boxes[first : first + size]


def are_inside(points: Tensor, boxes: Tensor, *, margin: float) -> Tensor:
    """Whether points (..., 2) are inside boxes (..., 4), which broadcast, by more than `margin` pixels on every side."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1).amin(dim=-1) > margin


def any_of(boxes: Tensor, anchors: Tensor, rule: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(R,) whether the rule holds for an anchor (R, 4) and any of the boxes (M, 4), which it gets as (R, 4) and (M, 1, 4)."""
    found = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    for _, part in objects_in_parts(boxes, len(anchors)):
        found |= rule(anchors, part[:, None]).any(dim=0)
    return found


def is_half_inside(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Whether at least half of the area of anchors lies in boxes, which broadcast."""
    return intersection(boxes, anchors) >= 0.5 * area(anchors)


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
