"""Detections as the JSON that COCO and LVIS take as results: a list of {image_id, category_id, bbox, score}."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import numpy as np

from ..errors import ResultsError
from .columns import Records

_RECORDS_AT_ONCE = 100_000

_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


# gc=False: records hold no cycles, and the collector would walk millions of them again and again while they are made.
class _Record(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    score: float


def read_json(path: Path) -> Records:
    """The detections of a file, in its order. Raises ResultsError: missing, truncated, no list, a key missing or mistyped."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: cannot read the results file: {error.strerror}") from error
    try:
        parts = [_columns(records) for records in _batches(content)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        parts = [_columns(_decode_whole(path, content))]  # tells what is wrong, and at which place in the file
    return Records(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def write_json(file: BinaryIO, records: Records) -> None:
    """Write finite numbers unrounded: reading them back gives the same values."""
    file.write(b"[")
    for start in range(0, len(records.scores), _RECORDS_AT_ONCE):
        part = slice(start, start + _RECORDS_AT_ONCE)
        rows = zip(
            records.image_ids[part].tolist(), records.category_ids[part].tolist(),
            records.boxes_xywh[part].astype(float).tolist(), records.scores[part].astype(float).tolist(),
            strict=True,
        )  # fmt: skip
        file.write(b",\n" if start else b"")
        file.write(b",\n".join(msgspec.json.encode(_Record(*row)) for row in rows))
    file.write(b"]\n")


def _batches(content: bytes) -> Iterator[list[_Record]]:
    """The records some at a time: all at once would take four times the memory of the file."""
    rows = msgspec.json.decode(content, type=list[msgspec.Raw])
    for start in range(0, max(1, len(rows)), _RECORDS_AT_ONCE):
        some = b",".join(rows[start : start + _RECORDS_AT_ONCE])
        yield msgspec.json.decode(b"[" + some + b"]", type=list[_Record])


def _columns(records: list[_Record]) -> Records:
    return Records(
        np.array([r.image_id for r in records], np.int64),
        np.array([r.category_id for r in records], np.int64),
        np.array([r.bbox for r in records], np.float64).reshape(-1, 4),
        np.array([r.score for r in records], np.float64),
    )


def _decode_whole(path: Path, content: bytes) -> list[_Record]:
    try:
        try:
            return msgspec.json.decode(content, type=list[_Record])
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # Python writes NaN and Infinity, which are not JSON. Read them too, so as to tell which detections they are.
            return msgspec.convert(json.loads(content), list[_Record])
    except msgspec.ValidationError as error:
        raise ResultsError(
            f"{path}: {error}; expected a list of {{image_id, category_id, bbox: [x, y, width, height], score}}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(
            f"{path}: not JSON: {error}. The file has {len(content):,} bytes: is it a complete copy, and not compressed?"
        ) from error
