"""The COCO and LVIS annotation file, as typed records."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from .errors import DataError

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


def decode(path: Path) -> CocoFile:
    """The records of a COCO or LVIS annotation file; DataError if it is missing, truncated or something else.

    Boxes that are not four numbers become NaN: `usable_objects` counts and names them.
    """
    try:
        content = path.read_bytes()
        try:
            return msgspec.json.decode(content, type=CocoFile)
        except msgspec.DecodeError:
            # The slow way, for what annotation tools write besides the letter of the format: NaN and Infinity, which
            # are not JSON, a byte order mark, whole numbers as 1.0, annotations without a box.
            return msgspec.convert(_tolerant(json.loads(content)), CocoFile)
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation file: {error.strerror}") from error
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
