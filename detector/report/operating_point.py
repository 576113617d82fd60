"""The score from which on the detections of a class are worth showing."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .verdicts import Verdicts


class OperatingPoints(NamedTuple):
    """Where each class has its best F1 at IoU 0.5; NaN for a class without a true positive or without objects.

    The thresholds are chosen on the data that they are reported on, which flatters precision and recall a little.
    """

    threshold: NDArray[np.float64]  # (K,) detections with this score or a higher one are taken
    precision: NDArray[np.float64]  # (K,)
    recall: NDArray[np.float64]  # (K,)


def best_f1(verdicts: Verdicts, num_objects: NDArray) -> OperatingPoints:
    """The highest of the thresholds with the best F1 = 2 TP / (detections + objects) of each class.

    Args:
        num_objects: (K,) objects that count.
    """
    counted = ~verdicts.ignored
    label, score, hit = verdicts.label[counted], verdicts.score[counted], verdicts.true_positive[counted]
    place = np.arange(len(label)) - np.searchsorted(label, label) + 1
    total = np.cumsum(hit)
    before = np.concatenate([[0], total])[np.searchsorted(label, np.arange(len(num_objects)))]  # (K,)
    found = total - before[label]
    # A threshold takes all detections of a score or none.
    last_of_score = (np.diff(score, append=np.nan) != 0) | (np.diff(label, append=-1) != 0)
    candidates = np.flatnonzero(last_of_score & (found > 0))
    f1 = 2 * found[candidates] / (place[candidates] + num_objects[label[candidates]])
    best = candidates[np.lexsort((-score[candidates], -f1, label[candidates]))]
    classes, first = np.unique(label[best], return_index=True)
    best = best[first]
    points = OperatingPoints(*(np.full(len(num_objects), np.nan) for _ in OperatingPoints._fields))
    points.threshold[classes] = score[best]
    points.precision[classes] = found[best] / place[best]
    points.recall[classes] = found[best] / num_objects[classes]
    return points


def shown(verdicts: Verdicts, points: OperatingPoints) -> NDArray[np.bool_]:
    """(D,) detections at or above the threshold of their class; none of a class that has no threshold."""
    return verdicts.score >= points.threshold[verdicts.label]
