"""Which anchor is to find which object, and which anchors are ignored. N images, R anchors over all levels, G objects."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...losses import IGNORE
from ..model.boxes import area, centers, intersection, objects_in_parts
from .atss import ATSSMatcher, are_inside, are_legacy_objects
from .center_sampling import CenterSamplingMatcher
from .iou import IoUMatcher


class Matcher(Protocol):
    """What is in MATCHERS."""

    ignores_centers: bool  # see `assign`

    def __call__(self, anchors: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(N, R) int64 from (R_l, 4) per level and (G_i, 4) per image: index into the boxes, BACKGROUND or IGNORE."""


MATCHERS = {"iou": IoUMatcher, "atss": ATSSMatcher, "center_sampling": CenterSamplingMatcher}


@torch.no_grad()
def assign(
    matcher: Matcher,
    anchors: Sequence[Tensor],
    boxes: Sequence[Tensor],
    ignore_boxes: Sequence[Tensor],
    *,
    image_sizes: Sequence[tuple[int, int]],
    ignore_padding: bool,
) -> Tensor:
    """(N, R) int64 for the anchors of each image: index into its boxes, BACKGROUND or IGNORE.

    Beyond what the matcher says, anchors that match no object are ignored if half of their area or more lies in one
    ignore box. If the matcher `ignores_centers` (ATSS with legacy_offset), other ones are: in images with objects,
    those centered in an ignore box, whether they match or not.

    Args:
        anchors: (R_l, 4) per level.
        boxes: (G_i, 4) objects per image; G_i may be 0.
        ignore_boxes: (M_i, 4) crowds and ignore regions per image; M_i may be 0.
        image_sizes: (height, width) per image, without padding.
        ignore_padding: also ignore unmatched anchors whose center is outside the image.
    """
    matches = matcher(anchors, boxes)
    every_anchor = torch.cat(list(anchors))
    points = centers(every_anchor)
    for row, objects, regions, (height, width) in zip(matches, boxes, ignore_boxes, image_sizes, strict=True):
        unmatched = row < 0
        if not matcher.ignores_centers:
            ignored = unmatched & _in_any(_is_half_inside, regions, every_anchor)
        elif are_legacy_objects(objects).any():
            ignored = _in_any(_is_legacy_center_inside, regions, every_anchor)
        else:
            ignored = torch.zeros_like(unmatched)
        if ignore_padding:
            ignored |= unmatched & ~((points >= 0) & (points < points.new_tensor([width, height]))).all(dim=1)
        row[ignored] = IGNORE
    return matches


def _in_any(rule: Callable[[Tensor, Tensor], Tensor], boxes: Tensor, anchors: Tensor) -> Tensor:
    """(R,) whether the rule holds for an anchor and any of the (M, 4) boxes."""
    found = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    for _, part in objects_in_parts(boxes, len(anchors)):
        found |= rule(anchors, part[:, None]).any(dim=0)
    return found


def _is_half_inside(anchors: Tensor, boxes: Tensor) -> Tensor:
    return intersection(boxes, anchors) >= 0.5 * area(anchors)


def _is_legacy_center_inside(anchors: Tensor, boxes: Tensor) -> Tensor:
    return are_inside(centers(anchors), boxes, margin=0.5)
