import numpy as np
import pytest

from longshot.detector.report.operating_point import best_f1, shown
from longshot.detector.report.verdicts import find_verdicts

BOX, FAR = (100, 100, 100, 100), (600, 100, 100, 100)


def test_threshold_precision_and_recall_worked_out_by_hand(make_validation, columns):
    # Right, wrong, right, wrong, wrong of 3 objects: F1 2/4, 2/5, 4/6, 4/7, 4/8.
    validation = make_validation([(i, 0, BOX) for i in range(3)], num_images=5)
    rows = [(0, BOX, 0.9), (3, BOX, 0.8), (1, BOX, 0.7), (4, BOX, 0.6), (0, FAR, 0.5)]
    verdicts, _ = find_verdicts(
        validation.ground_truth, columns(*((image, 0, box, score) for image, box, score in rows))
    )
    points = best_f1(verdicts, validation.ground_truth.num_objects[:, 0])
    assert (points.threshold[0], points.precision[0], points.recall[0]) == (0.7, 2 / 3, 2 / 3)
    assert shown(verdicts, points).tolist() == [True, True, True, False, False]


def test_class_without_a_right_detection_has_no_threshold_and_shows_nothing(make_validation, columns):
    validation = make_validation([(0, 0, BOX), (0, 1, FAR)])
    verdicts, _ = find_verdicts(validation.ground_truth, columns((0, 0, FAR, 0.9), (0, 1, FAR, 0.8), (0, 2, BOX, 0.7)))
    points = best_f1(verdicts, validation.ground_truth.num_objects[:, 0])
    np.testing.assert_array_equal(points.threshold, [np.nan, 0.8, np.nan])
    assert shown(verdicts, points).tolist() == [False, True, False]


def test_equal_scores_are_taken_together(make_validation, columns):
    # The right one comes first of three with the same score: a threshold cannot take it alone.
    validation = make_validation([(0, 0, BOX)])
    verdicts, _ = find_verdicts(validation.ground_truth, columns((0, 0, BOX, 0.5), (0, 0, FAR, 0.5), (1, 0, BOX, 0.5)))
    points = best_f1(verdicts, validation.ground_truth.num_objects[:, 0])
    assert (points.threshold[0], points.precision[0], points.recall[0]) == (0.5, pytest.approx(1 / 3), 1)


def test_of_equally_good_thresholds_the_highest_is_taken(make_validation, columns):
    # Right, wrong, wrong, right of 2 objects: F1 2/3, 2/4, 2/5, 4/6.
    validation = make_validation([(0, 0, BOX), (1, 0, BOX)])
    rows = [(0, 0, BOX, 0.9), (0, 0, FAR, 0.8), (1, 0, FAR, 0.7), (1, 0, BOX, 0.6)]
    verdicts, _ = find_verdicts(validation.ground_truth, columns(*rows))
    assert best_f1(verdicts, validation.ground_truth.num_objects[:, 0]).threshold[0] == 0.9


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_is_better(random_case, seed):
    validation, detections = random_case(seed)
    verdicts, _ = find_verdicts(validation.ground_truth, detections)
    num_objects = validation.ground_truth.num_objects[:, 0]
    points = best_f1(verdicts, num_objects)
    for k in range(5):
        candidates = {}
        for threshold in np.unique(verdicts.score):
            taken = (verdicts.label == k) & (verdicts.score >= threshold) & ~verdicts.ignored
            candidates[threshold] = 2 * verdicts.true_positive[taken].sum() / (taken.sum() + num_objects[k])
        best = max(candidates.values())
        assert candidates[points.threshold[k]] == best
        assert points.threshold[k] == max(t for t, f1 in candidates.items() if f1 == best)
        assert 2 / (1 / points.precision[k] + 1 / points.recall[k]) == pytest.approx(best)
