"""Verdicts at IoU 0.5, against a loop over objects and detections."""

import numpy as np
import pytest

from longshot.detector.report.verdicts import find_verdicts

BOX = (100, 100, 100, 100)


def iou_of(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def slow_verdicts(validation, detections):
    """{place in the columns: "right", "wrong" or "ignored"} and the indices of the found objects."""
    truth, verdicts, found = validation.ground_truth, {}, set()
    num_classes = truth.num_classes
    cells = detections.image_index * num_classes + detections.labels
    for cell in sorted(set(cells.tolist()) & set(truth.verified_cells.tolist())):
        mine = sorted(np.flatnonzero(cells == cell).tolist(), key=lambda d: -detections.scores[d])
        objects = np.flatnonzero(truth.cell == cell).tolist()
        for d in mine:
            free = [(iou_of(detections.boxes_xywh[d], truth.boxes_xywh[g]), g) for g in objects if g not in found]
            best = max(free, default=(0.0, -1))
            if best[0] >= 0.5:
                found.add(best[1])
            wrong = "ignored" if cell in truth.not_exhaustive_cells else "wrong"
            verdicts[d] = "right" if best[0] >= 0.5 else wrong
    return verdicts, found


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_and_found_objects_are_those_of_a_loop(random_case, seed):
    validation, detections = random_case(seed)
    verdicts, _ = find_verdicts(validation.ground_truth, detections)
    expected, found = slow_verdicts(validation, detections)
    words = np.select([verdicts.true_positive, verdicts.ignored], ["right", "ignored"], "wrong")
    assert dict(zip(verdicts.index.tolist(), words.tolist(), strict=True)) == expected
    assert set(np.flatnonzero(verdicts.found).tolist()) == found
    assert len(found) > 10


def test_detections_are_by_class_and_falling_score(random_case):
    validation, detections = random_case(0)
    verdicts, _ = find_verdicts(validation.ground_truth, detections)
    np.testing.assert_array_equal(verdicts.index, verdicts.index[np.lexsort((-verdicts.score, verdicts.label))])
    np.testing.assert_array_equal(verdicts.boxes_xywh, detections.boxes_xywh[verdicts.index])
    np.testing.assert_array_equal(verdicts.image, detections.image_index[verdicts.index])


def test_float32_detections_are_judged_as_the_same_numbers_in_float64(random_case):
    validation, detections = random_case(1)
    boxes = (detections.boxes_xywh + 1 / 3).astype(np.float32)
    narrow = detections._replace(boxes_xywh=boxes, scores=detections.scores.astype(np.float32))
    wide = narrow._replace(boxes_xywh=boxes.astype(float), scores=narrow.scores.astype(float))
    first, second = (find_verdicts(validation.ground_truth, each)[0] for each in (narrow, wide))
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(first, second, strict=True))


def test_crowd_is_no_object_and_its_detections_are_ignored(make_validation, columns):
    validation = make_validation([(0, 0, BOX), (0, 0, (500, 500, 300, 300))], crowds=[1], federated=False)
    verdicts, _ = find_verdicts(validation.ground_truth, columns((0, 0, BOX, 0.9), (0, 0, (550, 550, 50, 50), 0.8)))
    assert verdicts.is_object.tolist() == [True, False]
    assert verdicts.found.tolist() == [True, False]
    assert verdicts.true_positive.tolist() == [True, False]
    assert verdicts.ignored.tolist() == [False, True]


def test_object_in_a_crowd_is_found_and_not_the_crowd(make_validation, columns):
    # The detection lies in the crowd with all of its area, and overlaps the object by IoU 0.6.
    validation = make_validation([(0, 0, BOX), (0, 0, (0, 0, 500, 500))], crowds=[1], federated=False)
    verdicts, _ = find_verdicts(validation.ground_truth, columns((0, 0, (125, 100, 100, 100), 0.9)))
    assert verdicts.found.tolist() == [True, False]


def test_second_detection_takes_the_object_that_is_left(make_validation, columns):
    # Both detections overlap the first object most.
    validation = make_validation([(0, 0, BOX), (0, 0, (125, 100, 100, 100))])
    rows = (0, 0, BOX, 0.9), (0, 0, (110, 100, 100, 100), 0.8)
    verdicts, _ = find_verdicts(validation.ground_truth, columns(*rows))
    assert verdicts.found.tolist() == [True, True]


def test_of_equally_near_objects_the_last_is_found(make_validation, columns):
    verdicts, _ = find_verdicts(make_validation([(0, 0, BOX), (0, 0, BOX)]).ground_truth, columns((0, 0, BOX, 0.9)))
    assert verdicts.found.tolist() == [False, True]


def test_no_detections_are_no_verdicts(make_validation, columns):
    verdicts, _ = find_verdicts(make_validation([(0, 0, BOX)]).ground_truth, columns())
    assert len(verdicts.score) == 0
    assert verdicts.found.tolist() == [False]
