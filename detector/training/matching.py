"""Which anchor is to find which object: by IoU thresholds, or by ATSS. R anchors over all levels, G objects."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from losses import BACKGROUND, IGNORE


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
            return _background(every_anchor)
        iou = _pairwise(_iou, boxes, every_anchor)
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


class ATSSMatcher:
    """Adaptive Training Sample Selection (Zhang et al. 2020, arXiv:1912.02424, algorithm 1).

    The candidates of an object are the anchors nearest to its center on each level. Those are matched whose IoU is at
    least mean + standard deviation of its candidates' IoUs, and whose center lies inside the object. An anchor chosen
    by several objects goes to the one that it overlaps most (the first of equals). No anchor is ignored.

    Args:
        candidates: anchors per level and object (all anchors of a level that has fewer). The paper has 9 with one
            anchor per location. With A anchors per location use 9 A: anchors of a location share their center.
    """

    def __init__(self, *, candidates: int = 9):
        if candidates < 1:
            raise ValueError(f"ATSS needs at least 1 candidate per level and object; got {candidates}")
        self.candidates = candidates

    @torch.no_grad()
    def __call__(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(R,) int64: index into boxes, or BACKGROUND.

        Args:
            anchors: (R_l, 4) per level.
            boxes: (G, 4); G may be 0.
        """
        every_anchor = torch.cat(list(anchors))
        if len(boxes) == 0:
            return _background(every_anchor)
        index = self._nearest(anchors, boxes)
        chosen = every_anchor[index]
        iou = _iou(boxes[:, None], chosen)
        # A single candidate has no standard deviation; it would be nan, and nothing would match.
        deviation = iou.std(dim=1, keepdim=True) if iou.shape[1] > 1 else 0.0
        positive = (iou >= iou.mean(dim=1, keepdim=True) + deviation) & _inside(_centers(chosen), boxes[:, None])
        return _resolve(index, iou, positive, len(every_anchor))

    def _nearest(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(G, C) indices of the candidates of all levels into all R anchors."""
        nearest, first = [], 0
        for level in anchors:
            # cdist by matrix product is off by fractions of a pixel: enough to change which anchors are nearest.
            exact = "donot_use_mm_for_euclid_dist"
            distance = torch.cdist(_centers(boxes), _centers(level), compute_mode=exact)
            count = min(self.candidates, len(level))
            nearest.append(distance.topk(count, dim=1, largest=False).indices + first)
            first += len(level)
        return torch.cat(nearest, dim=1)


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
        covered = _pairwise(_intersection, ignore_boxes, every_anchor).amax(dim=0)
        ignored |= covered >= 0.5 * _area(every_anchor)
    if ignore_padding:
        x, y = _centers(every_anchor).unbind(1)
        height, width = image_size
        ignored |= (x < 0) | (y < 0) | (x >= width) | (y >= height)
    matches[ignored & (matches < 0)] = IGNORE
    return matches


def _background(anchors: Tensor) -> Tensor:
    return torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)


def _resolve(index: Tensor, iou: Tensor, positive: Tensor, num_anchors: int) -> Tensor:
    """(R,) matches from (G, C) candidates: of the objects that want an anchor, the highest IoU wins, then the first."""
    objects = torch.arange(len(index), device=index.device)[:, None].expand_as(index)[positive]
    index, iou = index[positive], iou[positive]
    best = iou.new_zeros(num_anchors).scatter_reduce_(0, index, iou, "amax")
    winner = iou == best[index]
    matches = torch.full((num_anchors,), BACKGROUND, dtype=torch.int64, device=index.device)
    return matches.scatter_reduce_(0, index[winner], objects[winner], "amin", include_self=False)


def _pairwise(function: Callable[[Tensor, Tensor], Tensor], boxes: Tensor, anchors: Tensor) -> Tensor:
    """(G, R) from a function of broadcast boxes; its temporaries are those of 16,384 anchors at a time."""
    return torch.cat([function(boxes[:, None], part) for part in anchors.split(16_384)], dim=1)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area shared by broadcast (..., 4) boxes."""
    sides = torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])
    return sides.clamp(min=0).prod(dim=-1)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    intersection = _intersection(a, b)
    return intersection / (_area(a) + _area(b) - intersection)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def _centers(boxes: Tensor) -> Tensor:
    """(..., 2) as x, y."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points are inside broadcast boxes, more than 0.01 pixels from every side (as in ATSS's code)."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1).amin(dim=-1) > 0.01
