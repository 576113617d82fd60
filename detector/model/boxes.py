"""Box arithmetic. Boxes are xyxy, in continuous pixel coordinates."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

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


def clip(boxes: Tensor, image_size: tuple[int, int], *, legacy_offset: bool = False) -> Tensor:
    """Boxes (..., 4) with every corner moved into the image of size (height, width).

    Args:
        legacy_offset: into its pixels, as where boxes hold the indices of their first and last one: a box beyond the image
            keeps a pixel at the border.
    """
    height, width = image_size
    pixel = int(legacy_offset)
    left, top, right, bottom = boxes.unbind(-1)
    first = left.clamp(0, width - pixel), top.clamp(0, height - pixel)
    return torch.stack((*first, right.clamp(pixel, width), bottom.clamp(pixel, height)), dim=-1)


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
