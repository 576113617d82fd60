"""Files of detections, by their suffix: compact .npz, or the JSON that COCO and LVIS take as results."""

import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ResultsError
from .columns import UNKNOWN, DetectionColumns, Records, some_ids
from .json_file import read_json, write_json
from .npz_file import read_npz, write_npz

__all__ = ["UNKNOWN", "DetectionColumns", "ResultsError", "check_suffix", "read_results", "write_results"]

_log = logging.getLogger(__name__)

_SUFFIXES = (".npz", ".json")


def read_results(
    path: Path | str, *, image_ids: ArrayLike, category_ids: ArrayLike, class_names: ArrayLike
) -> DetectionColumns:
    """The detections of a file, in its order: .npz as `write_results` makes it, or else JSON.

    Args:
        image_ids: (N,) rising ids of all images of the annotations.
        category_ids, class_names: (K,) of all classes of the annotations, by rising id. Detections of other categories are
            logged and labeled UNKNOWN, not left out: they count toward LVIS's 300 detections of an image.

    Raises:
        ResultsError: a file that is missing, truncated or of another kind; a box or score that is not finite; images that
            the annotations do not have. Of .npz also: images that nothing was looked for in, and other class names.
    """
    path = Path(path)
    if path.suffix == ".npz":
        records = read_npz(path, image_ids=image_ids, category_ids=category_ids, class_names=class_names)
    else:
        records = read_json(path)
    columns = DetectionColumns(
        _positions(records.image_ids, image_ids), _positions(records.category_ids, category_ids), *records[2:]
    )
    _check_known(path, records, columns)
    _check_finite(path, columns)
    return columns


def write_results(
    path: Path | str,
    detections: DetectionColumns,
    *,
    image_ids: ArrayLike,
    category_ids: ArrayLike,
    class_names: ArrayLike,
) -> None:
    """Write detections, float32 ones to .npz: reading them back gives the same values, and so the same AP.

    Args:
        image_ids, category_ids, class_names: of the annotations, which the file shall bear.

    Raises ResultsError for another suffix, and for a box or score that is not finite.
    """
    path = Path(path)
    check_suffix(path)
    _check_finite(path, detections)
    assert np.all(detections.labels != UNKNOWN), "a detection without a class has no category id to write"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            if path.suffix == ".npz":
                write_npz(file, detections, image_ids=image_ids, category_ids=category_ids, class_names=class_names)
            else:
                images, categories = np.asarray(image_ids), np.asarray(category_ids)
                of_rows = images[detections.image_index], categories[detections.labels]
                write_json(file, Records(*of_rows, detections.boxes_xywh, detections.scores))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_suffix(path: Path) -> None:
    """Raise ResultsError unless `write_results` can write a file of this name."""
    if path.suffix not in _SUFFIXES:
        raise ResultsError(
            f"{path}: detections are written as {' or '.join(_SUFFIXES)}; name a file with such a suffix"
        )


def _positions(ids: NDArray[np.int64], known: ArrayLike) -> NDArray[np.int64]:
    """(D,) positions of `ids` among the rising `known` ids, -1 for others."""
    known = np.asarray(known, np.int64)
    position = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[position] == ids, position, -1)


def _check_known(path: Path, records: Records, columns: DetectionColumns) -> None:
    count, unknown = len(columns.scores), columns.image_index < 0
    if unknown.any():
        raise ResultsError(
            f"{path}: {np.count_nonzero(unknown)} of {count} detections name image ids that the annotations do not have: "
            f"{some_ids(records.image_ids[unknown])}; are these the results of another dataset?"
        )
    unknown = columns.labels == UNKNOWN
    if unknown.any():
        _log.warning(
            f"{path}: {np.count_nonzero(unknown)} of {count} detections match nothing: the annotations do not have their "
            f"category ids {some_ids(records.category_ids[unknown])}"
        )


def _check_finite(path: Path, detections: DetectionColumns) -> None:
    finite = np.isfinite(detections.boxes_xywh).all(1) & np.isfinite(detections.scores)
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0])
        raise ResultsError(
            f"{path}: {np.count_nonzero(~finite)} detections have a box or score that is NaN or infinite, the first at "
            f"$[{first}]: bbox {detections.boxes_xywh[first].tolist()}, score {detections.scores[first]}"
        )
