"""YOLO's text files as COCO JSON."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PillowImage
from tqdm import tqdm

from ..errors import DataError
from .image_sizes import read_sizes
from .names import read_names, read_text
from .output import Annotation, Category, Image, boxes_xywh, write_annotations
from .problems import Problems

_NOT_LABELS = ("classes.txt",)  # annotation tools put their list of classes among the labels


class _Object(NamedTuple):
    image: int
    label: int
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2 in fractions of the image


def convert_yolo(out: Path, *, images: Path, labels: Path, names: Path, progress: bool = True) -> list[str]:
    """Write YOLO's labels as COCO JSON; lines of text come back that say what it holds.

    A line is `class cx cy w h`, in fractions of the upright image, or `class x1 y1 x2 y2 x3 y3 …`, a polygon, which
    becomes its bounding box. An image without a file of labels, or with an empty one, has no objects. Category ids are YOLO's
    numbers, from 0; image ids follow the file names' order, from 1.

    Args:
        images: folder; its subfolders count too. File names are relative to it.
        labels: folder with the same subfolders, and a .txt for each image.
        names: data.yaml with `names`, or a text file with a class in each line.

    Raises:
        DataError: input is missing or malformed; it names the first places and counts them all.
    """
    problems, classes = Problems(), read_names(names)
    pictures = _pictures(images)
    texts = [(labels / path.relative_to(images)).with_suffix(".txt") for path in pictures]
    _check_labels(labels, texts, images, problems)
    objects = []
    for i, text in enumerate(tqdm(texts, desc="labels", unit="image", disable=not progress)):
        if text.is_file():
            objects += _read(text, i, len(classes), problems)
    sizes = read_sizes(pictures, problems, upright=True, progress=progress)
    problems.check()
    empty = len(pictures) - len({o.image for o in objects})
    write_annotations(
        out,
        images=[
            Image(i + 1, width, height, path.relative_to(images).as_posix())
            for i, (path, (height, width)) in enumerate(zip(pictures, sizes, strict=True))
        ],
        annotations=_annotations(objects, sizes),
        categories=[Category(k, name) for k, name in enumerate(classes)],
    )
    missing = sum(not text.is_file() for text in texts)
    return [
        f"{out}: {len(pictures)} images, {len(objects)} boxes of {len(classes)} classes; {empty} images without "
        f"objects, {missing} of them without a file of labels"
    ]


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    endings = PillowImage.registered_extensions()
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not pictures:
        raise DataError(f"{folder}: holds no image")
    return pictures


def _check_labels(labels: Path, expected: Sequence[Path], images: Path, problems: Problems) -> None:
    """Note labels without an image, and images that share their labels. Raises DataError if no image has labels."""
    if not labels.is_dir():
        raise DataError(f"{labels}: no such folder of labels")
    there, wanted = sorted(labels.rglob("*.txt")), set(expected)
    if not wanted & set(there):
        raise DataError(
            f"{labels}: not one file of labels for {len(wanted)} images in {images}; expected {expected[0]}, for example"
        )
    for path in there:
        if path not in wanted and path.name not in _NOT_LABELS:
            problems.add(path, None, f"labels without an image in {images}")
    for path, count in Counter(expected).items():
        if count > 1:
            problems.add(path, None, f"labels of {count} images, whose names differ in the ending alone")


def _read(path: Path, image: int, num_classes: int, problems: Problems) -> list[_Object]:
    objects = []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        try:
            objects += [_object(text.split(), image, num_classes)] if text.strip() else []
        except ValueError as error:
            problems.add(path, line, f"{error} in {text[:80]!r}")
    return objects


def _object(fields: list[str], image: int, num_classes: int) -> _Object:
    """Raises ValueError for a malformed line."""
    number, *values = [float(field) for field in fields]
    if not (number.is_integer() and 0 <= number < num_classes):
        raise ValueError(f"class {fields[0]}: expected a whole number from 0 to {num_classes - 1}")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{len(fields)} numbers: expected 5 for a box, or a class and three or more points")
    if not all(0 <= value <= 1 for value in values):  # false of NaN too
        raise ValueError("a coordinate that is not within 0 and 1")
    if len(values) == 4:
        x, y, w, h = values
        return _Object(image, int(number), (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    xs, ys = values[::2], values[1::2]
    return _Object(image, int(number), (min(xs), min(ys), max(xs), max(ys)))


def _annotations(objects: Sequence[_Object], sizes: Sequence[tuple[int, int]]) -> list[Annotation]:
    scale = np.array([(sizes[o.image][1], sizes[o.image][0]) * 2 for o in objects], np.float64).reshape(-1, 4)
    boxes = boxes_xywh(np.array([o.corners for o in objects], np.float64).reshape(-1, 4) * scale).tolist()
    return [
        Annotation(number, o.image + 1, o.label, box, math.prod(box[2:]), 0)
        for number, (o, box) in enumerate(zip(objects, boxes, strict=True), start=1)
    ]
