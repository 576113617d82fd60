"""Calibration errors against slow loops, the temperature against values known in closed form."""

import numpy as np
import pytest

from longshot.detector.report.calibration import (
    calibration_error,
    class_mean_calibration_error,
    fit_temperature,
    in_first_half,
    reliability,
    scaled,
)


def slow_error(scores, right):
    """D-ECE, bin by bin."""
    total = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        mine = [i for i, s in enumerate(scores) if low <= s < high or (b == 14 and s == 1)]
        if mine:
            gap = abs(sum(right[i] for i in mine) / len(mine) - sum(scores[i] for i in mine) / len(mine))
            total += len(mine) / len(scores) * gap
    return total


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    scores = np.append(rng.random(500) ** 2, [0, 1, 1])
    return scores, rng.random(len(scores)) < scores**1.5, rng.integers(7, size=len(scores))


def test_error_is_that_of_a_loop_over_bins(sample):
    scores, right, _ = sample
    assert calibration_error(scores, right) == pytest.approx(slow_error(scores, right), rel=1e-12)
    assert calibration_error(scores, right) > 0.05


def test_error_by_hand():
    # One bin: mean score 0.5, precision 0.25. Another: mean score 0.9, precision 1.
    scores, right = np.array([0.5, 0.5, 0.5, 0.5, 0.9]), np.array([1, 0, 0, 0, 1], bool)
    assert calibration_error(scores, right) == pytest.approx((4 * 0.25 + 1 * 0.1) / 5)


def test_class_mean_weighs_classes_alike(sample):
    scores, right, labels = sample
    of_classes = [slow_error(scores[labels == k], right[labels == k]) for k in range(7)]
    assert class_mean_calibration_error(scores, right, labels) == pytest.approx(np.mean(of_classes), rel=1e-12)
    assert class_mean_calibration_error(scores, right, 5 * labels) == pytest.approx(np.mean(of_classes), rel=1e-12)


def test_diagram_has_the_means_of_each_bin():
    diagram = reliability(np.array([0.0, 0.05, 1 / 15, 1.0]), np.array([True, False, True, False]))
    assert diagram.count.tolist() == [2, 1, *[0] * 11, 0, 1]
    np.testing.assert_allclose(diagram.score[[0, 1, 14]], [0.025, 1 / 15, 1])
    np.testing.assert_allclose(diagram.precision[[0, 1, 14]], [0.5, 1, 0])
    assert np.isnan(diagram.precision[2])


def test_no_detections_have_no_error():
    nothing = np.zeros(0)
    assert np.isnan(calibration_error(nothing, nothing > 0))
    assert np.isnan(class_mean_calibration_error(nothing, nothing > 0, nothing))


def test_temperature_known_in_closed_form():
    # logit(0.9) = 2 log 3, logit(0.75) = log 3: three of four right at 0.9, and one of four at 0.1, ask for 2.
    scores, right = np.repeat([0.9, 0.1], 4), np.array([1, 1, 1, 0, 1, 0, 0, 0], bool)
    temperature = fit_temperature(scores, right)
    assert temperature == pytest.approx(2, rel=1e-9)
    np.testing.assert_allclose(scaled(scores, temperature), np.repeat([0.75, 0.25], 4))
    assert calibration_error(scaled(scores, temperature), right) == pytest.approx(0, abs=1e-9)


def test_temperature_has_the_smallest_negative_log_likelihood(sample):
    scores, right, _ = sample
    inside = (scores > 0) & (scores < 1)
    scores, right = scores[inside], right[inside]

    def loss(temperature):
        p = scaled(scores, temperature)
        return -np.log(np.where(right, p, 1 - p)).sum()

    best = fit_temperature(scores, right)
    assert all(loss(best) < loss(best * factor) for factor in (0.99, 1.01, 0.5, 2))


@pytest.mark.parametrize(("scores", "right"), [([], []), ([0.2, 0.9], [0, 1]), ([0.2, 0.3], [0, 0]), ([0.5], [1])])
def test_no_temperature_where_the_likelihood_has_no_maximum(scores, right):
    assert fit_temperature(np.array(scores, float), np.array(right, bool)) is None


def test_scores_of_exactly_zero_and_one_stay_finite():
    scores, right = np.array([0.0, 1.0, 1.0, 1.0, 1.0]), np.array([0, 1, 0, 1, 1], bool)
    # Four right of five by their side of 0.5, all with the same distance from it.
    for dtype in (np.float64, np.float32):
        after = scaled(scores.astype(dtype), fit_temperature(scores.astype(dtype), right))
        np.testing.assert_allclose(after, [0.2, 0.8, 0.8, 0.8, 0.8], rtol=1e-6)


def test_half_of_an_image_depends_on_its_id_alone():
    # Worked out by sha256sum: the digests of "1" … "6" begin with 6b, d4, 4e, 4b, ef, e7.
    assert in_first_half([1, 2, 3, 4, 5, 6]).tolist() == [False, True, True, False, False, False]
    assert in_first_half([6, 3]).tolist() == [False, True]
    assert 0.45 < in_first_half(np.arange(2000)).mean() < 0.55
