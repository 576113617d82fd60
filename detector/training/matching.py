"""Which anchor is to find which object, and which anchors are ignored. R anchors over all levels, G objects."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from losses import BACKGROUND, IGNORE

from ..model.boxes import area, centers, intersection, intersection_over_union
from .atss import ATSSMatcher


class IoUMatcher:
    """Matches each anchor to the object that it overlaps most, if enough (RetinaNet, arXiv:1708.02002, section 4).

    Args:
        positive: anchors of at least this IoU are matched.
        negative: anchors below this IoU are background; those between the two are ignored.
        low_quality: in addition, match the anchors whose IoU with some object equals that object's best, above 0. As in
            torchvision and detectron2 they go to the object that THEY overlap most, which may be another.
    """

    def __init__(self, *, positive: float = 0.5, negative: float = 0.4, low_quality: bool = True):
        if not 0 < negative <= positive <= 1:
            raise ValueError(f"IoU thresholds must keep 0 < negative <= positive <= 1; got {negative} and {positive}")
        self.positive = positive
        self.negative = negative
        self.low_quality = low_quality

    @torch.no_grad()
    def __call__(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(R,) int64: index into boxes (the first of equals), BACKGROUND or IGNORE.

        Args:
            anchors: (R_l, 4) per level.
            boxes: (G, 4); G may be 0.
        """
        every_anchor = torch.cat(list(anchors))
        if len(boxes) == 0:
            return torch.full((len(every_anchor),), BACKGROUND, device=every_anchor.device)
        iou = _pairwise(intersection_over_union, boxes, every_anchor)
        best, best_object = iou.max(dim=0)
        matches = best_object.clone()
        matches[best < self.positive] = IGNORE
        matches[best < self.negative] = BACKGROUND
        if self.low_quality:
            best_of_object = iou.amax(dim=1, keepdim=True)
            # An object that overlaps no anchor has best IoU 0; matching "the best" would then take them all.
            forced = ((iou == best_of_object) & (best_of_object > 0)).any(dim=0)
            matches[forced] = best_object[forced]
        return matches


MATCHERS = {"iou": IoUMatcher, "atss": ATSSMatcher}


@torch.no_grad()
def assign(
    matcher: Callable[[Sequence[Tensor], Tensor], Tensor],
    anchors: Sequence[Tensor],
    boxes: Tensor,
    ignore_boxes: Tensor,
    *,
    image_size: tuple[int, int],
    ignore_padding: bool,
) -> Tensor:
    """(R,) int64 for the anchors of one image: index into boxes, BACKGROUND or IGNORE.

    Beyond what the matcher says, anchors that match no object are ignored if half of their area or more lies in one
    ignore box.

    Args:
        anchors: (R_l, 4) per level.
        boxes: (G, 4) objects; G may be 0.
        ignore_boxes: (M, 4) crowds and ignore regions; M may be 0.
        image_size: (height, width) without padding.
        ignore_padding: also ignore unmatched anchors whose center is outside the image.
    """
    matches = matcher(anchors, boxes)
    every_anchor = torch.cat(list(anchors))
    ignored = torch.zeros_like(matches, dtype=torch.bool)
    if len(ignore_boxes):
        covered = _pairwise(intersection, ignore_boxes, every_anchor).amax(dim=0)
        ignored |= covered >= 0.5 * area(every_anchor)
    if ignore_padding:
        x, y = centers(every_anchor).unbind(1)
        height, width = image_size
        ignored |= (x < 0) | (y < 0) | (x >= width) | (y >= height)
    matches[ignored & (matches < 0)] = IGNORE
    return matches


def _pairwise(function: Callable[[Tensor, Tensor], Tensor], boxes: Tensor, anchors: Tensor) -> Tensor:
    """(G, R) from a function of broadcast boxes; its temporaries are those of 16,384 anchors at a time."""
    return torch.cat([function(boxes[:, None], part) for part in anchors.split(16_384)], dim=1)
