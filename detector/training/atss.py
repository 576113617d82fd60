"""ATSS: matching by the statistics of each object's own candidates. R anchors over all levels, G objects, C candidates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from losses import BACKGROUND

from ..model.boxes import centers, intersection_over_union


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
            return torch.full((len(every_anchor),), BACKGROUND, device=every_anchor.device)
        index = self._nearest(anchors, boxes)
        chosen = every_anchor[index]
        iou = intersection_over_union(boxes[:, None], chosen)
        # A single candidate has no standard deviation; it would be nan, and nothing would match.
        deviation = iou.std(dim=1, keepdim=True) if iou.shape[1] > 1 else 0.0
        positive = (iou >= iou.mean(dim=1, keepdim=True) + deviation) & _inside(centers(chosen), boxes[:, None])
        return _resolve(index, iou, positive, len(every_anchor))

    def _nearest(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(G, C) indices of the candidates of all levels into all R anchors."""
        nearest, first = [], 0
        for level in anchors:
            # cdist by matrix product is off by fractions of a pixel: enough to change which anchors are nearest.
            exact = "donot_use_mm_for_euclid_dist"
            distance = torch.cdist(centers(boxes), centers(level), compute_mode=exact)
            count = min(self.candidates, len(level))
            nearest.append(distance.topk(count, dim=1, largest=False).indices + first)
            first += len(level)
        return torch.cat(nearest, dim=1)


def _resolve(index: Tensor, iou: Tensor, positive: Tensor, num_anchors: int) -> Tensor:
    """(R,) matches from (G, C) candidates: of the objects that want an anchor, the highest IoU wins, then the first."""
    objects = torch.arange(len(index), device=index.device)[:, None].expand_as(index)[positive]
    index, iou = index[positive], iou[positive]
    best = iou.new_zeros(num_anchors).scatter_reduce_(0, index, iou, "amax")
    winner = iou == best[index]
    matches = torch.full((num_anchors,), BACKGROUND, dtype=torch.int64, device=index.device)
    return matches.scatter_reduce_(0, index[winner], objects[winner], "amin", include_self=False)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points are inside broadcast boxes, more than 0.01 pixels from every side (as in ATSS's code)."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1).amin(dim=-1) > 0.01
