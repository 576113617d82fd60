"""Matching by the largest overlap. N images, R anchors over all levels, G objects of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...losses import BACKGROUND, IGNORE
from ..model.boxes import any_of, intersection_over_union, is_half_inside, objects_in_parts


class IoUMatcher:
    """Matches each anchor to the object that it overlaps most, if enough (RetinaNet, arXiv:1708.02002, section 4).

    Args:
        positive: anchors of at least this IoU are matched.
        negative: anchors below this IoU are background; those between the two are ignored.
        low_quality: in addition, match the anchors whose IoU with some object equals that object's best, above 0. As in
            torchvision and detectron2 they go to the object that THEY overlap most, which may be another.
    """

    tolerance = 0.0  # how far below an object's best IoU others still count as its best

    def __init__(self, *, positive: float = 0.5, negative: float = 0.4, low_quality: bool = True):
        if not 0 < negative <= positive <= 1:
            raise ValueError(f"IoU thresholds must keep 0 < negative <= positive <= 1; got {negative} and {positive}")
        self.positive = positive
        self.negative = negative
        self.low_quality = low_quality

    @torch.no_grad()
    def __call__(self, anchors: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(N, R) int64: index into the boxes of the image (the first of equals), BACKGROUND or IGNORE.

        Args:
            anchors: (R_l, 4) per level.
            boxes: (G_i, 4) per image; G_i may be 0.
        """
        every_anchor = torch.cat(list(anchors))
        return torch.stack([self._match(every_anchor, image) for image in boxes])

    def _match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        best = anchors.new_zeros(len(anchors))
        best_object = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        forced = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
        for first, part in objects_in_parts(boxes, len(anchors)):
            iou = self.overlap(part, anchors)
            if self.low_quality:
                # An object that overlaps no anchor has best IoU 0; matching "the best" would then take them all.
                enough = iou.amax(dim=1, keepdim=True) - self.tolerance
                forced |= ((iou >= enough) & (iou > 0)).any(dim=0)
            best_of_part, index = iou.max(dim=0)
            best_object = torch.where(best_of_part > best, first + index, best_object)
            best = torch.max(best, best_of_part)
        matches = best_object.masked_fill(~self.is_enough(best), IGNORE).masked_fill(best < self.negative, BACKGROUND)
        return torch.where(forced, best_object, matches)

    def overlap(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(G, R) IoU of boxes (G, 4) and anchors (R, 4)."""
        return intersection_over_union(boxes[:, None], anchors)

    def is_enough(self, iou: Tensor) -> Tensor:
        """Whether anchors of this IoU with the object that they overlap most are matched."""
        return iou >= self.positive

    def ignored(self, unmatched: Tensor, anchors: Tensor, objects: Tensor, regions: Tensor) -> Tensor:
        """See `assign.Matcher`."""
        return unmatched & any_of(regions, anchors, is_half_inside)
