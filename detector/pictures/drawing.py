"""Pictures of boxes, for people."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GOLDEN = 0.618033988749895  # steps of the hue which keep neighboring labels far apart


def color_of(label: int) -> tuple[int, int, int]:
    """A bright RGB color, the same for a label everywhere; white for what is no class (a negative label)."""
    if label < 0:
        return 255, 255, 255
    return tuple(int(255 * c) for c in colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.85, 1.0))


def _ink_on(color: tuple[int, int, int]) -> str:
    red, green, blue = color
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 90 else "white"


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    captions: Sequence[str],
    *,
    min_side: int = 360,
    max_side: int | None = None,
) -> np.ndarray:
    """The image with captioned boxes drawn on it, enlarged so that captions can be read.

    Args:
        image: (H, W, 3) uint8.
        boxes: (D, 4) xyxy, pixels of `image`.
        labels: D classes, which choose the colors.
        captions: D texts; an empty one draws the box alone.
        min_side: the shorter side of the picture is at least this many pixels.
        max_side: the longer side is at most so many, whatever `min_side` says; None for no limit.
    """
    zoom = max(1.0, min_side / min(image.shape[:2]))
    if max_side is not None:
        zoom = min(zoom, max_side / max(image.shape[:2]))
    picture = Image.fromarray(image)
    if zoom != 1:
        picture = picture.resize((round(picture.width * zoom), round(picture.height * zoom)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(12, round(min(picture.size) / 36)))
    boxes = (np.asarray(boxes, float) * zoom).tolist()
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=color_of(label), width=2)
    # After all boxes, so that no box crosses them out.
    for (x1, y1, _, _), label, caption in zip(boxes, labels, captions, strict=True):
        if caption:
            left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
            width, height = right - left + 4, bottom - top + 4
            # Inside the picture, above the box where there is room for it.
            x = max(0, min(x1, picture.width - width))
            y = y1 - height if y1 >= height else y1
            draw.rectangle((x, y, x + width, y + height), fill=color_of(label))
            draw.text((x + 2 - left, y + 2 - top), caption, fill=_ink_on(color_of(label)), font=font)
    return np.asarray(picture)


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """The picture under a white bar with its title."""
    bar = Image.new("RGB", (picture.shape[1], 26), "white")
    ImageDraw.Draw(bar).text((4, 3), title, fill="black", font=ImageFont.load_default(size=16))
    return np.concatenate([np.asarray(bar), picture])


def side_by_side(left: np.ndarray, right: np.ndarray, titles: tuple[str, str]) -> np.ndarray:
    """Two pictures of one height beside each other, under their titles."""
    left, right = titled(left, titles[0]), titled(right, titles[1])
    return np.concatenate([left, np.full((len(left), 6, 3), 255, np.uint8), right], axis=1)


def sheet(pictures: Sequence[np.ndarray], columns: int = 2) -> np.ndarray:
    """Pictures in rows of `columns`, on white; each row is as high as its highest picture."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    gap = 10
    width = max(sum(p.shape[1] + gap for p in row) for row in rows)
    heights = [max(p.shape[0] for p in row) + gap for row in rows]
    canvas = Image.new("RGB", (width, sum(heights)), "white")
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture in row:
            canvas.paste(Image.fromarray(picture), (x, y))
            x += picture.shape[1] + gap
        y += height
    return np.asarray(canvas)
