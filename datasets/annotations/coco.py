"""The COCO and LVIS annotation file, as typed records."""

import json
import math
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .coco_stream import IrregularFileError, stream_lists

Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


# Fields that are not named here, the polygons above all, are skipped without making objects of them.
class CocoImage(msgspec.Struct, gc=False):
    id: Id
    width: Side
    height: Side
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[Id] | None = None
    not_exhaustive_category_ids: list[Id] | None = None


class CocoAnnotation(msgspec.Struct, gc=False):
    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | bool | None = None
    ignore: int | bool | None = None


class CocoCategory(msgspec.Struct):
    id: Id
    name: str
    frequency: Literal["r", "c", "f"] | None = None


_WHOLE_NUMBERS = {"id", "image_id", "category_id", "width", "height", "iscrowd", "ignore"}


class CocoFile(msgspec.Struct):
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


_LISTS = {"images": CocoImage, "annotations": CocoAnnotation, "categories": CocoCategory}


class Objects(NamedTuple):
    """The annotations as columns, in the order of the file."""

    ids: NDArray[np.int64]  # (T,)
    image_ids: NDArray[np.int64]  # (T,)
    category_ids: NDArray[np.int64]  # (T,)
    boxes_xywh: NDArray[np.float64]  # (T, 4), NaN where the file has no box
    areas: NDArray[np.float64]  # (T,) of the box where the file does not say
    crowd: NDArray[np.bool_]  # (T,)
    ignore: NDArray[np.bool_]  # (T,)

    @classmethod
    def of(cls, annotations: list[CocoAnnotation]) -> "Objects":
        """The columns of some annotations."""
        # A comprehension each: faster than all fields at once, in a tuple per annotation.
        corners = chain.from_iterable([a.bbox for a in annotations])
        return cls(
            np.array([a.id for a in annotations], np.int64),
            np.array([a.image_id for a in annotations], np.int64),
            np.array([a.category_id for a in annotations], np.int64),
            np.fromiter(corners, np.float64, 4 * len(annotations)).reshape(-1, 4),
            np.array([a.bbox[2] * a.bbox[3] if a.area is None else a.area for a in annotations], np.float64),
            np.array([a.iscrowd for a in annotations], np.bool_),  # None becomes False
            np.array([a.ignore for a in annotations], np.bool_),
        )


class Content(NamedTuple):
    """What an annotation file holds."""

    images: list[CocoImage]
    categories: list[CocoCategory]
    objects: Objects


def decode(path: Path) -> Content:
    """The records of a COCO or LVIS annotation file; DataError if it is truncated or something else.

    Boxes that are not four numbers become NaN: `usable_objects` counts and names them.

    Raises OSError for a file that cannot be read.
    """
    try:
        return _streamed(path)
    except IrregularFileError:
        file = _decode_whole(path)
        return Content(file.images, file.categories, Objects.of(file.annotations))


def _streamed(path: Path) -> Content:
    """The content, with the objects turned to columns as they are read: memory for the columns, not for the polygons."""
    images, categories, parts = [], [], [Objects.of([])]
    for key, records in stream_lists(path, _LISTS):
        if key == "annotations":
            parts.append(Objects.of(records))
        else:
            (images if key == "images" else categories).extend(records)
    return Content(images, categories, Objects(*map(np.concatenate, zip(*parts, strict=True))))


def _decode_whole(path: Path) -> CocoFile:
    content = path.read_bytes()
    try:
        try:
            return msgspec.json.decode(content, type=CocoFile)
        except msgspec.DecodeError:
            # The slow way, for what annotation tools write besides the letter of the format: NaN and Infinity, which
            # are not JSON, a byte order mark, whole numbers as 1.0, annotations without a box.
            return msgspec.convert(_tolerant(json.loads(content)), CocoFile)
    except msgspec.ValidationError as error:
        raise DataError(
            f"{path}: not a COCO or LVIS annotation file: {error}. Expected an object with the lists 'images' (id, width, "
            "height, file_name or coco_url), 'annotations' (id, image_id, category_id, bbox) and 'categories' (id, name)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not JSON: {error}. The file has {len(content):,} bytes: is it a complete copy, and not compressed?"
        ) from error


def _tolerant(file: Any) -> Any:
    """The content of a JSON file with the usual slips of annotation tools put right, and everything else left alone."""
    if not isinstance(file, dict):
        return file
    lists = {key: file.get(key) for key in CocoFile.__struct_fields__}
    for record in [
        r for records in lists.values() if isinstance(records, list) for r in records if isinstance(r, dict)
    ]:
        for key in _WHOLE_NUMBERS & record.keys():
            if isinstance(record[key], float) and record[key].is_integer():
                record[key] = int(record[key])
        if record.get("iscrowd") in ("0", "1"):
            record["iscrowd"] = int(record["iscrowd"])
        if record.get("frequency") not in ("r", "c", "f"):
            record.pop("frequency", None)
    for annotation in lists["annotations"] if isinstance(lists["annotations"], list) else []:
        if isinstance(annotation, dict) and not _is_box(annotation.get("bbox")):
            annotation["bbox"] = [math.nan] * 4
    return {key: value for key, value in lists.items() if value is not None}


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(x, int | float) for x in value)
