"""Anchor boxes of all pyramid levels, from the padded image size alone."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

# Multi-scale training meets hundreds of padded sizes, 3 MB of anchors each: keep a few, make the others anew.
CACHED_SIZES = 16


class AnchorGenerator:
    """Makes A = len(ratios) * len(scales) anchors at every location of every level.

    Anchor a = ratio index * len(scales) + scale index. A location is a cell of a level's map; the map of a level has
    ceil(padded size / stride) cells per axis, as strided convolutions have it.

    Args:
        strides: pixels per cell, one per level, finest first.
        base_size: side of the square anchor of scale 1, in strides.
        ratios: height / width; the area does not depend on it.
        scales: factors on the side.
        offset: where in its cell an anchor is centered, in strides: 0.5 is the middle, 0 the upper left corner.
        style: "torchvision" repeats the arithmetic of torchvision 0.29's RetinaNet: sides cut to integers, base anchors
            rounded, and padded size // map size in place of the stride. Its anchors also need offset=0. "legacy" rounds
            the sides of the anchors of one stride before they are scaled, as py-faster-rcnn and EFL's official code do.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        base_size: float = 4.0,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        scales: Sequence[float] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        offset: float = 0.5,
        style: Literal["exact", "torchvision", "legacy"] = "exact",
    ):
        self.strides = tuple(strides)
        self.num_anchors = len(ratios) * len(scales)
        self.offset = offset
        self.style = style
        scales = [base_size * scale for scale in scales]
        self._base_anchors = [self._base(stride, ratios, scales) for stride in self.strides]
        self._cache: dict[tuple[tuple[int, int], torch.device], list[Tensor]] = {}

    def __call__(self, padded_size: tuple[int, int], device: torch.device | str = "cpu") -> list[Tensor]:
        """Anchors of each level, (R_l, 4) float32 xyxy in pixels on `device`; shared between calls: do not change them.

        Anchor a of cell (y, x) is row (y * map width + x) * A + a.
        """
        key = (tuple(padded_size), torch.device(device))
        if key not in self._cache:
            if len(self._cache) == CACHED_SIZES:
                del self._cache[next(iter(self._cache))]
            # Anchors first made while evaluating are later decoded in training; autograd refuses inference tensors.
            with torch.inference_mode(False):
                self._cache[key] = [
                    self._level(base, stride, key[0]).to(key[1])
                    for base, stride in zip(self._base_anchors, self.strides, strict=True)
                ]
        return list(self._cache[key])

    def _base(self, stride: int, ratios: Sequence[float], scales: Sequence[float]) -> Tensor:
        """(A, 4) float64: the anchors of a cell, centered at the origin; scales are sides in strides."""
        sides = torch.tensor([stride * scale for scale in scales], dtype=torch.float64)
        if self.style == "torchvision":
            sides = sides.floor()
        ratio = torch.tensor(ratios, dtype=torch.float64)[:, None]
        width, height = sides / ratio.sqrt(), sides * ratio.sqrt()
        if self.style == "legacy":
            of_stride = (stride / ratio.sqrt()).round()
            width, height = sides / stride * of_stride, sides / stride * (of_stride * ratio).round()
        half_width, half_height = (width / 2).flatten(), (height / 2).flatten()
        base = torch.stack((-half_width, -half_height, half_width, half_height), dim=1)
        return base.round() if self.style == "torchvision" else base

    def _level(self, base: Tensor, stride: int, padded_size: tuple[int, int]) -> Tensor:
        """(R_l, 4) float32: the base anchors (A, 4) at every cell of a level."""
        height, width = (-(-side // stride) for side in padded_size)
        stride_y, stride_x = stride, stride
        if self.style == "torchvision":
            stride_y, stride_x = padded_size[0] // height, padded_size[1] // width
        y = (torch.arange(height, dtype=torch.float64) + self.offset) * stride_y
        x = (torch.arange(width, dtype=torch.float64) + self.offset) * stride_x
        y, x = torch.meshgrid(y, x, indexing="ij")
        centers = torch.stack((x, y, x, y), dim=-1)
        return (centers[:, :, None] + base).reshape(-1, 4).float()
