"""FCOS's matching of points without anchors. N images, R points over all levels, G objects."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...losses import BACKGROUND
from ..model.boxes import any_of, area, centers, is_half_inside, objects_in_parts


class CenterSamplingMatcher:
    """Matches points near the center of an object of the size for their level (Tian et al. 2019, arXiv:1904.01355).

    A point at stride s belongs to the objects that it is inside of, less than `radius` s from the center on either axis,
    if the farthest of their sides is more than 4 s and at most 8 s away (section 3.2: 64, 128, 256 and 512 pixels part
    the levels of strides 8 to 128; the first level has no lower limit, the last no upper one). Among several it goes to
    the smallest, the first of equals. No point is ignored. The limit of distance, "center sampling", came after the
    paper's first version; radius 1.5 is that of its code.

    Args:
        radius: in strides.
        anchor_size: the points are given as centers of square anchors, one per location, whose side is so many strides.
    """

    def __init__(self, *, radius: float = 1.5, anchor_size: float):
        if radius <= 0:
            raise ValueError(f"center sampling needs a radius above 0 strides; got {radius:g}")
        self.radius = radius
        self.anchor_size = anchor_size

    @torch.no_grad()
    def __call__(self, anchors: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(N, R) int64: index into the boxes of the image, or BACKGROUND.

        Args:
            anchors: (R_l, 4) per level, finest first.
            boxes: (G_i, 4) per image; G_i may be 0.
        """
        every_anchor = torch.cat(list(anchors))
        points, strides = centers(every_anchor), (every_anchor[:, 2] - every_anchor[:, 0]) / self.anchor_size
        nearest, farthest = 4 * strides, 8 * strides
        nearest[: len(anchors[0])] = 0
        farthest[len(every_anchor) - len(anchors[-1]) :] = torch.inf
        return torch.stack([self._match(points, strides, nearest, farthest, image) for image in boxes])

    def ignored(self, unmatched: Tensor, anchors: Tensor, objects: Tensor, regions: Tensor) -> Tensor:
        """See `assign.Matcher`."""
        return unmatched & any_of(regions, anchors, is_half_inside)

    def _match(self, points: Tensor, strides: Tensor, nearest: Tensor, farthest: Tensor, boxes: Tensor) -> Tensor:
        smallest = points.new_full((len(points),), torch.inf)
        matches = torch.full((len(points),), BACKGROUND, device=points.device)
        for first, part in objects_in_parts(boxes, len(points)):
            before, after = points - part[:, None, :2], part[:, None, 2:] - points  # (G, R, 2): x, y
            reach = torch.max(before, after).amax(dim=-1)
            off_center = (before - after).abs().amax(dim=-1) / 2
            sampled = (torch.min(before, after).amin(dim=-1) > 0) & (off_center < self.radius * strides)
            sampled &= (reach > nearest) & (reach <= farthest)
            best, index = torch.where(sampled, area(part)[:, None], torch.inf).min(dim=0)
            better = best < smallest
            smallest = torch.where(better, best, smallest)
            matches = torch.where(better, first + index, matches)
        return matches
