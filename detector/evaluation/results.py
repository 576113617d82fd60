"""Detections as columns, and as the JSON that COCO and LVIS take as results: a list of {image_id, category_id, bbox, score}."""

import json
import logging
import os
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

_log = logging.getLogger(__name__)

UNKNOWN = -1  # the label of a category that the annotations do not have

_RECORDS_PER_WRITE = 100_000

_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class ResultsError(ValueError):
    """A file of detections that cannot be read or written, and why."""


class DetectionColumns(NamedTuple):
    """Detections of many images, in any order; `ColumnarEvaluator.add(*columns)` takes them."""

    image_index: NDArray[np.int64]  # (D,) into the rising image ids of the annotations
    labels: NDArray[np.int64]  # (D,) in [0, K), or UNKNOWN
    boxes_xywh: NDArray[np.float64]  # (D, 4) pixels
    scores: NDArray[np.float64]  # (D,)


# gc=False: records hold no cycles, and the collector would walk millions of them again and again while they are made.
class _Record(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    score: float


def read_results(path: Path | str, *, image_ids: ArrayLike, category_ids: ArrayLike) -> DetectionColumns:
    """The detections of a results file, in its order.

    Args:
        image_ids: (N,) rising ids of all images of the annotations.
        category_ids: (K,) rising ids of all classes of the annotations. Detections of other categories are logged and
            labeled UNKNOWN, not left out: they count toward LVIS's 300 detections of an image.

    Raises ResultsError: a missing or truncated file, no list, a missing or mistyped key, a box or score that is not
    finite, image ids that the annotations do not have.
    """
    path = Path(path)
    records = _decode(path)
    columns = DetectionColumns(
        image_index=_positions([r.image_id for r in records], image_ids),
        labels=_positions([r.category_id for r in records], category_ids),
        boxes_xywh=np.array([r.bbox for r in records], np.float64).reshape(-1, 4),
        scores=np.array([r.score for r in records], np.float64),
    )
    unknown = [records[i].image_id for i in np.flatnonzero(columns.image_index < 0)]
    if unknown:
        raise ResultsError(
            f"{path}: {len(unknown)} of {len(records)} detections name image ids that the annotations do not have: "
            f"{_first_ids(unknown)}; are these the results of another dataset?"
        )
    unknown = [records[i].category_id for i in np.flatnonzero(columns.labels == UNKNOWN)]
    if unknown:
        _log.warning(
            f"{path}: {len(unknown)} of {len(records)} detections match nothing: the annotations do not have their "
            f"category ids {_first_ids(unknown)}"
        )
    _check_finite(path, columns)
    return columns


def write_results(
    path: Path | str, detections: DetectionColumns, *, image_ids: ArrayLike, category_ids: ArrayLike
) -> None:
    """Write detections as COCO JSON, numbers unrounded: reading them back gives the same bits, and so the same AP.

    Args:
        image_ids, category_ids: the ids of the annotations, which the file shall bear.

    Raises ResultsError for a box or score that is not finite, which JSON cannot hold.
    """
    path = Path(path)
    _check_finite(path, detections)
    assert np.all(detections.labels != UNKNOWN), "a detection without a class has no category id to write"
    images = np.asarray(image_ids)[detections.image_index].tolist()
    categories = np.asarray(category_ids)[detections.labels].tolist()
    boxes, scores = detections.boxes_xywh.astype(float).tolist(), detections.scores.astype(float).tolist()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(b"[")
            for start in range(0, len(images), _RECORDS_PER_WRITE):
                part = slice(start, start + _RECORDS_PER_WRITE)
                rows = zip(images[part], categories[part], boxes[part], scores[part], strict=True)
                file.write(b",\n" if start else b"")
                file.write(b",\n".join(msgspec.json.encode(_Record(*row)) for row in rows))
            file.write(b"]\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _decode(path: Path) -> list[_Record]:
    try:
        content = path.read_bytes()
        try:
            return msgspec.json.decode(content, type=list[_Record])
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # Python writes NaN and Infinity, which are not JSON. Read them too, so as to tell which detections they are.
            return msgspec.convert(json.loads(content), list[_Record])
    except OSError as error:
        raise ResultsError(f"{path}: cannot read the results file: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ResultsError(
            f"{path}: {error}; expected a list of {{image_id, category_id, bbox: [x, y, width, height], score}}"
        ) from error
    except ValueError as error:
        raise ResultsError(
            f"{path}: not JSON: {error}. The file has {len(content):,} bytes: is it a complete copy, and not compressed?"
        ) from error


def _positions(ids: list[int], known: ArrayLike) -> NDArray[np.int64]:
    """(D,) positions of `ids` among the rising `known` ids, -1 for others."""
    ids, known = np.array(ids, np.int64), np.asarray(known, np.int64)
    position = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[position] == ids, position, -1)


def _check_finite(path: Path, detections: DetectionColumns) -> None:
    finite = np.isfinite(detections.boxes_xywh).all(1) & np.isfinite(detections.scores)
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0])
        raise ResultsError(
            f"{path}: {np.count_nonzero(~finite)} detections have a box or score that is NaN or infinite, the first at "
            f"$[{first}]: bbox {detections.boxes_xywh[first].tolist()}, score {detections.scores[first]}"
        )


def _first_ids(ids: list[int], limit: int = 10) -> str:
    distinct = sorted(set(ids))
    return ", ".join(map(str, distinct[:limit])) + (f", … ({len(distinct)} in all)" if len(distinct) > limit else "")
