"""AP from true positives alone, of all classes at once: what is done hundreds of times must not loop over classes."""

import numpy as np
from numpy.typing import NDArray

from ..evaluation.columnar import RECALL_POINTS


def average_precision(label: NDArray, found: NDArray, counted: NDArray, num_objects: NDArray) -> NDArray[np.float64]:
    """(K,) AP at one IoU threshold, in [0, 1] and interpolated as COCO does it; NaN for a class without objects.

    Precision falls between true positives, so the interpolated curve is known at them. Numbers may be weighted.

    Args:
        label: (P,) rising, the classes of the true positives, which come by falling score within a class.
        found: (P,) true positives of the class up to and including this one.
        counted: (P,) detections of the class, true or false, up to and including this one.
        num_objects: (K,) objects to be found.
    """
    objects = num_objects[label]
    recall = np.divide(found, objects, out=np.zeros(len(label)), where=objects > 0)
    precision = np.divide(found, counted, out=np.zeros(len(label)), where=counted > 0)
    # Recall points that are reached here and not before.
    reached = np.searchsorted(RECALL_POINTS, recall, side="right")
    first = np.diff(label, prepend=-1) != 0
    points = reached - np.where(first, 0, np.roll(reached, 1))
    area = np.bincount(label, weights=points * _best_from_here(label, precision), minlength=len(num_objects))
    return np.where(num_objects > 0, area / len(RECALL_POINTS), np.nan)


def average_precision_of_ranked(
    label: NDArray, true_positive: NDArray[np.bool_], num_objects: NDArray
) -> NDArray[np.float64]:
    """As above, of (D,) detections by class and falling score that are all either true or false."""
    start = np.searchsorted(label, np.arange(len(num_objects)))
    hits = np.flatnonzero(true_positive)
    of_class = label[hits]
    first_hit = np.searchsorted(of_class, of_class)
    return average_precision(
        of_class, np.arange(len(hits)) - first_hit + 1, hits - start[of_class] + 1, np.asarray(num_objects)
    )


def _best_from_here(label: NDArray, precision: NDArray) -> NDArray[np.float64]:
    """(P,) the largest value from each place to the end of its class."""
    # One running maximum from the end serves all classes, if each class lies above those after it.
    shelf = 2.0 * (label[-1] - label) if len(label) else 0.0
    return np.maximum.accumulate((precision + shelf)[::-1])[::-1] - shelf
