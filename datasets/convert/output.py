"""The JSON file that converters write."""

import os
import secrets
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

_BATCH = 2**14  # records that are encoded at once


class Image(msgspec.Struct, omit_defaults=True, gc=False):
    id: int
    width: int
    height: int
    file_name: str
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class Annotation(msgspec.Struct, omit_defaults=True, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int  # has no default and so is always written: pycocotools needs it
    ignore: int = 0


class Category(msgspec.Struct, omit_defaults=True):
    id: int
    name: str
    freebase_id: str | None = None


def boxes_xywh(corners: NDArray) -> NDArray[np.float64]:
    """Boxes of corners x1, y1, x2, y2 (T, 4) in pixels, to a thousandth: decimal fractions of an image say no more."""
    corners = np.round(np.asarray(corners, np.float64).reshape(-1, 4), 3)
    return np.concatenate([corners[:, :2], np.round(corners[:, 2:] - corners[:, :2], 3)], axis=1)


def write_annotations(
    path: Path, *, images: Iterable[Image], annotations: Iterable[Annotation], categories: Iterable[Category]
) -> None:
    """Write the file in one step: a reader never sees half of it, and an error leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    lists = {"images": images, "annotations": annotations, "categories": categories}
    try:
        with open(temporary, "xb") as file:
            for position, (key, records) in enumerate(lists.items()):
                file.write(b'%s"%s":[' % (b"," if position else b"{", key.encode()))
                file.writelines(_encoded(records))
                file.write(b"]")
            file.write(b"}\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _encoded(records: Iterable[msgspec.Struct]) -> Iterator[bytes]:
    records, separator = iter(records), b""
    for first in records:
        batch = msgspec.json.encode(list(chain([first], islice(records, _BATCH - 1))))
        yield separator + batch[1:-1]  # without the brackets
        separator = b","
