"""The metric of the Open Images Challenge: by hand, against plain loops, and against itself in parts."""

import math

import numpy as np
import pytest

from longshot.datasets import DataError, read_annotations
from longshot.datasets.classes import Classes
from longshot.detector.evaluation.ground_truth import GroundTruth
from longshot.detector.evaluation.open_images import (
    OPEN_IMAGES,
    OpenImagesEvaluator,
    average_precision,
    open_images_truth,
)
from longshot.detector.evaluation.open_images_metrics import instance_groups, open_images_table, summarize_open_images


def truth_of(objects, *, num_images=1, num_classes=1, negative=()):
    """Objects (image, label, box, group-of); `negative` are pairs of image and label."""
    image, label, boxes, group = zip(*objects, strict=True) if objects else ([], [], [], [])
    cell = np.array(image, np.int64) * num_classes + np.array(label, np.int64)
    order = np.argsort(cell, kind="stable")
    absent = np.array([i * num_classes + k for i, k in negative], np.int64)
    return GroundTruth(
        OPEN_IMAGES, num_images, num_classes, cell[order], np.array(boxes, float).reshape(-1, 4)[order],
        np.array(group, bool)[order], np.zeros((len(cell), 4), bool), np.union1d(cell, absent), np.zeros(0, np.int64),
    )  # fmt: skip


def ap_of(truth, detections):
    """AP of each class; detections are (image, label, box, score)."""
    evaluator = OpenImagesEvaluator(truth)
    evaluator.add(*(zip(*detections, strict=True) if detections else ([], [], [], [])))
    return evaluator.accumulate().tolist()


LEFT, RIGHT, FAR = [0, 0, 10, 10], [20, 0, 10, 10], [500, 500, 9, 9]
AROUND_LEFT = [0, 0, 10, 5]  # IoU 0.5 with LEFT, exactly


def test_iou_of_one_half_is_enough():
    assert ap_of(truth_of([(0, 0, LEFT, False)]), [(0, 0, AROUND_LEFT, 0.9)]) == [1]
    assert ap_of(truth_of([(0, 0, LEFT, False)]), [(0, 0, [0, 0, 10, 4.9], 0.9)]) == [0]


def test_area_under_the_envelope():
    # right, wrong, right, of four objects: precision 1, 1/2, 2/3 at recall 1/4, 1/4, 1/2
    objects = [(i, 0, LEFT, False) for i in range(4)]
    found = [(0, 0, LEFT, 0.9), (1, 0, FAR, 0.8), (2, 0, LEFT, 0.7)]
    assert ap_of(truth_of(objects, num_images=4), found) == [pytest.approx(1 / 4 + 2 / 3 / 4)]
    # wrong, right: the envelope is 1/2 from the beginning
    assert average_precision(np.array([False, True]), 1) == 0.5


def test_a_taken_object_is_not_replaced_by_the_next_best():
    # Both detections overlap the first object most; COCO would give the second object to the second detection.
    objects = [(0, 0, [0, 0, 10, 10], False), (0, 0, [0, 4, 10, 10], False)]
    found = [(0, 0, [0, 1, 10, 10], 0.9), (0, 0, [0, 1.5, 10, 10], 0.8)]
    assert ap_of(truth_of(objects), found) == [0.5]
    assert ap_of(truth_of(objects), [found[0], (0, 0, [0, 3, 10, 10], 0.8)]) == [1]


def test_detections_in_a_group_are_one_true_positive_with_the_best_score():
    # Group found at 0.9, its other detections forgotten; the false one at 0.5 comes before the object found at 0.3.
    objects = [(0, 0, [0, 0, 100, 100], True), (1, 0, LEFT, False)]
    inside = [(0, 0, [i, i, 9, 9], score) for i, score in ((1, 0.1), (30, 0.9), (60, 0.6))]
    assert ap_of(truth_of(objects, num_images=2), [*inside, (1, 0, FAR, 0.5), (1, 0, LEFT, 0.3)]) == [
        pytest.approx((1 + 2 / 3) / 2)
    ]


