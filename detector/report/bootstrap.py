"""How far AP would be another on other images: the bootstrap over images (Efron 1979), alike for all runs.

D detections, S special detections (right or ignored at some IoU threshold), N images, K classes, T IoU thresholds.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..evaluation.columnar import Matches, by_class
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.matching import IOU_THRESHOLDS
from ..system.environment import progress_bar
from .average_precision import average_precision
from .verdicts import flags

RESAMPLES = 200
COVERAGE = 0.95


class Resampler(NamedTuple):
    """A run's matches, prepared for AP with a multiplicity per image; by class and falling score throughout.

    Most detections are false at every IoU threshold: they are summed up once, and not once per threshold.
    """

    plain_image: NDArray[np.int32]  # (D - S,) images of detections that are false at every threshold
    image: NDArray[np.int32]  # (S,)
    label: NDArray[np.int64]  # (S,)
    plain_before: NDArray[
        np.int64
    ]  # (S,) plain detections of this class and of those before it that come before this one
    plain_start: NDArray[np.int64]  # (S,) of these, those of the classes before
    start: NDArray[np.int64]  # (S,) special detections of the classes before
    true_positive: NDArray[np.bool_]  # (T, S)
    counted: NDArray[np.bool_]  # (T, S)
    object_image: NDArray[np.int64]  # (G,) of the objects that count
    object_label: NDArray[np.int64]  # (G,)
    num_classes: int

    @classmethod
    def of(cls, matches: Matches, ground_truth: GroundTruth) -> "Resampler":
        order, label = by_class(matches, ground_truth.num_classes)
        image = matches.cell[order] // ground_truth.num_classes
        true_positive, ignored = flags(matches.true_positive)[order], flags(matches.ignored)[order]
        special = (true_positive | ignored).any(axis=1)
        plain_label, label_of_special = label[~special], label[special]
        objects = ground_truth.cell[~ground_truth.ignored[:, 0]]
        object_image, object_label = np.divmod(objects, ground_truth.num_classes)
        return cls(
            image[~special].astype(np.int32), image[special].astype(np.int32), label_of_special,
            np.cumsum(~special)[special], np.searchsorted(plain_label, label_of_special),
            np.searchsorted(label_of_special, label_of_special),
            true_positive[special].T.copy(), ~ignored[special].T, object_image, object_label, ground_truth.num_classes,
        )  # fmt: skip

    def average_precision(self, multiplicity: NDArray[np.int64]) -> NDArray[np.float64]:
        """(K,) AP in percent, over all IoU thresholds, if image i is there multiplicity[i] times; NaN without objects.

        That of the repeated dataset, except that the copies of a detection follow each other: other detections with
        the same score come before all of them or after.
        """
        objects = np.bincount(self.object_label, weights=multiplicity[self.object_image], minlength=self.num_classes)
        plain, weight = _running(multiplicity[self.plain_image]), multiplicity[self.image]
        plain = plain[self.plain_before] - plain[self.plain_start]
        total = np.zeros(self.num_classes)
        for right, counted in zip(self.true_positive, self.counted, strict=True):
            hits = np.flatnonzero(right)
            found, all_special = (
                running[hits + 1] - running[self.start[hits]]
                for running in (_running(weight * right), _running(weight * counted))
            )
            total += average_precision(self.label[hits], found, plain[hits] + all_special, objects)
        return 100 * total / len(IOU_THRESHOLDS)


def bootstrap(
    resamplers: list[Resampler], num_images: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """(resamples, runs, K) AP of each class and run on images drawn with replacement, the same ones for all runs."""
    rng = np.random.default_rng(seed)
    result = np.empty((resamples, len(resamplers), resamplers[0].num_classes))
    for b in progress_bar(range(resamples), desc="bootstrap", unit="resample", leave=False):
        multiplicity = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        for r, resampler in enumerate(resamplers):
            result[b, r] = resampler.average_precision(multiplicity)
    return result


def interval(estimate: float | None, resampled: NDArray[np.float64]) -> tuple[float, float] | None:
    """The percentile interval of the (B,) resampled values, moved so that their mean is the estimate; None without any.

    Resamples repeat images, and so true positives, which raises interpolated precision: their AP is higher on average,
    where classes have few objects by more than the width of the interval. Only their spread says something.
    """
    known = resampled[~np.isnan(resampled)]
    if estimate is None or not len(known):
        return None
    low, high = np.quantile(known - known.mean(), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(estimate + low), float(estimate + high)


def _running(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """(D,) -> (D + 1,): the sum of the first 0, 1, …, D values."""
    return np.concatenate([[0], np.cumsum(values)])
