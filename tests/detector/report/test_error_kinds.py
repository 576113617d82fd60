"""Kinds of errors, what fixing them gains, and confused classes, worked out by hand."""

import numpy as np
import pytest

from longshot.detector.report.error_kinds import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    KINDS,
    LOCALIZATION,
    NO_ERROR,
    ap_without_error,
    confusions,
    find_errors,
)
from longshot.detector.report.verdicts import find_verdicts

# IoU with BOX: 1, 0.6, 1/3, 0.08, 0.
BOX, NEAR, LOOSE, TOUCHING, FAR = ((x, 100, 100, 100) for x in (100, 125, 150, 185, 600))


def iou_of(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def errors_of(validation, detections):
    verdicts, _ = find_verdicts(validation.ground_truth, detections)
    return verdicts, find_errors(verdicts, validation.ground_truth)


def gains(validation, detections):
    """{kind: gains in AP50 of the classes}"""
    fixed = ap_without_error(*errors_of(validation, detections), validation.ground_truth)
    return {name: (ap - fixed[""]).round(6).tolist() for name, ap in fixed.items() if name}


@pytest.mark.parametrize(
    ("label", "box", "kind"),
    [
        (0, LOOSE, LOCALIZATION),
        (1, NEAR, CLASSIFICATION),
        (1, LOOSE, BOTH),
        (0, NEAR, NO_ERROR),
        (0, TOUCHING, BACKGROUND),
        (1, TOUCHING, BACKGROUND),
        (0, FAR, BACKGROUND),
    ],
)
def test_kind_of_a_single_detection(make_validation, columns, label, box, kind):
    _, errors = errors_of(make_validation([(0, 0, BOX)]), columns((0, label, box, 0.9)))
    assert errors.kind.tolist() == [kind]
    on_object = kind in (LOCALIZATION, CLASSIFICATION)
    assert errors.object_.tolist() == [0 if on_object else -1]
    assert errors.missed.tolist() == [not on_object and kind != NO_ERROR]


def test_second_detection_of_an_object_is_a_duplicate(make_validation, columns):
    verdicts, errors = errors_of(make_validation([(0, 0, BOX)]), columns((0, 0, NEAR, 0.8), (0, 0, BOX, 0.9)))
    assert verdicts.score.tolist() == [0.9, 0.8]
    assert errors.kind.tolist() == [NO_ERROR, DUPLICATE]


def test_objects_of_other_images_do_not_matter(make_validation, columns):
    validation = make_validation([(0, 0, BOX), (1, 1, BOX)])
    _, errors = errors_of(validation, columns((1, 0, BOX, 0.9)))
    assert errors.kind.tolist() == [CLASSIFICATION]
    _, errors = errors_of(validation, columns((1, 0, FAR, 0.9)))
    assert errors.kind.tolist() == [BACKGROUND]


def test_localization_goes_before_classification_and_that_before_duplicate(make_validation, columns):
    # As in TIDE's code: the own object is loosely hit, another class's exactly.
    validation = make_validation([(0, 0, BOX), (0, 1, LOOSE)])
    _, errors = errors_of(validation, columns((0, 0, LOOSE, 0.9)))
    assert errors.kind.tolist() == [LOCALIZATION]
    validation = make_validation([(0, 0, BOX), (0, 1, NEAR)])
    _, errors = errors_of(validation, columns((0, 0, BOX, 0.9), (0, 0, NEAR, 0.8)))
    assert errors.kind.tolist() == [NO_ERROR, CLASSIFICATION]


def test_detections_of_unchecked_classes_are_no_errors(make_validation, columns):
    validation = make_validation([(0, 0, BOX)], absent=[(0, 1)])
    verdicts, errors = errors_of(validation, columns((0, 1, BOX, 0.9), (0, 2, BOX, 0.8), (1, 0, BOX, 0.7)))
    assert verdicts.label.tolist() == [1]
    assert errors.kind.tolist() == [CLASSIFICATION]


@pytest.mark.parametrize("box", [FAR, LOOSE, NEAR])
def test_where_annotation_is_incomplete_a_detection_too_many_is_no_error(make_validation, columns, box):
    detections = columns((0, 0, BOX, 0.9), (0, 0, box, 0.8))
    _, errors = errors_of(make_validation([(0, 0, BOX)], incomplete=[(0, 0)]), detections)
    assert errors.kind.tolist() == [NO_ERROR, NO_ERROR]
    assert NO_ERROR not in errors_of(make_validation([(0, 0, BOX)]), detections)[1].kind[1:]


def test_detection_in_a_crowd_is_no_error_and_the_crowd_is_not_missed(make_validation, columns):
    validation = make_validation([(0, 0, (0, 0, 500, 500))], crowds=[0], federated=False)
    _, errors = errors_of(validation, columns((0, 0, BOX, 0.9), (0, 1, (0, 0, 500, 500), 0.8)))
    assert errors.kind.tolist() == [NO_ERROR, BACKGROUND]
    assert errors.missed.tolist() == [False]


@pytest.mark.parametrize("seed", range(6))
def test_kinds_are_those_of_a_loop(random_case, seed):
    validation, detections = random_case(seed)
    verdicts, errors = errors_of(validation, detections)
    truth = validation.ground_truth
    images, labels = np.divmod(truth.cell, truth.num_classes)
    on = set()
    for d in np.flatnonzero(verdicts.false_positive):
        there = np.flatnonzero(images == verdicts.image[d])
        ious = {g: iou_of(verdicts.boxes_xywh[d], truth.boxes_xywh[g]) for g in there.tolist()}
        own = max((v for g, v in ious.items() if labels[g] == verdicts.label[d]), default=0)
        other = max((v for g, v in ious.items() if labels[g] != verdicts.label[d]), default=0)
        if 0.1 <= own < 0.5:
            expected = LOCALIZATION
        elif other >= 0.5:
            expected = CLASSIFICATION
        elif own >= 0.5:
            expected = DUPLICATE
        else:
            expected = BACKGROUND if max(own, other) < 0.1 else BOTH
        assert errors.kind[d] == expected
        if expected in (LOCALIZATION, CLASSIFICATION):
            assert ious[errors.object_[d]] == (own if expected == LOCALIZATION else other)
            on.add(int(errors.object_[d]))
    assert (errors.kind[~verdicts.false_positive] == NO_ERROR).all()
    left = set(np.flatnonzero(~verdicts.found).tolist()) - on
    assert set(np.flatnonzero(errors.missed).tolist()) == left
    assert {LOCALIZATION, CLASSIFICATION, BOTH, BACKGROUND} <= set(errors.kind.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_ap_before_any_fix_is_that_of_the_evaluator(random_case, seed):
    validation, detections = random_case(seed)
    verdicts, evaluator = find_verdicts(validation.ground_truth, detections)
    ap = ap_without_error(verdicts, find_errors(verdicts, validation.ground_truth), validation.ground_truth)[""]
    official = 100 * evaluator.accumulate().precision[0, :, :, 0, 0].mean(axis=0)
    np.testing.assert_allclose(ap[:5], official[:5], atol=1e-10)
    assert np.isnan(ap[5])


def test_fixing_a_classification_error_helps_both_classes(make_validation, columns):
    # Class 0: a wrong detection above a right one, AP50 50; class 1: its object is only found as class 0, AP50 0.
    validation = make_validation([(0, 1, BOX), (1, 0, BOX)], num_classes=2)
    found = gains(validation, columns((0, 0, BOX, 0.9), (1, 0, BOX, 0.8)))
    assert found == {
        "classification": [50, 100],
        "localization": [0, 0],
        "both": [0, 0],
        "duplicate": [0, 0],
        "background": [0, 0],
        "missed": [0, 0],
        "false positives": [50, 0],
        "false negatives": [0, 0],
    }


def test_fixing_a_localization_error_finds_the_object(make_validation, columns):
    found = gains(make_validation([(0, 0, BOX)], num_classes=1), columns((0, 0, LOOSE, 0.9)))
    assert found["localization"] == [100]
    assert found["missed"] == [0], "it would have been found"
    assert found["false negatives"] == [0], "a class without any right detection stays at 0"


def test_only_the_best_error_on_an_object_is_made_right(make_validation, columns):
    # Two loose detections: the better one becomes right, the other goes away. AP50 0 -> 100.
    validation = make_validation([(0, 0, BOX)], num_classes=1)
    assert gains(validation, columns((0, 0, LOOSE, 0.9), (0, 0, (50, 100, 100, 100), 0.8)))["localization"] == [100]
    # The better one is a classification error: fixing localization only removes.
    validation = make_validation([(0, 0, BOX)], num_classes=2)
    found = gains(validation, columns((0, 1, BOX, 0.9), (0, 0, LOOSE, 0.8)))
    assert (found["localization"][0], found["classification"][0]) == (0, pytest.approx(100))


def test_error_on_an_object_that_was_found_is_removed(make_validation, columns):
    # Class 0: wrong above right, AP50 50; the wrong one lies on a found object of class 1, whose AP50 stays 100.
    validation = make_validation([(0, 1, BOX), (1, 0, BOX)], num_classes=2)
    found = gains(validation, columns((0, 0, BOX, 0.9), (1, 0, BOX, 0.8), (0, 1, BOX, 0.7)))
    assert found["classification"] == [50, 0]


@pytest.mark.parametrize(
    ("kind", "label", "box"), [("both", 1, LOOSE), ("background", 1, FAR), ("duplicate", 0, (99, 100, 100, 100))]
)
def test_other_errors_go_away_by_fixing(make_validation, columns, kind, label, box):
    # A wrong detection between two right ones, or above a right one.
    validation = make_validation([(0, 0, BOX), (1, label, BOX)], num_classes=2)
    found = gains(validation, columns((0, 0, BOX, 0.9), (0, label, box, 0.8), (1, label, BOX, 0.7)))
    # Class 0: right, wrong, right of two: (51 + 50 * 2 / 3) / 101. Class 1: wrong, right of one: 1/2.
    gain = 100 * (1 - (51 + 50 * 2 / 3) / 101) if label == 0 else 50
    assert found[kind][label] == pytest.approx(gain)
    assert found["false positives"][label] == pytest.approx(gain)
    assert all(found[name][label] == 0 for name in KINDS if name != kind)


def test_fixing_missed_objects_no_longer_asks_for_them(make_validation, columns):
    validation = make_validation([(0, 0, BOX), (1, 0, BOX)], num_classes=2)
    found = gains(validation, columns((0, 0, BOX, 0.9)))
    gain = pytest.approx(100 - 100 * 51 / 101)
    assert found["missed"][0] == found["false negatives"][0] == gain
    assert np.isnan(found["missed"][1]), "a class without objects has no AP, fixed or not"


def test_class_whose_objects_are_all_missed_stays_at_zero(make_validation, columns):
    found = gains(make_validation([(0, 0, BOX)], num_classes=1), columns())
    assert {gain for of_classes in found.values() for gain in of_classes} == {0}


def test_confused_pairs_are_counted_by_the_nearest_object(make_validation, columns):
    validation = make_validation([(0, 1, BOX), (0, 2, NEAR), (1, 1, BOX), (1, 0, FAR)])
    # Above 0.5: once on an object of class 1, twice on one of class 2; class 1 again below. LOOSE is nearest to NEAR.
    rows = [(0, 0, BOX, 0.9), (0, 0, NEAR, 0.8), (0, 0, LOOSE, 0.7), (1, 0, NEAR, 0.2), (1, 0, BOX, 0.1)]
    verdicts, errors = errors_of(validation, columns(*rows, (1, 0, FAR, 0.6)))
    pairs = confusions(verdicts, errors, validation.ground_truth, shown=verdicts.score > 0.5)
    assert pairs.tolist() == [[0, 2, 2, 2], [0, 1, 1, 3]]
    pairs = confusions(verdicts, errors, validation.ground_truth, shown=verdicts.score > 0)
    assert pairs.tolist() == [[0, 1, 3, 3], [0, 2, 2, 2]]


def test_confusion_with_an_unchecked_class_does_not_count(make_validation, columns):
    validation = make_validation([(0, 0, BOX)], absent=[(0, 1)])
    verdicts, errors = errors_of(validation, columns((0, 1, BOX, 0.9), (0, 2, BOX, 0.9)))
    assert confusions(verdicts, errors, validation.ground_truth, shown=verdicts.score > 0).tolist() == [[1, 0, 1, 1]]


def test_without_detections_everything_is_missed_and_nothing_confused(make_validation, columns):
    validation = make_validation([(0, 0, BOX), (1, 1, BOX)])
    verdicts, errors = errors_of(validation, columns())
    assert errors.missed.tolist() == [True, True]
    assert confusions(verdicts, errors, validation.ground_truth, shown=verdicts.score > 0).shape == (0, 4)


def test_numbers_are_those_of_the_package_of_the_paper(make_validation, columns):
    # What tidecv 1.0.1 finds on the same data, in which every class has objects (it counts the others as AP 0).
    rng, objects, rows = np.random.default_rng(0), [], []
    for i in range(60):
        for _ in range(rng.integers(2, 9)):
            box = rng.uniform([0, 0, 40, 40], [300, 300, 160, 160])
            objects.append((i, int(rng.integers(8)), box))
    for i, label, box in objects:
        for _ in range(rng.integers(0, 4)):
            moved = box + np.append(rng.uniform(-40, 40, 2), rng.uniform(-10, 10, 2))
            rows.append((i, label if rng.random() < 0.6 else int(rng.integers(8)), moved, rng.random()))
    for _ in range(100):
        box_of = int(rng.integers(60)), int(rng.integers(8)), rng.uniform([0, 0, 40, 40], [300, 300, 160, 160])
        rows.append((*box_of, rng.random()))
    validation = make_validation(objects, num_images=60, num_classes=8, federated=False)
    verdicts, errors = errors_of(validation, columns(*rows))
    counts = [int((errors.kind == k).sum()) for k in range(5)] + [int(errors.missed.sum())]
    assert dict(zip(KINDS, counts, strict=True)) == {
        "classification": 72, "localization": 197, "both": 132, "duplicate": 24, "background": 53, "missed": 106,
    }  # fmt: skip
    fixed = ap_without_error(verdicts, errors, validation.ground_truth)
    gain = {name: ap.mean() - fixed[""].mean() for name, ap in fixed.items() if name}
    assert fixed[""].mean() == pytest.approx(7.876813413935513)
    expected = {
        "classification": 6.411854655, "localization": 21.177126776, "both": 1.886799917, "duplicate": 0.136864579,
        "background": 0.734654101, "missed": 3.702015105, "false positives": 22.444968764,
        "false negatives": 17.345955237,
    }  # fmt: skip
    assert gain == pytest.approx(expected, abs=1e-8)
