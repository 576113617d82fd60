"""The box evaluator of COCO and of LVIS (federated), on flat arrays: matching while detections arrive, then accumulation.

Precision and recall are bit for bit those of `pycocotools` and of `lvis`; comments name the corners of theirs that are
kept. Matching leaves 30 bytes per detection, so a shard of the images per process, gathered, costs little.

A "cell" is one class in one image, numbered image_index * K + label. Shapes: N images, K classes, G objects,
D detections, P pairs of a detection and an object, T IoU thresholds, R recall points, S object sizes, M limits.
"""

from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .ground_truth import SIZE_RANGES, GroundTruth, out_of_range
from .matching import IOU_THRESHOLDS, is_in, match_greedily, overlap, pairs_of_equal, place_in_run
from .whole_images import WholeImages

RECALL_POINTS = np.linspace(0.0, 1.0, 101)

# Where only the best detections of a class count, the others are thrown away at this number, and whenever it doubles.
_FIRST_CUT = 2**20


class Matches(NamedTuple):
    """What is kept of the matched detections; detections that cannot count are left out."""

    cell: NDArray[np.int64]  # (D,)
    rank: NDArray[np.int32]  # (D,) place by score within the cell, 0 is best
    score: NDArray[np.float64]  # (D,)
    true_positive: NDArray[np.uint8]  # (D, T*S/8) packed bits
    ignored: NDArray[np.uint8]  # (D, T*S/8) packed bits: neither true nor false


class Curves(NamedTuple):
    """Precision and recall; -1 where the ground truth has no object that counts."""

    precision: NDArray[np.float64]  # (T, R, K, S, M), interpolated: the best at this recall or a higher one
    recall: NDArray[np.float64]  # (T, K, S, M), of all detections
    num_objects: NDArray[np.int64]  # (K, S)


