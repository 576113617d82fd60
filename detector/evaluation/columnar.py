"""The box evaluator of COCO and of LVIS (federated), on flat arrays: matching while detections arrive, then accumulation.

Precision and recall are bit for bit those of `pycocotools` and of `lvis`; comments name the corners of theirs that are
kept. Matching leaves 30 bytes per detection, so a shard of the images per process, gathered, costs little.

A "cell" is one class in one image, numbered image_index * K + label. Shapes: N images, K classes, G objects,
D detections, P pairs of a detection and an object, T IoU thresholds, R recall points, S object sizes, M limits.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .ground_truth import SIZE_RANGES, GroundTruth, out_of_range

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)

# Bounds the memory of pairs and masks; more images at once are hardly faster.
_IMAGES_PER_CHUNK = 256

_UNMATCHED = -1


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
        self._seen = np.zeros(ground_truth.num_images, bool)
        self._parts: list[Matches] = []

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
        image_index, labels = np.asarray(image_index, np.int64), np.asarray(labels, np.int64)
        boxes, scores = np.asarray(boxes_xywh, np.float64).reshape(-1, 4), np.asarray(scores, np.float64)
        order = np.argsort(image_index, kind="stable")
        images, starts = np.unique(image_index[order], return_index=True)
        self._register(images)
        for chunk in np.split(order, starts[_IMAGES_PER_CHUNK::_IMAGES_PER_CHUNK]):
            self._parts.append(self._match(image_index[chunk], labels[chunk], boxes[chunk], scores[chunk]))

    def state(self) -> Matches:
        """Everything that was added, as arrays which can be sent to another process."""
        no_bits = _pack(np.zeros((0, len(IOU_THRESHOLDS), len(SIZE_RANGES)), bool))
        nothing = Matches(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0), no_bits, no_bits)
        return Matches(*(np.concatenate(columns) for columns in zip(nothing, *self._parts, strict=True)))

    def merge(self, matches: Matches) -> None:
        """Take over the `state()` of an evaluator that saw other images; ValueError if it saw one of the same."""
        self._register(np.unique(matches.cell // self.ground_truth.num_classes))
        self._parts.append(matches)

    def accumulate(self) -> Curves:
        """The precision and recall of everything added so far."""
        num_objects, limits = self.ground_truth.num_objects, self.ground_truth.protocol.limits
        matches, num_classes = self.state(), len(num_objects)
        image, label = np.divmod(matches.cell, num_classes)
        # Equal scores of a class rank by image, as the official tools concatenate the images, then as within the image.
        order = np.lexsort((matches.rank, image, -matches.score, label))
        start = np.searchsorted(label[order], np.arange(num_classes + 1))
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

    def _register(self, images: NDArray[np.int64]) -> None:
        again = images[self._seen[images]]
        if len(again):
            raise ValueError(
                f"{len(again)} images were evaluated twice, the first at index {again[0]}; add each image once"
            )
        self._seen[images] = True

    def _match(self, image_index: NDArray, labels: NDArray, boxes: NDArray, scores: NDArray) -> Matches:
        truth = self.ground_truth
        kept = self._countable(image_index, labels, boxes, scores)
        cell, boxes, scores = image_index[kept] * truth.num_classes + labels[kept], boxes[kept], scores[kept]
        detection, object_ = _pairs_in_same_cell(cell, truth.cell)
        iou = overlap(boxes[detection], truth.boxes_xywh[object_], truth.crowd[object_])
        near = iou >= IOU_THRESHOLDS[0]
        true_positive, ignored = _match_greedily(
            detection[near], object_[near], iou[near], cell, ignored=truth.ignored, crowd=truth.crowd
        )
        excused = out_of_range(boxes[:, 2] * boxes[:, 3]) | _is_in(cell, truth.not_exhaustive_cells)[:, None]
        ignored |= ~true_positive & excused[:, None, :]
        return Matches(cell, _place_in_run(cell).astype(np.int32), scores, _pack(true_positive), _pack(ignored))

    def _countable(self, image_index: NDArray, labels: NDArray, boxes: NDArray, scores: NDArray) -> NDArray[np.int64]:
        """Indices of the detections that the protocol counts, by cell and then by falling score."""
        truth = self.ground_truth
        order = np.lexsort((-scores, image_index))  # stable: equal scores stay in the order of the file
        if self.ground_truth.protocol.per_image is not None:
            # Before any other filter, as in `lvis`: detections that cannot count still use up places.
            order = order[_place_in_run(image_index[order]) < self.ground_truth.protocol.per_image]
        order = order[(labels[order] >= 0) & (labels[order] < truth.num_classes)]
        if self.ground_truth.protocol.federated:
            order = order[boxes[order, 2] * boxes[order, 3] > 0]
            order = order[_is_in(image_index[order] * truth.num_classes + labels[order], truth.verified_cells)]
        cell = image_index[order] * truth.num_classes + labels[order]
        by_cell = np.argsort(cell, kind="stable")
        return order[by_cell[_place_in_run(cell[by_cell]) < self.ground_truth.protocol.limits[-1]]]


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


def _pairs_in_same_cell(cell: NDArray, object_cell: NDArray) -> tuple[NDArray, NDArray]:
    """Indices (P,), (P,) of every detection with every object of its cell; both (D,) and (G,) cells are sorted."""
    first = np.searchsorted(object_cell, cell)
    count = np.searchsorted(object_cell, cell, side="right") - first
    detection = np.repeat(np.arange(len(cell)), count)
    return detection, np.repeat(first, count) + _place_in_run(detection)


def _match_greedily(
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
    wish = _place_in_run(detection)[:, None] + bonus * ~ignored[object_]  # (P, S)
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
    turn = _place_in_run(cell[candidates])[pair_candidate]
    order = np.argsort(turn, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(turn[order])) + 1) if len(order) else []


def _place_in_run(values: NDArray) -> NDArray[np.int64]:
    """0, 1, 2, … within each run of equal values; `values` (D,) is sorted."""
    return np.arange(len(values)) - np.searchsorted(values, values)


def _is_in(cells: NDArray, table: NDArray) -> NDArray[np.bool_]:
    """Which of `cells` (D,) are in the sorted `table`."""
    return np.searchsorted(table, cells) < np.searchsorted(table, cells, side="right")


def _pack(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(D, T, S) -> (D, T*S/8)"""
    return np.packbits(bits.reshape(len(bits), len(IOU_THRESHOLDS) * len(SIZE_RANGES)), axis=1)


def _unpack(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(D, T*S/8) bits -> (T, S, D), so that one curve lies in one piece of memory."""
    columns = np.ascontiguousarray(np.unpackbits(packed, axis=1).T).view(bool)
    return columns.reshape(len(IOU_THRESHOLDS), len(SIZE_RANGES), len(packed))
