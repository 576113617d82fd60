"""The CSV files of Open Images as columns. T boxes, V image-level labels, K classes."""

import csv
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .problems import Problems
from .tables import Piece, parse, read_table

_CORNERS = ("XMin", "YMin", "XMax", "YMax")
_FLAGS = {"1": 1.0, "0": 0.0, "-1": 0.0}  # -1 is "unknown"


class Classes(NamedTuple):
    names: list[str]  # shown to people; not always distinct
    labels: dict[str, int]  # LabelName, such as /m/01lrl, to place in the file


class Boxes(NamedTuple):
    image: NDArray[np.int32]  # (T,)
    label: NDArray[np.int32]  # (T,)
    corners: NDArray[np.float64]  # (T, 4) x1, y1, x2, y2 in fractions of the image
    group_of: NDArray[np.bool_]  # (T,) one box around more than five objects that touch


class ImageLabels(NamedTuple):
    image: NDArray[np.int32]  # (V,)
    label: NDArray[np.int32]  # (V,)
    present: NDArray[np.bool_]  # (V,) what a person answered


class Seen(NamedTuple):
    """What the tables have in common."""

    images: dict[str, int]  # ImageID to index, by first appearance
    foreign: Counter  # rows of each LabelName that the classes do not have


def read_classes(path: Path, problems: Problems) -> Classes:
    """The classes of a file of LabelName and DisplayName, with a header or without. Raises DataError if it has none."""
    names, labels = [], {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in reader:
                if len(row) != 2 or row[0] in labels:
                    problems.add(path, reader.line_num, f"expected a new LabelName and its DisplayName, found {row}")
                elif row != ["LabelName", "DisplayName"]:
                    labels[row[0]] = len(names)
                    names.append(row[1])
    except OSError as error:
        raise DataError(f"{path}: cannot read the classes: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from error
    problems.check()
    if not names:
        raise DataError(f"{path}: names no class; expected lines such as '/m/01lrl,Carnivore'")
    return Classes(names, labels)


def read_boxes(path: Path, classes: Classes, seen: Seen, problems: Problems, *, progress: bool = True) -> Boxes:
    """The boxes of the listed classes; images are added to `seen`, and what is malformed to `problems`."""
    parts = [Boxes(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 4)), np.zeros(0, bool))]
    columns = ("ImageID", "LabelName", *_CORNERS, "IsGroupOf")
    for piece in read_table(path, columns, problems, progress=progress):
        image, label = _cells(piece, classes, seen)
        corners = [parse(piece, 2 + i, float, f"a number ({name})", path, problems) for i, name in enumerate(_CORNERS)]
        corners = np.stack(corners, axis=1)
        _check_corners(path, piece, corners, problems)
        group_of = parse(piece, 6, _flag, "0, 1 or -1 (IsGroupOf)", path, problems) == 1
        listed = label >= 0
        parts.append(Boxes(image[listed], label[listed], corners[listed], group_of[listed]))
    return Boxes(*map(np.concatenate, zip(*parts, strict=True)))


def read_image_labels(
    path: Path, classes: Classes, seen: Seen, problems: Problems, *, progress: bool = True
) -> ImageLabels:
    """The verified labels of the listed classes; images are added to `seen`, and what is malformed to `problems`."""
    parts = [ImageLabels(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, bool))]
    what = "0 or 1 (Confidence); labels that no person has verified cannot be used"
    for piece in read_table(path, ("ImageID", "LabelName", "Confidence"), problems, progress=progress):
        image, label = _cells(piece, classes, seen)
        present = parse(piece, 2, _confidence, what, path, problems) == 1
        listed = label >= 0
        parts.append(ImageLabels(image[listed], label[listed], present[listed]))
    return ImageLabels(*map(np.concatenate, zip(*parts, strict=True)))


def read_size_table(
    path: Path, images: dict[str, int], problems: Problems, *, progress: bool = True
) -> list[tuple[int, int]]:
    """(height, width) of each of `images`, from a table of ImageID, Width and Height that may have others too."""
    sizes = np.ones((len(images), 2), np.int64)
    found = np.zeros(len(images), bool)
    for piece in read_table(path, ("ImageID", "Width", "Height"), problems, progress=progress):
        width, height = (parse(piece, column, _side, "a number of pixels", path, problems) for column in (1, 2))
        index = np.array([images.get(name, -1) for name in piece.columns[0]], np.int64)
        wanted = index >= 0
        sizes[index[wanted]] = np.nan_to_num(np.stack([height, width], axis=1)[wanted], nan=1)
        found[index[wanted]] = True
    for name in [name for name, index in images.items() if not found[index]]:
        problems.add(path, None, f"has no line for image {name}")
    return [tuple(size) for size in sizes.tolist()]


def _cells(piece: Piece, classes: Classes, seen: Seen) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Image and label of each row; -1 and -1 where the class is not listed."""
    images, labels = seen.images, [classes.labels.get(name, -1) for name in piece.columns[1]]
    if -1 in labels:
        seen.foreign.update(name for name, label in zip(piece.columns[1], labels, strict=True) if label < 0)
    index = [
        images.setdefault(name, len(images)) if label >= 0 else -1
        for name, label in zip(piece.columns[0], labels, strict=True)
    ]
    return np.array(index, np.int32), np.array(labels, np.int32)


def _check_corners(path: Path, piece: Piece, corners: NDArray, problems: Problems) -> None:
    known = ~np.isnan(corners).any(axis=1)  # else it is noted already
    wrong = known & ~(((corners >= 0) & (corners <= 1)).all(axis=1) & (corners[:, :2] <= corners[:, 2:]).all(axis=1))
    for row in np.flatnonzero(wrong):
        found = ", ".join(f"{name} {value:g}" for name, value in zip(_CORNERS, corners[row], strict=True))
        problems.add(path, piece.lines[row], f"{found}: expected 0 <= XMin <= XMax <= 1, and so for Y")


def _flag(text: str) -> float:
    if text not in _FLAGS:
        raise ValueError
    return _FLAGS[text]


def _confidence(text: str) -> float:
    if (number := float(text)) not in (0, 1):
        raise ValueError
    return number


def _side(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number
