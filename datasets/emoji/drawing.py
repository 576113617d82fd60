"""One image of the emoji dataset: glyphs that partly hide one another, on a textured background with distractors."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

MIN_VISIBLE = 0.7  # of a glyph's pixels that are inside the image and not behind later glyphs, at least
_MIN_SIDE = 8  # pixels, of a glyph's longer side before its rotation
_ALPHA = 64  # of 255: pixels at least so opaque are in a glyph's mask
_ROTATION = 30  # degrees at most, both ways
_OUTSIDE = 0.15  # of a glyph's width and height may lie outside the image
_TRIES = 20  # places tried for a glyph before the image is begun again with smaller glyphs
_MAX_DISTRACTORS = 6


class SceneObjects(NamedTuple):
    boxes_xywh: np.ndarray  # (G, 4) int64 pixels, tight around what is visible of each glyph
    areas: np.ndarray  # (G,) int64, visible pixels


def draw_scene(
    pictures: Sequence[Image.Image],
    *,
    image_size: tuple[int, int],
    min_size: float,
    max_size: float,
    rng: np.random.Generator,
) -> tuple[Image.Image, SceneObjects]:
    """An RGB image of all `pictures`, in their order: each scaled, rotated, flipped, recolored, and at least MIN_VISIBLE visible.

    Args:
        pictures: G RGBA pictures, cut to what is visible; later ones may hide parts of earlier ones.
        image_size: (height, width) in pixels.
        min_size, max_size: the longer side of a picture before its rotation, as a fraction of the image's shorter
            side, drawn evenly in the logarithm. Where a glyph finds no place, all of the image become smaller.

    Raises:
        ValueError: so many glyphs find no place in so small an image.
    """
    for shrink in 0.8 ** np.arange(10):
        limits = np.maximum(_MIN_SIDE, np.array([min_size, max_size]) * min(image_size) * shrink)
        layers = _Layers(_background(image_size, rng), len(pictures))
        if all(layers.place(_sprite(picture, limits, rng), rng) for picture in pictures):
            return Image.fromarray(layers.pixels.astype(np.uint8)), layers.objects()
    raise ValueError(
        f"{len(pictures)} glyphs found no place in an image of {image_size[0]} x {image_size[1]} pixels, "
        f"{_MIN_SIDE} pixels large; take a larger image_size or a smaller max_objects"
    )


class _Layers:
    """The glyphs pasted so far, and whose every pixel is."""

    def __init__(self, background: Image.Image, num_objects: int) -> None:
        self.pixels = np.asarray(background, np.float32)
        self.owners = np.zeros(self.pixels.shape[:2], np.int64)  # 0: nobody's, g + 1: of object g
        self.placed = 0
        self.totals = np.zeros(num_objects)  # mask pixels of each object, hidden ones included
        self.visible = np.zeros(num_objects)

    def place(self, sprite: np.ndarray, rng: np.random.Generator) -> bool:
        """Whether a place was found, and the sprite (h, w, 4) pasted, where it and all earlier ones stay visible."""
        mask = sprite[..., 3] >= _ALPHA
        size, bounds = np.array(mask.shape), np.array(self.owners.shape)
        lowest = np.round(-_OUTSIDE * size).astype(int)
        highest = np.maximum(lowest, bounds - size - lowest)
        for _ in range(_TRIES):
            corner = rng.integers(lowest, highest, endpoint=True)
            first, last = np.maximum(corner, 0), np.minimum(corner + size, bounds)
            window = tuple(map(slice, first, last))
            inside = tuple(map(slice, first - corner, last - corner))
            # By owner: covered[0] pixels were nobody's, covered[g + 1] would be lost to object g.
            covered = np.bincount(self.owners[window][mask[inside]], minlength=len(self.totals) + 1)
            remaining = self.visible - covered[1:]
            if covered.sum() >= max(1, MIN_VISIBLE * mask.sum()) and (remaining >= MIN_VISIBLE * self.totals).all():
                self.visible = remaining
                self.visible[self.placed] = covered.sum()
                self.totals[self.placed] = mask.sum()
                self.placed += 1
                self.owners[window][mask[inside]] = self.placed
                opacity = sprite[inside][..., 3:] / 255
                self.pixels[window] += (sprite[inside][..., :3] - self.pixels[window]) * opacity
                return True
        return False

    def objects(self) -> SceneObjects:
        boxes = np.zeros((self.placed, 4), np.int64)
        for index in range(self.placed):
            mask = self.owners == index + 1
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes[index] = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
        return SceneObjects(boxes, self.visible.astype(np.int64))


def _sprite(picture: Image.Image, limits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture at a random scale, rotation, flip and coloring: (h, w, 4) float32 in [0, 255]."""
    scale = np.exp(rng.uniform(*np.log(limits))) / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    small = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if rng.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = small.rotate(rng.uniform(-_ROTATION, _ROTATION), Image.Resampling.BICUBIC, expand=True)
    sprite = np.asarray(small.crop(small.getbbox()), np.float32).copy()
    gray = sprite[..., :3].mean(2, keepdims=True)
    tint = rng.uniform(0.7, 1.2) * rng.uniform(0.85, 1.15, 3)
    colored = (gray + (sprite[..., :3] - gray) * rng.uniform(0.5, 1.4)) * tint + rng.uniform(-15, 25)
    sprite[..., :3] = np.clip(colored, 0, 255)
    return sprite


