"""Which anchor is to find which object, and which anchors are ignored. N images, R anchors over all levels, G objects."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...losses import IGNORE
from ..model.boxes import centers
from .atss import ATSSMatcher
from .center_sampling import CenterSamplingMatcher
from .iou import IoUMatcher
from .legacy import LegacyATSSMatcher, LegacyIoUMatcher


class Matcher(Protocol):
    """What is in MATCHERS."""

    def __call__(self, anchors: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(N, R) int64 from (R_l, 4) per level and (G_i, 4) per image: index into the boxes, BACKGROUND or IGNORE."""

    def ignored(self, unmatched: Tensor, anchors: Tensor, objects: Tensor, regions: Tensor) -> Tensor:
        """(R,) which anchors of an image are ignored for its ignore regions (M, 4).

        Usually those which match no object, and half of whose area or more lies in one region.
        """


MATCHERS = {"iou": IoUMatcher, "atss": ATSSMatcher, "center_sampling": CenterSamplingMatcher}
# With model.legacy_offset. A point has no half pixel to be off by.
LEGACY_MATCHERS = MATCHERS | {"iou": LegacyIoUMatcher, "atss": LegacyATSSMatcher}


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

    Beyond what the matcher says, anchors are ignored for the ignore regions (see `Matcher.ignored`) and, if asked for, those
    in the padding.

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
        ignored = matcher.ignored(unmatched, every_anchor, objects, regions)
        if ignore_padding:
            ignored |= unmatched & ~((points >= 0) & (points < points.new_tensor([width, height]))).all(dim=1)
        row[ignored] = IGNORE
    return matches