def test_a_group_without_a_detection_is_missed():
    assert ap_of(truth_of([(0, 0, LEFT, True), (0, 0, RIGHT, False)]), [(0, 0, RIGHT, 0.9)]) == [0.5]


@pytest.mark.parametrize(("x", "ap"), [(5, 1), (4.9, 0)])
def test_half_of_a_detection_must_lie_in_the_group(x, ap):
    # A detection of 10 x 10 with its left part outside; its IoU with the group is tiny.
    assert ap_of(truth_of([(0, 0, [10, 0, 500, 500], True)]), [(0, 0, [x, 0, 10, 10], 0.9)]) == [ap]


def test_objects_come_before_the_group_around_them_and_second_detections_go_to_the_group():
    objects = [(0, 0, LEFT, False), (0, 0, [0, 0, 100, 100], True)]
    twice = [(0, 0, LEFT, 0.9), (0, 0, AROUND_LEFT, 0.8)]
    assert ap_of(truth_of(objects), twice) == [1]
    assert ap_of(truth_of(objects), twice[:1]) == [0.5]
    assert ap_of(truth_of(objects[:1]), twice) == [1]  # false, but after full recall
    assert ap_of(truth_of([*objects[:1], (1, 0, LEFT, False)], num_images=2), [*twice, (1, 0, LEFT, 0.7)]) == [
        pytest.approx((1 + 2 / 3) / 2)  # false, before the last object
    ]


def test_only_checked_classes_of_an_image_are_judged():
    objects, found = [(0, 0, LEFT, False)], [(1, 0, FAR, 0.9), (0, 0, LEFT, 0.8)]
    assert ap_of(truth_of(objects, num_images=2), found) == [1]
    assert ap_of(truth_of(objects, num_images=2, negative=[(1, 0)]), found) == [0.5]


def test_example_of_the_official_test():
    # tensorflow/models, object_detection_evaluation_test.py, OpenImagesChallengeEvaluatorTest, with group_of_weight 1
    # where that test has 0.5 (and cat 1/7, elephant 1/3). Corners there are ymin, xmin, ymax, xmax, symmetric all.
    def box(low, high):
        return [low, low, high - low, high - low]

    objects = [
        (0, 0, box(0, 1), False), (0, 2, box(0, 2), False), (0, 0, box(0, 3), True),
        (1, 0, box(10, 11), False), (1, 0, box(500, 510), False), (1, 2, box(10, 12), True), (2, 1, box(0, 1), False),
    ]  # fmt: skip
    found = [
        (0, 1, box(10, 11), 0.7), (0, 1, box(100, 120), 0.8), (1, 0, box(10, 11), 0.7), (1, 0, box(100, 120), 0.8),
        (1, 1, box(100, 220), 0.5), (1, 2, box(10, 11), 0.9), (2, 1, box(0, 1), 0.5),
    ]  # fmt: skip
    truth = truth_of(objects, num_images=3, num_classes=3, negative=[(0, 1)])
    # cat: of 4 objects one, behind a false one; dog: 1 object behind 2 false; elephant: the group, and one missed
    assert ap_of(truth, found) == pytest.approx([1 / 2 / 4, 1 / 3, 1 / 2])


def test_nothing_found_is_0_and_nothing_to_find_is_no_number():
    truth = truth_of([(0, 1, LEFT, False)], num_classes=2, negative=[(0, 0)])
    assert ap_of(truth, [])[1] == 0
    assert math.isnan(ap_of(truth, [(0, 0, LEFT, 0.9)])[0])


