"""How an image is seen: a part of it or all, resized, flipped or not, in its colors or in others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

_VIEW = 4  # sets these random numbers apart from the samplers', which begin with 1, 2 and 3


class Region(NamedTuple):
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class Colors(NamedTuple):
    """Changes of color, in this order; the factors 1, 1, 1 and the shift 0 change nothing."""

    brightness: float
    contrast: float
    saturation: float
    hue: float  # shift in turns of the color wheel, in [-0.5, 0.5]


class View(NamedTuple):
    """What to do with an image."""

    size: tuple[int, int]  # height, width to resize to
    flip: bool  # left to right
    crop: Region | None = None  # the part that is resized, before the flip; none: all
    colors: Colors | None = None


def resized_size(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """The size whose short side is `short_side`, or less where the long side would exceed `long_side`.

    Args:
        size: (height, width).

    Returns:
        (height, width), each rounded to the nearest integer (half to even, as in OpenCV) and at least 1.
    """
    scale = min(short_side / min(size), long_side / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def draw_view(
    size: tuple[int, int], *, seed: int, position: int, short_sides: Sequence[int], long_side: int, flip: float
) -> View:
    """A random view: a function of `seed` and of `position` in the training stream, and of nothing else.

    Args:
        size: (height, width) of the image.
        short_sides: one of them is drawn, all equally likely.
        long_side: at most.
        flip: probability in [0, 1].
    """
    generator = np.random.default_rng((_VIEW, seed, position))
    flipped = bool(generator.random() < flip)
    short_side = short_sides[int(generator.integers(len(short_sides)))]
    return View(resized_size(size, short_side, long_side), flipped)


def apply_view(
    image: NDArray[np.uint8], boxes: NDArray, view: View, *, antialias: bool = True, last_pixel: int = 0
) -> tuple[Tensor, NDArray[np.float32]]:
    """The image and its boxes as the view shows them.

    Args:
        image: (H, W, 3) RGB.
        boxes: (G, 4) xyxy, pixels of `image`, inside it.
        antialias: False takes the four nearest pixels only, however much smaller the image becomes, as OpenCV does.
        last_pixel: 1 scales x1 and x2 - 1, the first and the last pixel, in place of x1 and x2.

    Returns:
        (3, h, w) uint8, with the channels last in memory, and (G, 4) float32 xyxy, pixels of the resized image; boxes are
        clipped to the crop before it is resized, and those outside have no area. Each axis of the boxes is scaled by the
        sizes that the image really has, which rounding sets a little off the nominal scale.
    """
    top, left, height, width = view.crop or Region(0, 0, *image.shape[:2])
    boxes = (boxes - [left, top, left, top]).clip(0, [width, height, width, height])
    if view.flip:  # first: it is no longer the same after scaling by pixels
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    last = np.array([0, 0, last_pixel, last_pixel])
    scale = np.array([view.size[1], view.size[0]] * 2) / [width, height, width, height]
    boxes = (boxes - last) * scale + last
    pixels = torch.from_numpy(image[top : top + height, left : left + width].copy())
    pixels = (pixels.flip(1) if view.flip else pixels).permute(2, 0, 1)
    return _resized(pixels, view, antialias), boxes.astype(np.float32)


def visible_fraction(boxes: NDArray, region: Region) -> NDArray[np.float64]:
    """(G,) how much of the area of each box (G, 4), xyxy, lies in the region; 0 for a box without area."""
    top, left, height, width = region
    sides = boxes[:, 2:] - boxes[:, :2]
    shown = boxes[:, 2:].clip(max=[left + width, top + height]) - boxes[:, :2].clip(min=[left, top])
    return shown.clip(min=0).prod(axis=1) / sides.prod(axis=1).clip(min=np.finfo(float).tiny)


def _resized(pixels: Tensor, view: View, antialias: bool) -> Tensor:
    """Pixels (3, H, W) in the size and the colors of the view."""
    # Colors cost more than resizing: change them where there are fewer pixels.
    first = pixels.shape[1] * pixels.shape[2] < view.size[0] * view.size[1]
    if view.colors and first:
        pixels = _recolored(pixels, view.colors)
    # On 8-bit pixels with the channels last this takes an eighth of Pillow's time, and differs from it by 1 at most.
    pixels = functional.resize(pixels, list(view.size), antialias=antialias)
    return _recolored(pixels, view.colors) if view.colors and not first else pixels


def _recolored(pixels: Tensor, colors: Colors) -> Tensor:
    pixels = functional.adjust_brightness(pixels, colors.brightness)
    pixels = functional.adjust_contrast(pixels, colors.contrast)
    pixels = functional.adjust_saturation(pixels, colors.saturation)
    return functional.adjust_hue(pixels, colors.hue) if colors.hue else pixels  # by far the slowest
