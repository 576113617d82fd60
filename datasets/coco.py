"""The COCO and LVIS annotation file, as typed records."""

import json
from pathlib import Path
from typing import Annotated, Literal

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


class CocoFile(msgspec.Struct):
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


def decode(path: Path) -> CocoFile:
    """The records of a COCO or LVIS annotation file; DataError if it is missing, truncated or something else."""
    try:
        content = path.read_bytes()
        try:
            return msgspec.json.decode(content, type=CocoFile)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # Python writes NaN and Infinity, which are not JSON, and some editors a byte order mark: `json` reads both.
            return msgspec.convert(json.loads(content), CocoFile)
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation file: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise DataError(
            f"{path}: not a COCO or LVIS annotation file: {error}. Expected an object with the lists 'images' (id, width, "
            "height, file_name or coco_url), 'annotations' (id, image_id, category_id, bbox) and 'categories' (id, name)"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path}: not JSON: {error}. The file has {len(content):,} bytes: is it a complete copy, and not compressed?"
        ) from error
