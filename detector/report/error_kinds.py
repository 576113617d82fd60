"""Why detections are wrong and objects missed, after TIDE (Bolya et al. 2020, arXiv:2008.08115).

At IoU 0.5, with 0.1 as the border to the background, as in section 3 of the paper and in its code. Each false positive
is the first of these that fits, going by its IoU with the objects of its image that count:

    localization    0.1 <= IoU < 0.5 with the nearest object of its own class
    classification  IoU >= 0.5 with the nearest object of another class
    duplicate       IoU >= 0.5 with an object of its own class, which a better detection has taken
    background      IoU < 0.1 with every object
    both            what is left: 0.1 <= IoU < 0.5 with the nearest object of another class

and `missed` is an object that no detection found and on which no localization or classification error lies.

The gain by fixing a kind of error, dAP, is that of AP50. A localization or classification error becomes a true positive
of its object's class, unless the object has been found or a better one of these errors lies on it: then the detection
is removed, as are the errors of all other kinds. Missed objects are taken out of those to be found; a class that loses
all its objects by this keeps an AP of 0, so that the gain of missed objects is a lower bound.

What the protocol ignores is no error: on federated data, detections of classes that were not checked in the image, and
unmatched ones where objects are known to be unannotated; on COCO data, those on crowds. Crowds and ignored objects are
no objects here. D detections, G objects, K classes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..evaluation.ground_truth import GroundTruth
from ..evaluation.matching import overlap, pairs_of_equal
from .average_precision import average_precision_of_ranked
from .verdicts import IOU, Verdicts

BACKGROUND_IOU = 0.1
KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
NO_ERROR = -1

_NOTHING = -1
_IMAGES_PER_CHUNK = 256  # bounds the memory of pairs


class Errors(NamedTuple):
    """The errors of a verdicts, detection by detection and object by object."""

    kind: NDArray[np.int8]  # (D,) one of the above, never MISSED; NO_ERROR
    object_: NDArray[np.int64]  # (D,) the object that a localization or classification error lies on, else -1
    confused: NDArray[np.int64]  # (D,) nearest object of another class at IoU >= 0.5 of a false positive, else -1
    missed: NDArray[np.bool_]  # (G,)


class _Nearest(NamedTuple):
    """The object that has the largest IoU with each of some detections, of those in its image."""

    iou: NDArray[np.float64]  # (D,)
    object_: NDArray[np.int64]  # (D,) -1 where there is none


def find_errors(verdicts: Verdicts, ground_truth: GroundTruth) -> Errors:
    """The kind of every false positive, and the objects missed."""
    false = np.flatnonzero(verdicts.false_positive)
    own, other = _nearest_objects(verdicts, ground_truth, false)
    fits = {
        LOCALIZATION: (own.iou >= BACKGROUND_IOU) & (own.iou < IOU),
        CLASSIFICATION: other.iou >= IOU,
        DUPLICATE: own.iou >= IOU,
        BACKGROUND: np.maximum(own.iou, other.iou) < BACKGROUND_IOU,
    }
    kind_of_false = np.select(list(fits.values()), list(fits), default=BOTH)
    on = np.select(
        [kind_of_false == LOCALIZATION, kind_of_false == CLASSIFICATION], [own.object_, other.object_], _NOTHING
    )
    kind = np.full(len(verdicts.label), NO_ERROR, np.int8)
    object_, confused = np.full((2, len(verdicts.label)), _NOTHING)
    kind[false], object_[false] = kind_of_false, on
    confused[false] = np.where(other.iou >= IOU, other.object_, _NOTHING)
    missed = verdicts.is_object & ~verdicts.found
    missed[on[on != _NOTHING]] = False
    return Errors(kind, object_, confused, missed)


def ap_without_error(verdicts: Verdicts, errors: Errors, ground_truth: GroundTruth) -> dict[str, NDArray[np.float64]]:
    """The AP50 (K,) of each class, in percent and NaN without objects, after fixing all errors of each kind.

    "" is as it is, "false positives" without any, "false negatives" if objects that were not found did not count.
    """
    truth_label = ground_truth.cell % ground_truth.num_classes
    counted = ~verdicts.ignored
    label, hit, kind = verdicts.label[counted], verdicts.true_positive[counted], errors.kind[counted]

    def objects(of: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(truth_label[of], minlength=ground_truth.num_classes)

    def percent(label: NDArray, hit: NDArray, left: NDArray) -> NDArray[np.float64]:
        ap = 100 * average_precision_of_ranked(label, hit, left)
        return np.where((num_objects > 0) & (left == 0), 0.0, ap)

    num_objects = objects(verdicts.is_object)
    turned, new_label = _turned(verdicts, errors, truth_label)
    result = {"": percent(label, hit, num_objects)}
    for k in (CLASSIFICATION, LOCALIZATION):
        right = (turned & (errors.kind == k))[counted]
        kept = (kind != k) | right
        relabeled = np.where(right, new_label[counted], label)[kept]
        order = np.lexsort((-verdicts.score[counted][kept], relabeled))
        result[KINDS[k]] = percent(relabeled[order], (hit | right)[kept][order], num_objects)
    for k in (BOTH, DUPLICATE, BACKGROUND):
        result[KINDS[k]] = percent(label[kind != k], hit[kind != k], num_objects)
    result[KINDS[MISSED]] = percent(label, hit, objects(verdicts.is_object & ~errors.missed))
    result["false positives"] = percent(label[hit], hit[hit], num_objects)
    result["false negatives"] = percent(label, hit, objects(verdicts.found))
    return result


def confusions(verdicts: Verdicts, errors: Errors, ground_truth: GroundTruth, *, shown: NDArray[np.bool_]) -> NDArray:
    """(M, 4) label of the detection, label of the object, how many of `shown`, how many in all; most of `shown` first.

    A false positive counts for the object of another class that it overlaps most, if at IoU 0.5 or more.
    Federated data: only detections of classes that were checked in the image are there to be counted.

    Args:
        shown: (D,) detections that a user would see.
    """
    wrong = np.flatnonzero(errors.confused != _NOTHING)
    num_classes = ground_truth.num_classes
    pair = verdicts.label[wrong] * num_classes + ground_truth.cell[errors.confused[wrong]] % num_classes
    pairs, inverse, total = np.unique(pair, return_inverse=True, return_counts=True)
    seen = np.bincount(inverse, weights=shown[wrong], minlength=len(pairs)).astype(int)
    order = np.lexsort((pairs, -total, -seen))
    return np.stack([*np.divmod(pairs, num_classes), seen, total], axis=1)[order]


def _turned(verdicts: Verdicts, errors: Errors, truth_label: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(D,) errors that a fix makes right, the best one on each object not found, and the labels that they then have."""
    candidates = np.flatnonzero(errors.object_ != _NOTHING)
    candidates = candidates[~verdicts.found[errors.object_[candidates]]]
    candidates = candidates[np.argsort(-verdicts.score[candidates], kind="stable")]
    _, best = np.unique(errors.object_[candidates], return_index=True)
    turned = np.zeros(len(verdicts.label), bool)
    turned[candidates[best]] = True
    label = verdicts.label.copy()
    label[turned] = truth_label[errors.object_[turned]]
    return turned, label


