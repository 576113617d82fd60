"""How an image is seen in one training position or in the test: resized, and flipped or not."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_VIEW = 4  # sets these random numbers apart from the samplers', which begin with 1, 2 and 3


class View(NamedTuple):
    """What to do with an image."""

    size: tuple[int, int]  # height, width to resize to
    flip: bool  # left to right


def resized_size(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """The size whose short side is `short_side`, or less where the long side would exceed `long_side`.

    Args:
        size: (height, width).

    Returns:
        (height, width), each rounded to the nearest integer (half up) and at least 1.
    """
    short, long = min(size), max(size)
    # Integers throughout: the side that sets the scale comes out exactly, on every machine.
    numerator, denominator = (short_side, short) if short_side * long <= long_side * short else (long_side, long)
    height, width = (max(1, (2 * side * numerator + denominator) // (2 * denominator)) for side in size)
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


def apply_view(image: NDArray[np.uint8], boxes: NDArray, view: View) -> tuple[Tensor, NDArray[np.float32]]:
    """The image and its boxes as the view shows them.

    Args:
        image: (H, W, 3) RGB.
        boxes: (G, 4) xyxy, pixels of `image`, inside it.

    Returns:
        (3, h, w) uint8 and (G, 4) float32 xyxy, pixels of the resized image. Each axis of the boxes is scaled by the
        sizes that the image really has, which rounding sets a little off the nominal scale.
    """
    height, width = view.size
    pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    scale = np.array([width / image.shape[1], height / image.shape[0]] * 2)
    boxes = boxes * scale
    if view.flip:
        pixels = pixels[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), boxes.astype(np.float32)
