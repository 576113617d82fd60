"""Detections of many images as flat arrays; D of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNKNOWN = -1  # the label of a category that the annotations do not have


class DetectionColumns(NamedTuple):
    """Detections in the terms of an annotation file, in any order; `ColumnarEvaluator.add(*columns)` takes them."""

    image_index: NDArray[np.int64]  # (D,) into the rising image ids of the annotations
    labels: NDArray[np.int64]  # (D,) in [0, K), or UNKNOWN
    boxes_xywh: NDArray[np.floating]  # (D, 4) pixels; float32 from a detector and from .npz, float64 from JSON
    scores: NDArray[np.floating]  # (D,) of the same type


class Records(NamedTuple):
    """Detections as a file holds them, with the ids that it gives to images and categories."""

    image_ids: NDArray[np.int64]  # (D,)
    category_ids: NDArray[np.int64]  # (D,)
    boxes_xywh: NDArray[np.floating]  # (D, 4)
    scores: NDArray[np.floating]  # (D,)


def some_ids(ids: NDArray, limit: int = 10) -> str:
    """The first distinct ids as text, and how many there are."""
    distinct = np.unique(ids)
    shown = ", ".join(map(str, distinct[:limit]))
    return shown + (f", … ({len(distinct)} in all)" if len(distinct) > limit else "")
