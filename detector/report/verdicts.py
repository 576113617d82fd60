"""What the protocol makes of every detection at IoU 0.5, on which the errors, thresholds and calibration are based.

D detections that count, G objects, K classes, T IoU thresholds, S object sizes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..evaluation.columnar import ColumnarEvaluator, by_class
from ..evaluation.ground_truth import SIZE_RANGES, GroundTruth
from ..evaluation.matching import IOU_THRESHOLDS, overlap, pairs_of_equal, place_in_run
from ..results.columns import DetectionColumns

IOU = float(IOU_THRESHOLDS[0])


class Verdicts(NamedTuple):
    """The detections that the protocol counts, by class and falling score, and the verdicts at IoU 0.5.

    Left out are those beyond the limits and, on federated data, those of classes which were not checked in the image.
    """

    index: NDArray[np.int64]  # (D,) in the columns that were judged
    image: NDArray[np.int64]  # (D,)
    label: NDArray[np.int64]  # (D,) rising
    boxes_xywh: NDArray[np.float64]  # (D, 4)
    score: NDArray[np.float64]  # (D,)
    true_positive: NDArray[np.bool_]  # (D,)
    ignored: NDArray[np.bool_]  # (D,) neither true nor false: unmatched where objects are missing, crowd, ignore
    is_object: NDArray[np.bool_]  # (G,) objects of the ground truth that count
    found: NDArray[np.bool_]  # (G,) of these, those that a true positive took

    @property
    def false_positive(self) -> NDArray[np.bool_]:
        """(D,)"""
        return ~(self.true_positive | self.ignored)


def find_verdicts(ground_truth: GroundTruth, detections: DetectionColumns) -> tuple[Verdicts, ColumnarEvaluator]:
    """The verdicts, and the evaluator that gave them, which has seen all the detections."""
    evaluator = ColumnarEvaluator(ground_truth)
    kept = evaluator.countable(*detections)
    image, label, boxes, score = (column[kept] for column in detections)
    # Of float32 detections the sums would be rounded, and the IoU would be another than the evaluator's.
    by_cell = DetectionColumns(image, label, boxes.astype(float), score.astype(float))
    evaluator.add(*by_cell)
    matches = evaluator.state()  # the same detections, in the same order
    assert np.array_equal(matches.score, by_cell.scores), "the evaluator counts other detections than it says"
    true_positive, ignored = flags(matches.true_positive)[:, 0], flags(matches.ignored)[:, 0]
    found = _found(ground_truth, matches.cell[true_positive], by_cell.boxes_xywh[true_positive])
    order, _ = by_class(matches, ground_truth.num_classes)
    verdicts = Verdicts(
        kept[order], *(column[order] for column in by_cell),
        true_positive[order], ignored[order], ~ground_truth.ignored[:, 0], found,
    )  # fmt: skip
    return verdicts, evaluator


def flags(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(D, T*S/8) bits -> (D, T) for objects of any size."""
    return np.unpackbits(packed, axis=1)[:, : len(IOU_THRESHOLDS) * len(SIZE_RANGES) : len(SIZE_RANGES)].astype(bool)


def _found(ground_truth: GroundTruth, cell: NDArray, boxes_xywh: NDArray) -> NDArray[np.bool_]:
    """(G,) the objects that the true positives at IoU 0.5 took, which the evaluator does not keep.

    Args:
        cell, boxes_xywh: of the true positives, by cell and falling score.
    """
    detection, object_ = pairs_of_equal(cell, ground_truth.cell)
    iou = overlap(boxes_xywh[detection], ground_truth.boxes_xywh[object_], ground_truth.crowd[object_])
    near = (iou >= IOU) & ~ground_truth.ignored[object_, 0]
    detection, object_, iou = detection[near], object_[near], iou[near]
    # Of the free objects the nearest, of equally near ones the last: the evaluator's rule.
    wish = np.lexsort((object_, iou, detection))
    detection, object_ = detection[wish], object_[wish]
    turn = place_in_run(cell)[detection]
    found = np.zeros(len(ground_truth.cell), bool)
    for t in range(turn.max(initial=-1) + 1):  # the t-th best true positives of all cells at once
        mine = (turn == t) & ~found[object_]
        last = np.flatnonzero(mine)[np.diff(detection[mine], append=-1) != 0]
        found[object_[last]] = True
    assert found.sum() == len(cell), "a true positive without an object"
    return found
