"""Which detection takes which object, greedily and by falling score, in many images at once.

Cells and letters as in `columnar.py`: P pairs of a detection and an object, T IoU thresholds, S object sizes.
"""

import numpy as np
from numpy.typing import NDArray

from .ground_truth import SIZE_RANGES

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)

_UNMATCHED = -1


def overlap(boxes: NDArray, others: NDArray, crowd: NDArray) -> NDArray[np.float64]:
    """IoU of (P, 4) xywh boxes with as many others; with a crowd, the part of the box that lies in it.

    The operations and their order are those of `pycocotools`; another order would change last bits, and so matches.
    """
    width = np.minimum(boxes[:, 0] + boxes[:, 2], others[:, 0] + others[:, 2]) - np.maximum(boxes[:, 0], others[:, 0])
    height = np.minimum(boxes[:, 1] + boxes[:, 3], others[:, 1] + others[:, 3]) - np.maximum(boxes[:, 1], others[:, 1])
    area, intersection = boxes[:, 2] * boxes[:, 3], width * height
    union = np.where(crowd, area, area + others[:, 2] * others[:, 3] - intersection)
    touching = (width > 0) & (height > 0)
    return np.divide(intersection, union, out=np.zeros(len(boxes)), where=touching)


def pairs_of_equal(values: NDArray, others: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (P,), (P,) of every one of `values` (D,) with every equal one of `others` (G,); both are sorted."""
    first = np.searchsorted(others, values)
    count = np.searchsorted(others, values, side="right") - first
    index = np.repeat(np.arange(len(values)), count)
    return index, np.repeat(first, count) + place_in_run(index)


def match_greedily(
    detection: NDArray, object_: NDArray, iou: NDArray, cell: NDArray, *, ignored: NDArray, crowd: NDArray
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections (D, T, S) take an object that counts, and which an ignored one; the best score chooses first.

    Args:
        detection, object_, iou: (P,) pairs within cells, sorted by detection, IoU at least the lowest threshold.
        cell: (D,) sorted, by falling score within a cell.
        ignored: (G, S). A detection takes such an object only if no other is left.
        crowd: (G,) objects that any number of detections may take.
    """
    by_preference = np.lexsort((object_, iou, detection))
    detection, object_, iou = detection[by_preference], object_[by_preference], iou[by_preference]
    # Whole numbers say what a detection wants most: the largest IoU; of equal ones the last object, since the official
    # loops replace a match by an equal one; and by `bonus` any object that counts before any ignored one.
    bonus = len(detection)
    wish = place_in_run(detection)[:, None] + bonus * ~ignored[object_]  # (P, S)
    best = np.full((len(cell), len(IOU_THRESHOLDS), len(SIZE_RANGES)), _UNMATCHED)
    taken = np.zeros((len(crowd), len(IOU_THRESHOLDS), len(SIZE_RANGES)), bool)
    for turn in _turns(detection, cell):
        who, what = detection[turn], object_[turn]
        free = (iou[turn, None] >= IOU_THRESHOLDS)[:, :, None] & ~taken[what]
        value = np.where(free, wish[turn, None, :], _UNMATCHED)
        chooser, first = np.unique(who, return_index=True)
        best[chooser] = np.maximum.reduceat(value, first)
        taken[what] |= free & (value == best[who]) & ~crowd[what, None, None]
    return best >= bonus, (best != _UNMATCHED) & (best < bonus)


def _turns(detection: NDArray, cell: NDArray) -> list[NDArray[np.int64]]:
    """Pair indices of each turn: the first turn has every cell's best detection, the second the next best, …

    Cells do not compete, so that all their turns can be taken at once. Pairs stay sorted by detection.
    """
    candidates, pair_candidate = np.unique(detection, return_inverse=True)
    turn = place_in_run(cell[candidates])[pair_candidate]
    order = np.argsort(turn, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(turn[order])) + 1) if len(order) else []


def place_in_run(values: NDArray) -> NDArray[np.int64]:
    """0, 1, 2, … within each run of equal values; `values` (D,) is sorted."""
    return np.arange(len(values)) - np.searchsorted(values, values)


def is_in(cells: NDArray, table: NDArray) -> NDArray[np.bool_]:
    """Which of `cells` (D,) are in the sorted `table`."""
    return np.searchsorted(table, cells) < np.searchsorted(table, cells, side="right")