def random_case(seed):
    """Objects and detections near them, all scores different; sizes and places in whole and half pixels."""
    rng = np.random.default_rng(seed)
    num_images, num_classes = (int(n) for n in rng.integers(1, 5, 2))
    objects, detections = [], []
    for _ in range(rng.integers(0, 20)):
        box = [*rng.integers(0, 40, 2).tolist(), *rng.integers(4, 30, 2).tolist()]
        objects.append((int(rng.integers(num_images)), int(rng.integers(num_classes)), box, bool(rng.random() < 0.3)))
    scores = rng.permutation(60) / 60 + 0.01
    for score in scores[: rng.integers(0, 61)].tolist():
        if objects and rng.random() < 0.75:
            image, label, (x, y, w, h), _ = objects[rng.integers(len(objects))]
            shrink = rng.choice([0.5, 1, 1, 0.25])
            box = [x + int(rng.integers(-3, 4)), y + int(rng.integers(-3, 4)), w * shrink, max(1, h * shrink)]
        else:
            image, label = int(rng.integers(num_images)), int(rng.integers(num_classes))
            box = [*rng.integers(0, 40, 2).tolist(), *rng.integers(0, 25, 2).tolist()]
        detections.append((image, label, box, score))
    pairs = [(i, k) for i in range(num_images) for k in range(num_classes)]
    return objects, detections, num_images, num_classes, [pair for pair in pairs if rng.random() < 0.4]