def _background(image_size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A color gradient under clouds, with grain or stripes, and unlabeled shapes on it."""
    height, width = image_size
    cells = 32
    ramp = _ramp((cells, cells), rng)[..., None]
    coarse = rng.uniform(0, 255, 3) * ramp + rng.uniform(0, 255, 3) * (1 - ramp)
    for octave in (4, 8, 16):
        noise = Image.fromarray(rng.integers(0, 256, (octave, octave, 3), dtype=np.uint8))
        coarse += (np.asarray(noise.resize((cells, cells), Image.Resampling.BICUBIC), float) - 128) * rng.uniform(
            0, 0.25
        )
    clouds = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    kind = rng.integers(3)
    if kind == 1:  # grain
        texture = rng.integers(-25, 25, (height, width, 1), dtype=np.int16)
    elif kind == 2:  # stripes
        texture = (30 * np.sin(_ramp(image_size, rng) * rng.uniform(20, 120)))[..., None]
    else:
        texture = np.zeros((1, 1, 1))
    image = Image.fromarray(np.clip(np.asarray(clouds, np.float32) + texture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(_MAX_DISTRACTORS + 1)):
        _draw_distractor(draw, image_size, rng)
    return image


def _ramp(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(h, w) float64 that rises in a random direction, by up to 1 over the image."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.linspace(-0.5, 0.5, size[0]), np.linspace(-0.5, 0.5, size[1])
    return 0.5 + 0.7 * (np.sin(angle) * rows[:, None] + np.cos(angle) * columns)


def _draw_distractor(draw: ImageDraw.ImageDraw, image_size: tuple[int, int], rng: np.random.Generator) -> None:
    """A polygon, an ellipse, a few parallel bars or a scribble, as large as the glyphs and often outlined like them."""
    shorter = min(image_size)
    color = tuple(int(value) for value in rng.integers(0, 256, 3))
    outline = "black" if rng.random() < 0.5 else color
    thickness = max(1, round(shorter * rng.uniform(0.01, 0.04)))
    center = rng.uniform(0, 1, 2) * image_size[::-1]
    radius = shorter * rng.uniform(0.06, 0.25, 2)
    kind = rng.integers(4)
    if kind == 0:  # polygon
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        corners = center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        draw.polygon([tuple(corner) for corner in corners], fill=color, outline=outline, width=thickness)
    elif kind == 1:  # ellipse
        draw.ellipse([*(center - radius), *(center + radius)], fill=color, outline=outline, width=thickness)
    elif kind == 2:  # bars
        direction = rng.uniform(-1, 1, 2) * radius
        for step in range(rng.integers(3, 7)):
            start = center + 2.5 * step * thickness * np.array([1, 0.3])
            draw.line([*(start - direction), *(start + direction)], fill=color, width=thickness)
    else:  # scribble, much like a letter
        corners = center + rng.uniform(-1, 1, (rng.integers(3, 7), 2)) * radius
        draw.line([tuple(corner) for corner in corners], fill=outline, width=thickness, joint="curve")
