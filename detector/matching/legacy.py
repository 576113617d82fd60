"""Matching as in models of the time when a box from x1 to x2 was x2 - x1 + 1 wide (`model.legacy_offset`).

N images, R anchors over all levels, G objects and M ignore regions of an image. Boxes are ours: a pixel-inclusive box
[x1, y1, x2, y2] is [x1, y1, x2 + 1, y2 + 1].
"""

import torch
from torch import Tensor

from ..model.boxes import any_of, are_inside, centers
from .atss import ATSSMatcher
from .iou import IoUMatcher


class LegacyIoUMatcher(IoUMatcher):
    """As United-Perception matches: an IoU of `positive` is not enough, `low_quality` forgives a thousandth, and objects at
    most 1 pixel wide or high match nothing."""

    tolerance = 1e-3

    def overlap(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(G, R) IoU of boxes (G, 4) and anchors (R, 4), 0 of boxes that are not looked at."""
        return super().overlap(boxes, anchors) * are_legacy_objects(boxes)[:, None]

    def is_enough(self, iou: Tensor) -> Tensor:
        """Whether anchors of this IoU with the object that they overlap most are matched."""
        return iou > self.positive


class LegacyATSSMatcher(ATSSMatcher):
    """As EFL's official models match: an anchor is centered half a pixel up and left of its middle, and objects at most 1
    pixel wide or high match nothing.

    (There, centers of objects are moved into the image as well: those of boxes clipped to the image are in it, but for
    slivers on its edge.)
    """

    margin = 0.5 + ATSSMatcher.margin  # nothing is inside an object 1 pixel wide

    def ignored(self, unmatched: Tensor, anchors: Tensor, objects: Tensor, regions: Tensor) -> Tensor:
        """(R,): in images with objects the anchors centered in an ignore region, whether they match or not."""
        if not are_legacy_objects(objects).any():
            return torch.zeros_like(unmatched)
        return any_of(regions, anchors, _is_center_inside)


def _is_center_inside(anchors: Tensor, boxes: Tensor) -> Tensor:
    return are_inside(centers(anchors), boxes, margin=0.5)


def are_legacy_objects(boxes: Tensor) -> Tensor:
    """(G,) whether boxes (G, 4) are wider and higher than 1 pixel: those that these matchers look at."""
    # A pixel-inclusive box without extent is 1 wide; in float32 it may be a little more.
    return (boxes[:, 2:] - boxes[:, :2] > 1.001).all(dim=1)