def common(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def verdicts_by_loops(objects, detections):
    """(score, is right) of what counts in one image and class; objects are (box, group-of), detections (box, score)."""
    singles, groups = ([box for box, group in objects if group is kind] for kind in (False, True))
    taken, best_in_group, verdicts = set(), {}, []
    for box, score in sorted(detections, key=lambda d: -d[1]):
        area = box[2] * box[3]
        if area <= 0:
            continue
        ious = [common(box, s) / (area + s[2] * s[3] - common(box, s)) for s in singles]
        nearest = ious.index(max(ious)) if ious else None
        if ious and ious[nearest] >= 0.5 and nearest not in taken:
            taken.add(nearest)
            verdicts.append((score, True))
            continue
        parts = [common(box, g) / area for g in groups]
        if parts and max(parts) >= 0.5:
            best_in_group.setdefault(parts.index(max(parts)), score)
        else:
            verdicts.append((score, False))
    return verdicts + [(score, True) for score in best_in_group.values()]


def ap_by_loops(objects, detections, num_images, num_classes, negative):
    aps = []
    for k in range(num_classes):
        verdicts = []
        for i in range(num_images):
            here = [(box, group) for image, label, box, group in objects if (image, label) == (i, k)]
            if here or (i, k) in negative:
                verdicts += verdicts_by_loops(
                    here, [(b, s) for image, label, b, s in detections if (image, label) == (i, k)]
                )
        total = sum(label == k for _, label, _, _ in objects)
        points, right = [], 0
        for rank, (_, is_right) in enumerate(sorted(verdicts, reverse=True), start=1):
            right += is_right
            points.append((right / max(total, 1), right / rank))
        area, reached = 0.0, 0.0
        for place, (recall, _) in enumerate(points):
            area += (recall - reached) * max(precision for _, precision in points[place:])
            reached = recall
        aps.append(area if total else math.nan)
    return aps


@pytest.mark.parametrize("seed", range(60))
def test_random_case_equals_plain_loops(seed):
    objects, detections, num_images, num_classes, negative = case = random_case(seed)
    truth = truth_of(objects, num_images=num_images, num_classes=num_classes, negative=negative)
    np.testing.assert_allclose(ap_of(truth, detections), ap_by_loops(*case), rtol=1e-12)


def test_random_cases_hold_what_they_are_for():
    cases = [random_case(seed) for seed in range(60)]
    aps = np.array([ap for case in cases for ap in ap_by_loops(*case)])
    assert np.isnan(aps).sum() > 5
    assert ((aps > 0.05) & (aps < 0.95)).sum() > 50
    assert sum(group for objects, *_ in cases for *_, group in objects) > 100


def test_any_split_over_calls_and_processes_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr("longshot.detector.evaluation.whole_images.IMAGES_PER_CHUNK", 2)
    objects, detections, *sizes = random_case(4)
    num_images, num_classes, negative = sizes
    assert num_images > 2
    truth = truth_of(objects, num_images=num_images, num_classes=num_classes, negative=negative)
    gathered = OpenImagesEvaluator(truth)
    for image in reversed(range(num_images)):
        rank = OpenImagesEvaluator(truth)
        rank.add(*zip(*[d for d in detections if d[0] == image], strict=True))
        gathered.merge(rank.state())
    assert gathered.accumulate().tolist() == pytest.approx(ap_of(truth, detections), nan_ok=True, rel=0, abs=0)


def test_an_image_that_comes_twice_is_an_error():
    evaluator = OpenImagesEvaluator(truth_of([(0, 0, LEFT, False)]))
    evaluator.add([0], [0], [LEFT], [0.9])
    with pytest.raises(ValueError, match="1 images were evaluated twice, the first at index 0"):
        evaluator.add([0], [0], [LEFT], [0.9])
    with pytest.raises(ValueError, match="1 images were evaluated twice"):
        evaluator.merge(evaluator.state())


def test_equal_scores_rank_by_image_and_then_as_they_come():
    objects, found = [(1, 0, LEFT, False)], [(1, 0, LEFT, 0.5), (0, 0, FAR, 0.5), (1, 0, FAR, 0.5)]
    truth = truth_of(objects, num_images=2, negative=[(0, 0)])
    assert ap_of(truth, found) == [0.5]
    assert ap_of(truth, found[::-1]) == [pytest.approx(1 / 3)]


@pytest.fixture
def annotations(tmp_path):
    """Image 1 has a group of ants, a box without area and a checked class without a box; image 2 says nothing."""
    path = tmp_path / "val.json"
    path.write_text(
        """{"images": [{"id": 1, "width": 50, "height": 50, "file_name": "a", "neg_category_ids": [3]},
                       {"id": 2, "width": 50, "height": 50, "file_name": "b", "neg_category_ids": []}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40], "iscrowd": 1},
                        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [5, 5, 0, 40], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}, {"id": 3, "name": "cat"}]}"""
    )
    return read_annotations(path)


def test_converted_file_keeps_groups_and_all_objects(annotations):
    truth = open_images_truth(annotations)
    assert truth.cell.tolist() == [0, 1]
    assert truth.crowd.tolist() == [True, False]
    assert truth.verified_cells.tolist() == [0, 1, 2]
    assert truth.num_objects[:, 0].tolist() == [1, 1, 0]  # the one without area cannot be found, and counts


def test_file_without_negative_labels_is_refused(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(
        '{"images": [{"id": 1, "width": 5, "height": 5, "file_name": "a"}], "annotations": [], '
        '"categories": [{"id": 1, "name": "ant"}]}'
    )
    with pytest.raises(DataError, match="the open_images protocol needs 'neg_category_ids'"):
        open_images_truth(read_annotations(path))


def test_summary_and_table(annotations):
    evaluator = OpenImagesEvaluator(open_images_truth(annotations))
    evaluator.add([0, 0], [0, 2], [[1, 1, 8, 8], FAR], [0.9, 0.8])
    result = summarize_open_images(evaluator, Classes.of_file(annotations), train_instance_counts=np.array([70, 5, 9]))
    assert result["AP50"] == 50  # 100 and 0; cats have no object
    assert result["AP50_groups"] == [0, None, 100]
    assert result["support"] == {"classes": 2, "objects": 2}
    assert result["classes"][0] == {
        "name": "ant", "category_id": 1, "group": 2, "train_instances": 70, "AP50": 100, "num_objects": 1,
    }  # fmt: skip
    assert open_images_table(result).splitlines() == [
        "open_images protocol (challenge 2019): IoU 0.5, verified classes, group-of boxes; "
        "2 images, 2 classes, 2 objects",
        "AP50 50.0",
        "by training boxes, rarest fifth first: 0.0, n/a, 100.0",
    ]
    assert summarize_open_images(evaluator, Classes.of_file(annotations))["AP50_groups"] is None


def test_groups_are_fifths_of_the_classes_from_rare_to_frequent():
    counts = np.random.default_rng(0).permutation(500) * 3
    groups = instance_groups(counts)
    assert np.bincount(groups).tolist() == [100] * 5
    assert [counts[groups == g].max() < counts[groups == g + 1].min() for g in range(4)] == [True] * 4
    assert instance_groups([7, 1, 7, 7, 0]).tolist() == [2, 1, 3, 4, 0]
