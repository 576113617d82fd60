import numpy as np
import pytest

from longshot.detector.report.average_precision import average_precision, average_precision_of_ranked
from longshot.detector.report.verdicts import find_verdicts


def test_area_worked_out_by_hand():
    # Class 0: right, wrong, right of 2 objects: precision 1 up to recall 0.5 (51 points), then 2/3 (50 points).
    # Class 1: wrong, right of 1 object: precision 1/2 everywhere. Class 2: nothing found. Class 3: no objects.
    label = np.array([0, 0, 0, 1, 1, 3])
    right = np.array([1, 0, 1, 0, 1, 0], bool)
    ap = average_precision_of_ranked(label, right, np.array([2, 1, 4, 0]))
    np.testing.assert_allclose(ap, [(51 + 50 * 2 / 3) / 101, 0.5, 0, np.nan], rtol=1e-12)


def test_precision_is_the_best_at_this_recall_or_a_higher_one():
    # 1/2, then 2/3 (higher), then 3/4 at the end: 3/4 everywhere.
    ap = average_precision_of_ranked(np.zeros(4, int), np.array([0, 1, 1, 1], bool), np.array([3]))
    assert ap[0] == pytest.approx(0.75)


def test_curve_of_one_class_does_not_reach_into_the_next():
    # The better class comes after the worse one, and the other way round.
    worse, better = [0, 0, 1], [1, 1]
    for first, second, expected in ((worse, better, [1 / 3, 1]), (better, worse, [1, 1 / 3])):
        label = np.repeat([0, 1], [len(first), len(second)])
        objects = np.array([sum(first), sum(second)])
        ap = average_precision_of_ranked(label, np.array(first + second, bool), objects)
        np.testing.assert_allclose(ap, expected)


@pytest.mark.parametrize("seed", range(4))
def test_area_is_that_of_the_evaluator(random_case, seed):
    validation, detections = random_case(seed)
    verdicts, evaluator = find_verdicts(validation.ground_truth, detections)
    counted = ~verdicts.ignored
    num_objects = validation.ground_truth.num_objects[:, 0]
    ap = average_precision_of_ranked(verdicts.label[counted], verdicts.true_positive[counted], num_objects)
    official = evaluator.accumulate().precision[0, :, :, 0, 0].mean(axis=0)
    np.testing.assert_allclose(np.nan_to_num(ap, nan=-1), official, atol=1e-12)
    assert np.isnan(ap[5])
    assert 0 < np.nanmin(ap) < np.nanmax(ap)


def test_true_positive_of_no_weight_changes_nothing():
    with_it = average_precision(np.zeros(3, int), np.array([0, 1, 1]), np.array([0, 2, 2]), np.array([2]))
    without = average_precision(np.zeros(1, int), np.array([1]), np.array([2]), np.array([2]))
    assert with_it[0] == without[0] == pytest.approx(0.5 * 51 / 101)
