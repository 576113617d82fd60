"""Augmentations beyond resizing and flipping: options, and what is drawn for an image. Sizes are (height, width).

They draw from the sizes of images alone, before one is read; `scenes` puts together what they draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from .transforms import Colors, Region

_MAX_SIDE = 2**13


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A random part of the image is taken for the image; it is then resized as any other.

    Args:
        probability: of cropping at all.
        min_side: each side is a fraction of the image's, drawn from [min_side, 1].
    """

    probability: float = 0.5
    min_side: float = 0.5

    def __post_init__(self):
        _check(0 <= self.probability <= 1, "probability", self.probability, "in [0, 1]")
        _check(0 < self.min_side <= 1, "min_side", self.min_side, "in (0, 1]")

    def draw(self, size: tuple[int, int], random: Generator) -> Region:
        """A part of an image of `size`."""
        cropped = random.random() < self.probability
        fractions = random.uniform(self.min_side, 1, 2) if cropped else (1, 1)
        height, width = (max(1, round(side * fraction)) for side, fraction in zip(size, fractions, strict=True))
        return Region(*_corner(size, (height, width), random), height, width)


@dataclass(frozen=True, kw_only=True)
class LargeScaleJitter:
    """Images at widely differing scales (Ghiasi et al. 2021, arXiv:2012.07177, section 3), in place of `short_sides`.

    Args:
        size: at most; of an image that becomes larger a random part is shown, and a smaller one is padded as any other.
        min_scale, max_scale: limits of the scale, drawn evenly; at 1 the image just fits in `size`. The paper has 0.1 and 2.
    """

    size: tuple[int, int]
    min_scale: float = 0.1
    max_scale: float = 2.0

    def __post_init__(self):
        _check_size(self.size)
        _check_scales(self.min_scale, self.max_scale)

    def draw(self, region: Region, random: Generator) -> tuple[Region, tuple[int, int]]:
        """The part of `region` that is shown, and its size then."""
        scale = random.uniform(self.min_scale, self.max_scale)
        return fitted(region, self.size, scale=scale, limit=self.size, random=random)


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Other colors: brightness, contrast, saturation and hue, in this order (Howard 2013, arXiv:1312.5402).

    Args:
        brightness, contrast, saturation: a factor is drawn from [1 - value, 1 + value].
        hue: a shift is drawn from [-value, value] turns of the color wheel. It takes longer than all else together.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        _check(0 <= self.hue <= 0.5, "hue", self.hue, "in [0, 0.5]")

    def draw(self, random: Generator) -> Colors:
        """Random changes."""
        limits = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        return Colors(*([1, 1, 1, 0] + limits * random.uniform(-1, 1, 4)).tolist())


class Placed(NamedTuple):
    """A part of an image in a larger picture."""

    part: Region
    size: tuple[int, int]
    corner: tuple[int, int]  # top, left


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Four images around a random point (Bochkovskiy et al. 2020, arXiv:2004.10934, section 3.3).

    An image that is larger than its quarter shows a random part; what none covers has the mean color. Crop, jitter of
    scale and `short_sides` do not apply to the four.

    Args:
        probability: of a mosaic in place of one image.
        size: of the whole.
        min_scale, max_scale: limits of the scale of each image, drawn evenly; at 1 it alone would just fit in `size`.
    """

    probability: float = 0.5
    size: tuple[int, int]
    min_scale: float = 0.4
    max_scale: float = 1.0

    def __post_init__(self):
        _check(0 <= self.probability <= 1, "probability", self.probability, "in [0, 1]")
        _check_size(self.size)
        _check_scales(self.min_scale, self.max_scale)

    def draw(self, sizes: Sequence[tuple[int, int]], random: Generator) -> list[Placed]:
        """Of each of four images of these sizes the part that is shown, its size then, and where it lies."""
        center = [side // 4 + int(random.integers(side // 2 + 1)) for side in self.size]  # in the middle half
        placed = []
        for number, size in enumerate(sizes):
            after = divmod(number, 2)  # below the center? right of it?
            quarter = tuple(s - c if a else c for s, c, a in zip(self.size, center, after, strict=True))
            scale = random.uniform(self.min_scale, self.max_scale)
            part, seen = fitted(Region(0, 0, *size), self.size, scale=scale, limit=quarter, random=random)
            corner = tuple(c if a else c - s for c, s, a in zip(center, seen, after, strict=True))
            placed.append(Placed(part, seen, corner))
        return placed


@dataclass(frozen=True, kw_only=True)
class MixUp:
    """Another image shines through, and the objects of both are to be found (Zhang et al. 2019, arXiv:1902.04103, sec. 3.1).

    The other one is made to fit within the first, in its upper left corner, which keeps the size.

    Args:
        probability: of mixing at all.
        alpha: the weight of the first image is drawn from Beta(alpha, alpha).
    """

    probability: float = 0.5
    alpha: float = 1.5

    def __post_init__(self):
        _check(0 <= self.probability <= 1, "probability", self.probability, "in [0, 1]")
        _check(self.alpha > 0, "alpha", self.alpha, "above 0")

    def draw(self, size: tuple[int, int], frame: tuple[int, int], random: Generator) -> tuple[Placed, float]:
        """Where another image of `size` lies in a picture of size `frame`, and the weight of the first, in [0, 1]."""
        part, seen = fitted(Region(0, 0, *size), frame, scale=1, limit=frame, random=random)
        return Placed(part, seen, (0, 0)), float(random.beta(self.alpha, self.alpha))


# The options of `data`.
AUGMENTATIONS = {
    "large_scale_jitter": LargeScaleJitter, "crop": Crop, "color_jitter": ColorJitter, "mosaic": Mosaic, "mixup": MixUp,
}  # fmt: skip


class Augmentation(NamedTuple):
    """Which augmentations are used besides the resizing and flipping of `draw_view`; none of them by default."""

    large_scale_jitter: LargeScaleJitter | None = None
    crop: Crop | None = None
    color_jitter: ColorJitter | None = None
    mosaic: Mosaic | None = None
    mixup: MixUp | None = None


def fitted(
    region: Region, frame: tuple[int, int], *, scale: float, limit: tuple[int, int], random: Generator
) -> tuple[Region, tuple[int, int]]:
    """The part of a region that is shown, and its size then.

    Args:
        scale: the region is resized by `scale` times the factor that makes it just fit in `frame`.
        limit: at most; of a region that becomes larger a random part of this size is shown.
    """
    sides = region.height, region.width
    factor = scale * min(whole / side for whole, side in zip(frame, sides, strict=True))
    part = [min(side, max(1, round(most / factor))) for side, most in zip(sides, limit, strict=True)]
    height, width = (min(most, max(1, round(side * factor))) for side, most in zip(part, limit, strict=True))
    top, left = _corner(sides, part, random)
    return Region(region.top + top, region.left + left, *part), (height, width)


def _corner(whole: Sequence[int], part: Sequence[int], random: Generator) -> tuple[int, int]:
    top, left = (int(random.integers(side - shown + 1)) for side, shown in zip(whole, part, strict=True))
    return top, left


def _check(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise ValueError(f"{name} must be {expected}, found {value}")


def _check_size(size: tuple[int, int]) -> None:
    _check(min(size) >= 4, "size", list(size), "at least 4 x 4 (height, width)")
    _check(max(size) <= _MAX_SIDE, "size", list(size), f"at most {_MAX_SIDE} x {_MAX_SIDE} (height, width)")


def _check_scales(low: float, high: float) -> None:
    _check(0 < low <= high, "min_scale and max_scale", f"{low:g} and {high:g}", "above 0 and in this order")
