"""The detection metric of the Open Images Challenge 2019: AP at IoU 0.5, with verified labels and group-of boxes.

The rules are those of TensorFlow's `OpenImagesChallengeEvaluator` with its default `group_of_weight` 1:

- A detection counts only if its image was checked for its class: there is a box, or a label "present" or "absent".
- By falling score, a detection takes the one object (not a group-of box) that it overlaps most, if their IoU is at
  least 0.5 and the object is not taken. If it is taken the detection looks for no other, unlike in COCO and LVIS.
- What then is no true positive is laid to the group-of box in which most of its area lies, if that is at least half of
  it. All that lie in a group-of box are one true positive together, with the best of their scores; in others a group-of
  box is an object that was missed.
- AP is the area under the precision envelope at all recalls, not at 101 of them. Equal scores rank by image, then as
  they come; TensorFlow leaves their order open.

The annotations are those that `datasets.convert` makes with the hierarchy: boxes and labels expanded as the challenge
does, group-of boxes with `iscrowd`. `ignore` means nothing here. D detections, K classes.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...datasets.annotations.annotations import Annotations
from .columnar import ColumnarEvaluator, by_class
from .ground_truth import SIZE_RANGES, GroundTruth, Protocol
from .matching import overlap, pairs_of_equal, place_in_run
from .whole_images import WholeImages

# The limit of detections per class and image is TensorFlow's too.
OPEN_IMAGES = Protocol("open_images", federated=True, per_image=None, limits=(10_000,))

MIN_OVERLAP = 0.5


class Outcomes(NamedTuple):
    """The detections that are right or wrong; of those in a group-of box only the best is among them."""

    cell: NDArray[np.int64]  # (D,) image_index * K + label
    rank: NDArray[np.int32]  # (D,) place by score within the cell
    score: NDArray[np.float64]  # (D,)
    true_positive: NDArray[np.bool_]  # (D,)


class OpenImagesEvaluator:
    """Takes detections, any number of whole images at a time and in any order, like `ColumnarEvaluator`."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        self.ground_truth = ground_truth
        self._images = WholeImages(ground_truth.num_images)
        self._parts = [Outcomes(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0, bool))]
        self._select = ColumnarEvaluator(ground_truth).countable

    def add(self, image_index: ArrayLike, labels: ArrayLike, boxes_xywh: ArrayLike, scores: ArrayLike) -> None:
        """Match detections; the arguments and the error are those of `ColumnarEvaluator.add`."""
        for columns in self._images.chunks(image_index, labels, boxes_xywh, scores):
            self._parts.append(self._outcomes(*columns))

    def state(self) -> Outcomes:
        """Everything that was added, as arrays which can be sent to another process."""
        return Outcomes(*map(np.concatenate, zip(*self._parts, strict=True)))

    def merge(self, outcomes: Outcomes) -> None:
        """Take over the `state()` of an evaluator that saw other images; ValueError if it saw one of the same."""
        self._images.register(np.unique(outcomes.cell // self.ground_truth.num_classes))
        self._parts.append(outcomes)

    def accumulate(self) -> NDArray[np.float64]:
        """(K,) AP of each class, in [0, 1]; NaN for classes without an object."""
        outcomes, num_objects = self.state(), self.ground_truth.num_objects[:, 0]
        order, label = by_class(outcomes, len(num_objects))
        start = np.searchsorted(label, np.arange(len(num_objects) + 1))
        found = [outcomes.true_positive[order[a:b]] for a, b in pairwise(start)]
        return np.array([average_precision(*each) for each in zip(found, num_objects.tolist(), strict=True)])

    def _outcomes(self, image_index: NDArray, labels: NDArray, boxes: NDArray, scores: NDArray) -> Outcomes:
        kept = self._select(image_index, labels, boxes, scores)
        cell = image_index[kept] * self.ground_truth.num_classes + labels[kept]
        true_positive, ignored = match(cell, boxes[kept], self.ground_truth)
        rank, counted = place_in_run(cell).astype(np.int32), ~ignored
        return Outcomes(cell[counted], rank[counted], scores[kept][counted], true_positive[counted])


def open_images_truth(annotations: Annotations) -> GroundTruth:
    """The objects of a converted file as this metric sees them: all count, and `crowd` means group-of.

    Raises DataError if the file does not say which classes are absent.
    """
    judged = GroundTruth.from_annotations(annotations, OPEN_IMAGES)  # which knows nothing of crowds
    num_classes = len(annotations.category_ids)
    cell = annotations.object_images * num_classes + annotations.labels
    order = np.argsort(cell, kind="stable")
    return judged._replace(
        cell=cell[order],
        boxes_xywh=np.asarray(annotations.boxes_xywh, np.float64)[order],
        crowd=np.asarray(annotations.crowd)[order],
        ignored=np.zeros((len(cell), len(SIZE_RANGES)), bool),
        verified_cells=np.union1d(judged.verified_cells, cell),
    )


def match(
    cell: NDArray[np.int64], boxes_xywh: NDArray, truth: GroundTruth
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections (D,) are true positives, and which are neither true nor false.

    Args:
        cell: (D,) sorted, by falling score within a cell.
        boxes_xywh: (D, 4)
    """
    detection, object_ = pairs_of_equal(cell, truth.cell)
    group = truth.crowd[object_]
    share = overlap(boxes_xywh[detection], truth.boxes_xywh[object_], group)  # of a group: how much lies in it
    true_positive = np.zeros(len(cell), bool)
    true_positive[_first_takers(*_most_overlapped(detection[~group], object_[~group], share[~group]))] = True
    left = group & ~true_positive[detection]
    inside, groups = _most_overlapped(detection[left], object_[left], share[left])
    best = _first_takers(inside, groups)
    ignored = np.zeros(len(cell), bool)
    ignored[inside] = True
    ignored[best] = False
    true_positive[best] = True
    return true_positive, ignored


def average_precision(true_positive: NDArray[np.bool_], num_objects: int) -> float:
    """The area under the precision envelope, in [0, 1]; NaN without objects.

    Args:
        true_positive: (D,) by falling score; the others are false.
    """
    if not num_objects:
        return float("nan")
    corners = np.flatnonzero(true_positive)  # recall rises here alone, by the same step each time
    precision = np.arange(1, len(corners) + 1) / (corners + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])
    return float(best_from_here.sum() / num_objects)


def _most_overlapped(
    detection: NDArray[np.int64], object_: NDArray[np.int64], share: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each detection that overlaps any object enough, rising, and the one it overlaps most: of equals the first."""
    enough = np.flatnonzero(share >= MIN_OVERLAP)
    order = enough[np.lexsort((object_[enough], -share[enough], detection[enough]))]
    detections, first = np.unique(detection[order], return_index=True)
    return detections, object_[order][first]


def _first_takers(detection: NDArray[np.int64], object_: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first detection of each object."""
    return detection[np.unique(object_, return_index=True)[1]]
