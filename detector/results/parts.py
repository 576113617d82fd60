"""Detections kept in a file while they are made, by each process in its own, and put together at the end.

So neither do all detections lie in memory while a network runs, nor are they sent from process to process.
"""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import ResultsError
from .columns import DetectionColumns

_RECORD = np.dtype([("image_index", "i4"), ("label", "i4"), ("box_xywh", "f4", 4), ("score", "f4")])


def part_path(path: Path, rank: int) -> Path:
    """Where process `rank` keeps its detections while those of all are on their way to `path`."""
    return path.with_name(f"{path.name}.{rank}.part")


def remove_parts(path: Path) -> None:
    """Remove the parts of `path`, whichever processes they are of, those of a run that was killed among them."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.[0-9]*.part"):
        part.unlink(missing_ok=True)


def record(detections: Iterable[DetectionColumns], part: Path) -> Iterator[DetectionColumns]:
    """The same float32 detections, each written to the file `part` before it is handed on; no file is left by an error."""
    try:
        with open(part, "wb") as file:
            for columns in detections:
                file.write(_packed(columns).tobytes())
                yield columns
    except BaseException:  # an interrupt and the end of a generator that nobody drains are among them
        part.unlink(missing_ok=True)
        raise


def recorded(parts: Sequence[Path]) -> DetectionColumns:
    """What the processes have recorded, by image; the detections of an image in the order in which they came.

    Raises ResultsError for a part that is not there.
    """
    missing = [str(part) for part in parts if not part.exists()]
    if missing:
        raise ResultsError(
            f"{', '.join(missing)}: not there, where that process should have kept its detections; name a file in a folder "
            "that all processes share"
        )
    rows = np.concatenate([np.fromfile(part, _RECORD) for part in parts])
    # Stable: equal scores rank as they come.
    rows = rows[np.argsort(rows["image_index"], kind="stable")]
    return DetectionColumns(
        rows["image_index"].astype(np.int64), rows["label"].astype(np.int64), rows["box_xywh"], rows["score"]
    )


def _packed(columns: DetectionColumns) -> np.ndarray:
    assert columns.boxes_xywh.dtype == columns.scores.dtype == np.float32, "recorded detections must not be rounded"
    rows = np.empty(len(columns.scores), _RECORD)
    for name, column in zip(_RECORD.names, columns, strict=True):
        rows[name] = column
    return rows