def _nearest_objects(verdicts: Verdicts, ground_truth: GroundTruth, chosen: NDArray) -> tuple[_Nearest, _Nearest]:
    """For the `chosen` detections the nearest object of their own class, and of any other class."""
    objects = np.flatnonzero(verdicts.is_object)
    object_image, object_label = np.divmod(ground_truth.cell[objects], ground_truth.num_classes)
    by_image = np.argsort(verdicts.image[chosen], kind="stable")
    image = verdicts.image[chosen][by_image]
    chunks = np.searchsorted(image, np.arange(0, ground_truth.num_images, _IMAGES_PER_CHUNK)[1:])
    nearest = [_Nearest(np.zeros(len(chosen)), np.full(len(chosen), _NOTHING)) for _ in range(2)]
    for part in np.split(by_image, chunks):
        detection, object_ = pairs_of_equal(verdicts.image[chosen[part]], object_image)
        detection, mine = part[detection], chosen[part[detection]]
        boxes = ground_truth.boxes_xywh[objects[object_]]
        iou = overlap(verdicts.boxes_xywh[mine], boxes, np.zeros(len(mine), bool))
        same = verdicts.label[mine] == object_label[object_]
        for result, wanted in zip(nearest, (same, ~same), strict=True):
            _keep_largest(result, detection[wanted], objects[object_[wanted]], iou[wanted])
    return nearest[0], nearest[1]


def _keep_largest(nearest: _Nearest, detection: NDArray, object_: NDArray, iou: NDArray) -> None:
    """Write down the largest of the (P,) IoUs of each detection; of equal ones the first object's."""
    touching = iou > 0
    detection, object_, iou = detection[touching], object_[touching], iou[touching]
    order = np.lexsort((object_, -iou, detection))
    who, first = np.unique(detection[order], return_index=True)
    nearest.iou[who], nearest.object_[who] = iou[order[first]], object_[order[first]]