class ColumnarEvaluator:
    """Matches detections to objects, any number of whole images at a time and in any order."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        self.ground_truth = ground_truth
        self._images = WholeImages(ground_truth.num_images)
        no_bits = _pack(np.zeros((0, len(IOU_THRESHOLDS), len(SIZE_RANGES)), bool))
        nothing = Matches(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0), no_bits, no_bits)
        self._parts = [[column] for column in nothing]  # of each column of Matches
        self._kept, self._next_cut = 0, _FIRST_CUT  # numbers of detections

    def add(self, image_index: ArrayLike, labels: ArrayLike, boxes_xywh: ArrayLike, scores: ArrayLike) -> None:
        """Match detections. All detections of an image come in the same call.

        Args:
            image_index: (D,) in [0, N), in any order. Equal scores of an image rank as they come.
            labels: (D,) in [0, K). Others match nothing, but count toward a limit per image, as in `lvis`.
            boxes_xywh: (D, 4) pixels, computed in float64.
            scores: (D,) finite.

        Raises:
            ValueError: an image was there before (a sampler that repeats images, for instance).
        """
        for columns in self._images.chunks(image_index, labels, boxes_xywh, scores):
            self._keep(self._match(*columns))

    def countable(
        self, image_index: NDArray, labels: NDArray, boxes_xywh: NDArray, scores: NDArray
    ) -> NDArray[np.int64]:
        """Indices into the detections, as `add` takes them: those that count, by cell and then by falling score."""
        truth, protocol, boxes = self.ground_truth, self.ground_truth.protocol, boxes_xywh.astype(float, copy=False)
        order = np.lexsort((-scores, image_index))  # stable: equal scores stay in the order of the file
        if protocol.per_image is not None:
            # Before any other filter, as in `lvis`: detections that cannot count still use up places.
            order = order[place_in_run(image_index[order]) < protocol.per_image]
        order = order[(labels[order] >= 0) & (labels[order] < truth.num_classes)]
        if protocol.per_class is None:  # else they use up places in the list of their class
            order = order[self._judged(image_index[order] * truth.num_classes + labels[order], boxes[order])]
        cell = image_index[order] * truth.num_classes + labels[order]
        by_cell = np.argsort(cell, kind="stable")
        return order[by_cell[place_in_run(cell[by_cell]) < protocol.limits[-1]]]

    def state(self) -> Matches:
        """Everything that was added and can count, as arrays which can be sent to another process."""
        for parts in self._parts:  # column by column: all of them at once would need the memory twice
            parts[:] = [np.concatenate(parts)]
        if self.ground_truth.protocol.per_class is not None:
            order, label = by_class(Matches(*chain(*self._parts)), self.ground_truth.num_classes)
            best = order[place_in_run(label) < self.ground_truth.protocol.per_class]
            for parts in self._parts:
                parts[:] = [parts[0][best]]
            self._kept = len(best)
        return Matches(*chain(*self._parts))

    def merge(self, matches: Matches) -> None:
        """Take over the `state()` of an evaluator that saw other images; ValueError if it saw one of the same."""
        self._images.register(np.unique(matches.cell // self.ground_truth.num_classes))
        self._keep(matches)

    def accumulate(self) -> Curves:
        """The precision and recall of everything added so far."""
        num_objects, limits = self.ground_truth.num_objects, self.ground_truth.protocol.limits
        matches, num_classes = self.state(), len(num_objects)
        order, label = by_class(matches, num_classes)
        start = np.searchsorted(label, np.arange(num_classes + 1))
        shape = (len(IOU_THRESHOLDS), len(RECALL_POINTS), num_classes, len(SIZE_RANGES), len(limits))
        precision, recall = np.full(shape, -1.0), np.full(shape[:1] + shape[2:], -1.0)
        for c, m in np.ndindex(num_classes, len(limits)):
            of_class = order[start[c] : start[c + 1]]
            within = of_class[matches.rank[of_class] < limits[m]]
            true_positive, ignored = _unpack(matches.true_positive[within]), _unpack(matches.ignored[within])
            for t, s in np.ndindex(len(IOU_THRESHOLDS), len(SIZE_RANGES)):
                if num_objects[c, s]:
                    curve = precision_and_recall(true_positive[t, s], ignored[t, s], num_objects[c, s])
                    precision[t, :, c, s, m], recall[t, c, s, m] = curve
        return Curves(precision, recall, num_objects)

    def _keep(self, matches: Matches) -> None:
        for parts, column in zip(self._parts, matches, strict=True):
            parts.append(column)
        self._kept += len(matches.cell)
        if self.ground_truth.protocol.per_class is not None and self._kept > self._next_cut:
            self.state()
            self._next_cut = max(_FIRST_CUT, 2 * self._kept)

    def _match(self, image_index: NDArray, labels: NDArray, boxes: NDArray, scores: NDArray) -> Matches:
        truth = self.ground_truth
        kept = self.countable(image_index, labels, boxes, scores)
        cell, boxes, scores = image_index[kept] * truth.num_classes + labels[kept], boxes[kept], scores[kept]
        detection, object_ = pairs_of_equal(cell, truth.cell)
        iou = overlap(boxes[detection], truth.boxes_xywh[object_], truth.crowd[object_])
        near = iou >= IOU_THRESHOLDS[0]
        true_positive, ignored = match_greedily(
            detection[near], object_[near], iou[near], cell, ignored=truth.ignored, crowd=truth.crowd
        )
        unjudged = ~self._judged(cell, boxes) | is_in(cell, truth.not_exhaustive_cells)
        excused = out_of_range(boxes[:, 2] * boxes[:, 3]) | unjudged[:, None]
        ignored |= ~true_positive & excused[:, None, :]
        return Matches(cell, place_in_run(cell).astype(np.int32), scores, _pack(true_positive), _pack(ignored))

    def _judged(self, cell: NDArray, boxes: NDArray) -> NDArray[np.bool_]:
        """Which detections (D,) can be right or wrong: if federated, those of classes that their image was checked for."""
        if not self.ground_truth.protocol.federated:
            return np.ones(len(cell), bool)
        return (boxes[:, 2] * boxes[:, 3] > 0) & is_in(cell, self.ground_truth.verified_cells)


def precision_and_recall(
    true_positive: NDArray[np.bool_], ignored: NDArray[np.bool_], num_objects: int
) -> tuple[NDArray[np.float64], float]:
    """Interpolated precision (R,) at RECALL_POINTS and the final recall of (D,) detections by falling score."""
    # Recall rises at true positives only, and precision falls between them: the curve's corners are all there is.
    corners = np.flatnonzero(true_positive)
    if not len(corners):
        return np.zeros(len(RECALL_POINTS)), 0.0
    found = np.arange(1.0, len(corners) + 1)
    counted = np.cumsum(~ignored)[corners]
    recall = found / num_objects
    precision = found / (counted + np.spacing(1))
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(best_from_here, 0.0)[np.searchsorted(recall, RECALL_POINTS)], recall[-1]


def by_class(matches: Matches, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (D,) of the matches by class, the best first, and the classes (D,) in that order."""
    image, label = np.divmod(matches.cell, num_classes)
    # Equal scores of a class rank by image, as the official tools concatenate the images, then as within the image.
    order = np.lexsort((matches.rank, image, -matches.score, label))
    return order, label[order]


def _pack(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(D, T, S) -> (D, T*S/8)"""
    return np.packbits(bits.reshape(len(bits), len(IOU_THRESHOLDS) * len(SIZE_RANGES)), axis=1)


def _unpack(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(D, T*S/8) bits -> (T, S, D), so that one curve lies in one piece of memory."""
    columns = np.ascontiguousarray(np.unpackbits(packed, axis=1).T).view(bool)
    return columns.reshape(len(IOU_THRESHOLDS), len(SIZE_RANGES), len(packed))
