"""Whether a score of 0.7 means right seven times out of ten.

A detection is right if it is a true positive at IoU 0.5. Only detections that the protocol counts and does not ignore
are looked at: on federated data nobody knows whether the others are right. B bins, D detections, N images.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_BINS = 15

# Temperatures beyond mean that there is none: the likelihood rises without end.
_TEMPERATURES = (1e-2, 1e2)
# A score of exactly 0 or 1 has no logit.
_SMALLEST = 1e-12


class Reliability(NamedTuple):
    """Detections by score, in bins of equal width over [0, 1]; means are NaN in empty bins."""

    count: NDArray[np.int64]  # (B,)
    score: NDArray[np.float64]  # (B,) mean
    precision: NDArray[np.float64]  # (B,)


def reliability(scores: NDArray, right: NDArray[np.bool_]) -> Reliability:
    """The diagram of (D,) scores in [0, 1]. A score on a border belongs to the upper bin, 1 to the last."""
    of_bin = _bin(scores)
    count = np.bincount(of_bin, minlength=NUM_BINS)
    sums = (np.bincount(of_bin, weights=values, minlength=NUM_BINS) for values in (scores, right))
    return Reliability(count, *(np.divide(s, count, out=np.full(NUM_BINS, np.nan), where=count > 0) for s in sums))


def calibration_error(scores: NDArray, right: NDArray[np.bool_]) -> float:
    """D-ECE (Küppers et al. 2020, arXiv:2004.13546, over the score alone): mean |precision - score| over
    the bins, weighted by their detections; NaN without detections.
    """
    return _weighted_gap(_bin(scores), scores, right) / len(scores) if len(scores) else np.nan


def class_mean_calibration_error(scores: NDArray, right: NDArray[np.bool_], labels: NDArray) -> float:
    """The mean over classes of their own D-ECE, as in LaECE (Oksuz et al. 2023, arXiv:2307.00934), so that rare classes
    weigh as much as they do in AP. Classes without detections are no part of it; NaN without any.
    """
    if not len(scores):
        return np.nan
    _, of_class, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    share = 1 / sizes[of_class]
    return _weighted_gap(of_class * NUM_BINS + _bin(scores), scores * share, right * share) / len(sizes)


def scaled(scores: NDArray, temperature: float) -> NDArray[np.float64]:
    """sigmoid(logit(score) / temperature) (Guo et al. 2017, arXiv:1706.04599, section 4.2, for one class at a time)."""
    return _sigmoid(_logit(scores) / temperature)


def fit_temperature(scores: NDArray, right: NDArray[np.bool_]) -> float | None:
    """The temperature of the smallest negative log-likelihood; None if the detections do not determine one."""
    logits = _logit(scores)
    low, high = (1 / t for t in _TEMPERATURES[::-1])

    def slope(inverse: float) -> float:  # of the negative log-likelihood, which is convex in 1 / temperature
        return float(np.sum(logits * (_sigmoid(inverse * logits) - right)))

    if not len(scores) or not slope(low) < 0 < slope(high):
        return None
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


def in_first_half(image_ids: ArrayLike) -> NDArray[np.bool_]:
    """(N,) True for about half of the images: an even first byte of the SHA-256 of the id, written as a decimal.

    So the half of an image does not depend on which other images there are.
    """
    return np.array(
        [hashlib.sha256(str(i).encode()).digest()[0] % 2 == 0 for i in np.asarray(image_ids).tolist()], bool
    )


def _bin(scores: NDArray) -> NDArray[np.int64]:
    return np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)


def _weighted_gap(of_bin: NDArray, scores: NDArray, right: NDArray) -> float:
    """The sum over bins of |sum of right - sum of scores|."""
    return float(np.abs(np.bincount(of_bin, weights=right) - np.bincount(of_bin, weights=scores)).sum())


def _logit(scores: NDArray) -> NDArray[np.float64]:
    inside = np.clip(np.asarray(scores, np.float64), _SMALLEST, 1 - _SMALLEST)  # float32 has 1 for the upper limit
    return np.log(inside) - np.log1p(-inside)


def _sigmoid(logits: NDArray) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -logits))
