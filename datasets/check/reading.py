"""Annotation files of any quality, as columns: nothing here raises for what a file says.

`read_annotations` ends at the first mistake, and whoever repairs a dataset wants to know them all.
"""

import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..annotations.coco_stream import IrregularFileError, stream_lists
from .findings import Finding, found


# Like the records of `coco.py`, but with anything for a value; None is a missing field.
class LooseImage(msgspec.Struct, gc=False):
    id: Any = None
    width: Any = None
    height: Any = None
    file_name: Any = None
    coco_url: Any = None
    neg_category_ids: Any = None
    not_exhaustive_category_ids: Any = None


class LooseAnnotation(msgspec.Struct, gc=False):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = None
    iscrowd: Any = None
    ignore: Any = None


class LooseCategory(msgspec.Struct, gc=False):
    id: Any = None
    name: Any = None
    frequency: Any = None
    image_count: Any = None
    instance_count: Any = None


_LISTS = {"images": LooseImage, "annotations": LooseAnnotation, "categories": LooseCategory}


class Column(NamedTuple):
    """A field of all records."""

    values: NDArray  # of which those that are not usable mean nothing
    usable: NDArray[np.bool_]


class LooseObjects(NamedTuple):
    """The annotations as columns, in the order of the file."""

    ids: Column  # (T,) int64
    image_ids: Column  # (T,) int64
    category_ids: Column  # (T,) int64
    boxes_xywh: Column  # (T, 4) float64
    areas: Column  # (T,) float64, NaN where the file does not say
    crowd: Column  # (T,) bool
    ignore: Column  # (T,) bool

    @classmethod
    def of(cls, records: Sequence[LooseAnnotation]) -> "LooseObjects":
        """The columns of some annotations."""
        return cls(
            whole_numbers([r.id for r in records]),
            whole_numbers([r.image_id for r in records]),
            whole_numbers([r.category_id for r in records]),
            _boxes([r.bbox for r in records]),
            _areas([r.area for r in records]),
            _flags([r.iscrowd for r in records]),
            _flags([r.ignore for r in records]),
        )


class Content(NamedTuple):
    """What a file holds, as far as it could be read."""

    images: list[LooseImage]
    categories: list[LooseCategory]
    objects: LooseObjects


def read_loosely(path: Path, split: str) -> tuple[Content | None, list[Finding]]:
    """The content of an annotation file, None if it is no JSON object; and what is wrong with its outer form."""
    try:
        return _streamed(path), []
    except IrregularFileError:
        pass
    except OSError as error:
        return None, found(split, "error", "the annotation file cannot be read", [f"{path}: {error.strerror}"])
    text = path.read_bytes()
    try:
        # Polygons would take gigabytes as Python lists.
        file = json.loads(text, object_hook=_without_polygons)
    except (ValueError, RecursionError) as error:
        return None, found(split, "error", "the annotation file is not JSON", [f"{error}, in {len(text):,} bytes"])
    if not isinstance(file, dict):
        where = [f"a {type(file).__name__} is at its top level"]
        return None, found(split, "error", "the annotation file is not an object with lists", where)
    return _sorted_out(file, split)


def whole_numbers(values: list) -> Column:
    """int64 of each value; 1.0 passes for 1, as it does in `read_annotations`."""
    plain = _plain(values, {int}, np.int64)
    if plain is not None:
        return Column(plain, np.ones(len(values), bool))
    numbers = [_whole_number(value) for value in values]
    usable = np.array([number is not None for number in numbers], bool)
    return Column(np.array([number or 0 for number in numbers], np.int64), usable)


def _whole_number(value: Any) -> int | None:
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    return int(value) if whole and -(2**63) <= value < 2**63 else None


def _streamed(path: Path) -> Content:
    images, categories, parts = [], [], [LooseObjects.of([])]
    for key, records in stream_lists(path, _LISTS):
        if key == "annotations":
            parts.append(LooseObjects.of(records))
        else:
            (images if key == "images" else categories).extend(records)
    columns = (Column(*map(np.concatenate, zip(*pieces, strict=True))) for pieces in zip(*parts, strict=True))
    return Content(images, categories, LooseObjects(*columns))


def _sorted_out(file: dict, split: str) -> tuple[Content, list[Finding]]:
    findings, lists = [], {}
    for key, kind in _LISTS.items():
        value = file.get(key, [])
        if key not in file or not isinstance(value, list):
            where = "is missing" if key not in file else f"is a {type(value).__name__}"
            findings += found(split, "error", f"'{key}' is not a list", [f"'{key}' {where}"])
            value = []
        strange = [f"{key}[{i}]" for i, record in enumerate(value) if not isinstance(record, dict)]
        findings += found(split, "error", f"entries of '{key}' that are no objects", strange)
        lists[key] = [msgspec.convert(record, kind) for record in value if isinstance(record, dict)]
    return Content(lists["images"], lists["categories"], LooseObjects.of(lists["annotations"])), findings


def _without_polygons(record: dict) -> dict:
    record.pop("segmentation", None)
    return record


def _boxes(values: list) -> Column:
    if set(map(type, values)) <= {list} and set(map(len, values)) <= {4}:
        numbers = _plain(list(chain.from_iterable(values)), {int, float}, np.float64)
        if numbers is not None:
            return Column(numbers.reshape(-1, 4), np.ones(len(values), bool))
    boxes = [_box(value) for value in values]
    usable = np.array([box is not None for box in boxes], bool)
    return Column(np.array([box or [math.nan] * 4 for box in boxes], np.float64).reshape(-1, 4), usable)


def _box(value: Any) -> list[float] | None:
    numbers = [_number(x) for x in value] if isinstance(value, list) else []
    return None if len(numbers) != 4 or None in numbers else numbers


def _areas(values: list) -> Column:
    """NaN where the file does not say, which is as good; what else is not finite is not usable."""
    areas = _plain(values, {int, float}, np.float64)
    if areas is None:
        numbers = [math.nan if value is None else _number(value) for value in values]
        areas = np.array([math.inf if number is None else number for number in numbers], np.float64)
    given = np.array([value is not None for value in values], bool)
    return Column(areas, np.isfinite(areas) | ~given)


def _flags(values: list) -> Column:
    known = np.array([_is_flag(value) for value in values], bool)
    return Column(np.array([value in (True, "1") for value in values], bool), known)


def _is_flag(value: Any) -> bool:
    return value is None or value in (0, 1, "0", "1")


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _plain(values: list, types: set[type], dtype: type) -> NDArray | None:
    """The values as an array if they all are of these types, and fit: at the speed of C, for a million of them."""
    if not set(map(type, values)) <= types:
        return None
    try:
        return np.array(values, dtype)
    except OverflowError:
        return None
