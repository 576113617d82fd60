"""ATSS: matching by the statistics of each object's own candidates.

N images, R anchors over all levels, G objects, C candidates of an object; a level has H rows and W columns of locations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...losses import BACKGROUND
from ..model.boxes import any_of, are_inside, centers, intersection_over_union, is_half_inside

# Some 10 KB each while their candidates are compared.
OBJECTS_AT_ONCE = 1024


class ATSSMatcher:
    """Adaptive Training Sample Selection (Zhang et al. 2020, arXiv:1912.02424, algorithm 1).

    The candidates of an object are the anchors nearest to its center on each level, the first of equally near ones.
    Those are matched whose IoU is at least mean + standard deviation of its candidates' IoUs, and whose center lies
    inside the object. An anchor chosen by several objects goes to the one that it overlaps most, the first of equals.

    Args:
        candidates: anchors per level and object (all anchors of a level that has fewer). The paper has 9 with one
            anchor per location. With A anchors per location use 9 A: anchors of a location share their center.
    """

    margin = 0.01  # pixels that the center of an anchor lies inside of an object at least, as in ATSS's code

    def __init__(self, *, candidates: int = 9):
        if candidates < 1:
            raise ValueError(f"ATSS needs at least 1 candidate per level and object; got {candidates}")
        self.candidates = candidates

    @torch.no_grad()
    def __call__(self, anchors: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(N, R) int64: index into the boxes of the image, or BACKGROUND.

        Args:
            anchors: (R_l, 4) per level, on a grid: row by row, each from left to right, and the anchors of a location
                one after another.
            boxes: (G_i, 4) per image; G_i may be 0.

        Raises:
            ValueError: the anchors of a level are not on such a grid.
        """
        every_anchor = torch.cat(list(anchors))
        if not any(len(image) for image in boxes):
            return torch.full((len(boxes), len(every_anchor)), BACKGROUND, device=every_anchor.device)
        grids = [_grid(level) for level in anchors]
        counts = torch.tensor([len(image) for image in boxes], device=every_anchor.device)
        parts = torch.cat(list(boxes)).split(OBJECTS_AT_ONCE)
        found = [self._claims(grids, every_anchor, part) for part in parts]
        objects = torch.cat([part.objects + i * OBJECTS_AT_ONCE for i, part in enumerate(found)])
        images = torch.arange(len(boxes), device=objects.device).repeat_interleave(counts)[objects]
        claims = Claims(
            objects - (counts.cumsum(0) - counts)[images],
            torch.cat([part.anchors for part in found]) + images * len(every_anchor),
            torch.cat([part.iou for part in found]),
        )
        return _resolve(claims, len(boxes) * len(every_anchor)).view(len(boxes), -1)

    def _claims(self, grids: Sequence["Grid"], every_anchor: Tensor, boxes: Tensor) -> "Claims":
        index = self._candidates(grids, boxes)
        chosen = every_anchor[index]
        iou = intersection_over_union(boxes[:, None], chosen)
        # A single candidate has no standard deviation; it would be nan, and nothing would match.
        deviation = iou.std(dim=1, keepdim=True) if iou.shape[1] > 1 else 0.0
        inside = are_inside(centers(chosen), boxes[:, None], margin=self.margin)
        positive = (iou >= iou.mean(dim=1, keepdim=True) + deviation) & inside
        objects, column = positive.nonzero().unbind(1)
        return Claims(objects, index[objects, column], iou[objects, column])

    def ignored(self, unmatched: Tensor, anchors: Tensor, objects: Tensor, regions: Tensor) -> Tensor:
        """See `assign.Matcher`."""
        return unmatched & any_of(regions, anchors, is_half_inside)

    def _candidates(self, grids: Sequence["Grid"], boxes: Tensor) -> Tensor:
        """(G, C) indices into all R anchors."""
        points, first, candidates = centers(boxes.double()), 0, []
        for grid in grids:
            candidates.append(first + grid.nearest(points, self.candidates))
            first += len(grid.y) * len(grid.x) * grid.num_anchors
        return torch.cat(candidates, dim=1)


class Claims(NamedTuple):
    """Objects that want anchors."""

    objects: Tensor  # (P,) int64
    anchors: Tensor  # (P,) int64
    iou: Tensor  # (P,)


class Grid(NamedTuple):
    """The locations of a level."""

    x: Tensor  # (W,) float64, of the columns
    y: Tensor  # (H,) float64, of the rows
    num_anchors: int  # per location

    def nearest(self, points: Tensor, count: int) -> Tensor:
        """(G, min(count, all)) the anchors nearest to (G, 2) float64 points, nearest first; the first of equals."""
        dx, column = (self.x - points[:, :1]).abs().sort(dim=1, stable=True)
        dy, row = (self.y - points[:, 1:]).abs().sort(dim=1, stable=True)
        # The i-th column from a point and the j-th row meet at a location that i * j - 1 others are no farther than.
        locations = -(-count // self.num_anchors)
        i = torch.arange(1, min(locations, len(self.x)) + 1, device=points.device)
        j = torch.arange(1, min(locations, len(self.y)) + 1, device=points.device)
        i, j = ((i[:, None] * j) <= locations).nonzero().unbind(1)
        location, order = (row[:, j] * len(self.x) + column[:, i]).sort(dim=1)
        distance = (dx[:, i].square() + dy[:, j].square()).gather(1, order)
        nearest = location.gather(1, distance.sort(dim=1, stable=True).indices[:, :locations])
        of_location = torch.arange(self.num_anchors, device=points.device)
        return (nearest[..., None] * self.num_anchors + of_location).flatten(1)[:, :count]


def _grid(anchors: Tensor) -> Grid:
    """The grid that anchors (R_l, 4) of a level are on. Raises ValueError if it is none."""
    middle = centers(anchors.double())
    # Rounding of corners moves middles by thousandths of a pixel.
    tolerance = 0.01 * (anchors[:, 2:] - anchors[:, :2]).min()
    moved = (middle - middle[0]).abs() > tolerance
    in_location, in_row = (_first(mask) for mask in (moved.any(dim=1), moved[:, 1]))
    if len(anchors) % in_row == 0 and in_row % in_location == 0:
        locations = middle.view(len(anchors) // in_row, in_row // in_location, in_location, 2)
        x, y = locations[0, :, 0, 0], locations[:, 0, 0, 1]
        on_grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[:, :, None]
        if ((locations - on_grid).abs() <= tolerance).all():
            return Grid(x, y, in_location)
    raise ValueError(
        f"ATSS: the {len(anchors)} anchors of a level are not on a grid; expected rows of locations, equally many anchors "
        "at each, location after location, as AnchorGenerator makes them"
    )


def _first(mask: Tensor) -> int:
    """Index of the first True, the length if there is none; the first entry is never True."""
    return int(mask.int().argmax()) or len(mask)


def _resolve(claims: Claims, num_anchors: int) -> Tensor:
    """(num_anchors,): the object among those that claim an anchor which it overlaps most, the first of equals."""
    best = claims.iou.new_zeros(num_anchors).scatter_reduce_(0, claims.anchors, claims.iou, "amax")
    winner = claims.iou == best[claims.anchors]
    matches = torch.full((num_anchors,), BACKGROUND, dtype=torch.int64, device=best.device)
    return matches.scatter_reduce_(0, claims.anchors[winner], claims.objects[winner], "amin", include_self=False)
