"""Matching by the largest overlap. N images, R anchors over all levels, G objects of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...losses import BACKGROUND, IGNORE
from ..model.boxes import intersection_over_union, objects_in_parts
from .atss import are_legacy_objects

# How far below an object's best IoU others still count as its best, in United-Perception.
LEGACY_TOLERANCE = 1e-3


class IoUMatcher:
    """Matches each anchor to the object that it overlaps most, if enough (RetinaNet, arXiv:1708.02002, section 4).

    Args:
        positive: anchors of at least this IoU are matched.
        negative: anchors below this IoU are background; those between the two are ignored.
        low_quality: in addition, match the anchors whose IoU with some object equals that object's best, above 0. As in
            torchvision and detectron2 they go to the object that THEY overlap most, which may be another.
        legacy_offset: as United-Perception matches: an IoU of `positive` is not enough, `low_quality` forgives a
            thousandth, and objects at most 1 pixel wide or high match nothing. With IoUs of pixel-inclusive boxes.
    """

    ignores_centers = False

    def __init__(
        self, *, positive: float = 0.5, negative: float = 0.4, low_quality: bool = True, legacy_offset: bool = False
    ):
        if not 0 < negative <= positive <= 1:
            raise ValueError(f"IoU thresholds must keep 0 < negative <= positive <= 1; got {negative} and {positive}")
        self.positive = positive
        self.negative = negative
        self.low_quality = low_quality
        self.legacy_offset = legacy_offset

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
            iou = intersection_over_union(part[:, None], anchors)
            if self.legacy_offset:
                iou[~are_legacy_objects(part)] = 0
            if self.low_quality:
                # An object that overlaps no anchor has best IoU 0; matching "the best" would then take them all.
                enough = iou.amax(dim=1, keepdim=True) - (LEGACY_TOLERANCE if self.legacy_offset else 0)
                forced |= ((iou >= enough) & (iou > 0)).any(dim=0)
            best_of_part, index = iou.max(dim=0)
            best_object = torch.where(best_of_part > best, first + index, best_object)
            best = torch.max(best, best_of_part)
        too_low = best <= self.positive if self.legacy_offset else best < self.positive
        matches = best_object.masked_fill(too_low, IGNORE).masked_fill(best < self.negative, BACKGROUND)
        return torch.where(forced, best_object, matches)
