"""The evaluator against the official packages, bit for bit, against numbers worked out by hand, and against itself."""

import numpy as np
import pycocotools.mask
import pytest

from longshot.detector.evaluation.columnar import ColumnarEvaluator
from longshot.detector.evaluation.ground_truth import COCO, LVIS, GroundTruth
from longshot.detector.evaluation.matching import overlap

EVERYTHING = [0.0, 0.0, 100.0, 100.0]


def assert_equals(official, ours):
    np.testing.assert_array_equal(ours.curves.precision, official.precision)
    np.testing.assert_array_equal(ours.curves.recall, official.recall)
    assert {name: ours.result[name] for name in official.numbers} == official.numbers


def assert_equals_lvis(case, score, lvis_oracle):
    official = lvis_oracle(case)
    assert len(official.numbers) == 13
    assert_equals(official, score(case, LVIS))


def assert_equals_coco(case, score, coco_oracle):
    assert_equals(coco_oracle(case), score(case, COCO))


@pytest.mark.parametrize("seed", range(24))
def test_federated_equals_lvis_bitwise(seed, random_case, score, lvis_oracle):
    assert_equals_lvis(random_case(seed, corners=seed % 4 != 0), score, lvis_oracle)


@pytest.mark.parametrize("seed", range(24))
def test_crowds_equal_pycocotools_bitwise(seed, random_case, score, coco_oracle):
    assert_equals_coco(random_case(seed, crowd=True, corners=seed % 4 != 0), score, coco_oracle)


# Of a few boxes each, so that every one of them decides: empty images, classes without objects, single detections.
@pytest.mark.parametrize("seed", range(150))
def test_tiny_federated_case_equals_lvis_bitwise(seed, tiny_case, score, lvis_oracle):
    assert_equals_lvis(tiny_case(seed), score, lvis_oracle)


@pytest.mark.parametrize("seed", range(150))
def test_tiny_crowd_case_equals_pycocotools_bitwise(seed, tiny_case, score, coco_oracle):
    assert_equals_coco(tiny_case(seed), score, coco_oracle)


@pytest.mark.parametrize("seed", range(3))
def test_federated_equals_lvis_bitwise_above_300_detections_per_image(seed, random_case, score, lvis_oracle):
    case = random_case(100 + seed, images=2, classes=4, objects=100, detections=420)
    assert_equals_lvis(case, score, lvis_oracle)


@pytest.mark.parametrize("seed", range(3))
def test_coco_equals_pycocotools_bitwise_above_100_detections_per_class(seed, random_case, score, coco_oracle):
    case = random_case(200 + seed, images=2, classes=2, objects=60, detections=300, crowd=True)
    assert_equals_coco(case, score, coco_oracle)


def test_lvis_takes_no_notice_of_crowds(random_case, score, lvis_oracle):
    assert_equals_lvis(random_case(300, crowd=True), score, lvis_oracle)


def test_boxes_of_any_size_and_place_equal_both_packages_bitwise(random_case, score, lvis_oracle, coco_oracle):
    case = random_case(400)
    rng = np.random.default_rng(400)
    for record in case.dataset["annotations"] + case.results:
        record["bbox"] = (np.array(record["bbox"]) * rng.uniform(0.98, 1.02, 4) - 7.3).tolist()
        record["bbox"][2:] = np.abs(record["bbox"][2:]).tolist()
    assert_equals_lvis(case, score, lvis_oracle)
    assert_equals_coco(case, score, coco_oracle)


def test_overlap_equals_pycocotools_bitwise():
    rng = np.random.default_rng(0)
    boxes, others = rng.uniform(-20, 60, (2, 300, 4))  # negative sizes too
    crowd = rng.random(300) < 0.3
    expected = pycocotools.mask.iou(boxes, others, crowd.tolist())
    first, second = np.divmod(np.arange(300 * 300), 300)
    found = overlap(boxes[first], others[second], crowd[second]).reshape(300, 300)
    np.testing.assert_array_equal(found, expected)
    assert np.count_nonzero(expected) > 1000


@pytest.mark.parametrize("protocol", [LVIS, COCO], ids=["lvis", "coco"])
def test_any_split_over_calls_and_processes_gives_the_same_bits(protocol, random_case, ground_truth_of, columns_of):
    # More images than one chunk, so that a single call is cut up too.
    case = random_case(500, images=600, detections=4, crowd=True)
    truth, columns = ground_truth_of(case.dataset, protocol), columns_of(case)
    whole = ColumnarEvaluator(truth)
    whole.add(*columns)
    ranks = [ColumnarEvaluator(truth) for _ in range(3)]
    for image in np.random.default_rng(0).permutation(600).tolist():
        of_image = columns[0] == image
        ranks[image % 3].add(*(column[of_image] for column in columns))
    gathered = ColumnarEvaluator(truth)
    for rank in ranks:
        gathered.merge(rank.state())
    expected, found = whole.accumulate(), gathered.accumulate()
    np.testing.assert_array_equal(found.precision, expected.precision)
    np.testing.assert_array_equal(found.recall, expected.recall)
    assert expected.precision.max() > 0.2


def test_what_is_kept_of_a_detection_is_30_bytes(random_case, ground_truth_of, columns_of):
    case = random_case(0)
    evaluator = ColumnarEvaluator(ground_truth_of(case.dataset, COCO))
    evaluator.add(*columns_of(case))
    state = evaluator.state()
    assert sum(column.nbytes for column in state) == 30 * len(state.score) > 0


def evaluator_of(protocol, boxes, *, labels=None, num_images=1, num_classes=1, crowd=None, ignore=None, **lists):
    """Objects of image 0, of 100 x 100 pixels unless said otherwise."""
    boxes, nothing = np.array(boxes, float).reshape(-1, 4), [0] * len(boxes)
    return ColumnarEvaluator(
        GroundTruth.from_arrays(
            protocol,
            num_images=num_images,
            num_classes=num_classes,
            image_index=nothing,
            labels=labels or nothing,
            boxes_xywh=boxes,
            areas=boxes[:, 2] * boxes[:, 3],
            crowd=crowd or nothing,
            ignore=ignore or nothing,
            **lists,
        )
    )


def average_precision(evaluator, iou=0.5):
    return evaluator.accumulate().precision[round((iou - 0.5) / 0.05), :, 0, 0, -1].mean()


def test_precision_between_two_hits_is_that_of_the_later_hit():
    evaluator = evaluator_of(COCO, [EVERYTHING, [200, 200, 50, 50]])
    evaluator.add([0, 0, 0], [0, 0, 0], [EVERYTHING, [500, 500, 9, 9], [200, 200, 50, 50]], [0.9, 0.8, 0.7])
    # Recall 0.5 at precision 1 (51 of 101 points), then recall 1 at precision 2/3.
    assert average_precision(evaluator) == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)


def test_the_second_detection_of_an_object_is_an_error():
    evaluator = evaluator_of(COCO, [EVERYTHING, [200, 200, 50, 50]])
    evaluator.add([0] * 3, [0] * 3, [EVERYTHING, EVERYTHING, [200, 200, 50, 50]], [0.9, 0.8, 0.7])
    assert average_precision(evaluator) == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)


def test_any_number_of_detections_may_lie_in_a_crowd():
    evaluator = evaluator_of(COCO, [EVERYTHING, [200, 200, 50, 50]], crowd=[1, 0])
    evaluator.add([0] * 3, [0] * 3, [[5, 5, 9, 9], [50, 50, 9, 9], [200, 200, 50, 50]], [0.9, 0.8, 0.7])
    assert average_precision(evaluator) == pytest.approx(1)


def test_boxes_and_scores_count_in_float64():
    evaluator = evaluator_of(COCO, [EVERYTHING])
    evaluator.add([0], [0], [[0, 0, 100, 50 - 1e-9]], [0.9])  # float32 would say 50
    assert average_precision(evaluator) == 0
    evaluator = evaluator_of(COCO, [EVERYTHING])
    evaluator.add([0, 0], [0, 0], [[500, 500, 9, 9], EVERYTHING], [0.5, 0.5 + 1e-12])
    assert average_precision(evaluator) == pytest.approx(1)


def test_float32_detections_score_as_the_same_values_in_float64(random_case, ground_truth_of, columns_of):
    case = random_case(600)
    image_index, labels, boxes, scores = columns_of(case)
    boxes = (boxes * np.random.default_rng(0).uniform(0.9, 1.1, boxes.shape)).astype(np.float32)
    found = []
    for dtype in (np.float32, np.float64):
        evaluator = ColumnarEvaluator(ground_truth_of(case.dataset, COCO))
        evaluator.add(image_index, labels, boxes.astype(dtype), scores.astype(np.float32).astype(dtype))
        found.append(evaluator.accumulate().precision)
    np.testing.assert_array_equal(*found)


def test_an_object_that_counts_is_preferred_to_an_ignored_one_of_larger_overlap():
    evaluator = evaluator_of(LVIS, [EVERYTHING, [0, 0, 100, 80]], ignore=[1, 0])
    evaluator.add([0], [0], [EVERYTHING], [0.9])
    assert average_precision(evaluator) == pytest.approx(1)


def test_of_objects_with_equal_overlap_the_last_is_taken():
    evaluator = evaluator_of(COCO, [EVERYTHING, [20, 0, 100, 100]])
    # Halfway (IoU 0.82 with both), then one that is near the first object only: 0.85 and 0.56.
    evaluator.add([0, 0], [0, 0], [[10, 0, 100, 100], [-8, 0, 100, 100]], [0.9, 0.8])
    assert average_precision(evaluator, iou=0.75) == pytest.approx(1)


def test_only_classes_known_to_be_present_or_absent_are_judged():
    boxes = [[200, 200, 9, 9], EVERYTHING]
    wrong_first = ([0, 0], [0, 0], boxes, [0.9, 0.8])
    nowhere = ([1], [0], [EVERYTHING], [0.95])  # image 1 has no object of class 0
    judged = {
        "unverified": evaluator_of(LVIS, [EVERYTHING], num_images=2),
        "negative": evaluator_of(LVIS, [EVERYTHING], num_images=2, negative_cells=[1]),
        "not exhaustive": evaluator_of(LVIS, [EVERYTHING], num_images=2, not_exhaustive_cells=[0]),
    }
    found = {}
    for name, evaluator in judged.items():
        evaluator.add(*wrong_first)
        evaluator.add(*nowhere)
        found[name] = average_precision(evaluator)
    # Errors before the only hit: the wrong box; that and the absent class; none.
    assert found == pytest.approx({"unverified": 1 / 2, "negative": 1 / 3, "not exhaustive": 1})


@pytest.mark.parametrize("other_label", [1, -1], ids=["unverified class", "unknown category"])
def test_detections_that_cannot_count_still_use_up_the_300_of_an_image(other_label):
    for others, expected in ((299, 1.0), (300, 0.0)):
        evaluator = evaluator_of(LVIS, [EVERYTHING], num_classes=2)
        labels = [other_label] * others + [0]
        evaluator.add([0] * (others + 1), labels, [EVERYTHING] * (others + 1), [0.9] * others + [0.1])
        assert average_precision(evaluator) == pytest.approx(expected)


def test_coco_counts_100_detections_of_each_class_in_an_image():
    for others, expected in ((99, 0.01), (100, 0.0)):
        evaluator = evaluator_of(COCO, [EVERYTHING])
        boxes = [[500, 500, 9, 9]] * others + [EVERYTHING]
        evaluator.add([0] * len(boxes), [0] * len(boxes), boxes, [0.9] * others + [0.1])
        assert average_precision(evaluator) == pytest.approx(expected)


@pytest.mark.parametrize("protocol", [LVIS, COCO], ids=["lvis", "coco"])
@pytest.mark.parametrize("rounds", [0, 1])
def test_without_detections_precision_and_recall_are_0(protocol, rounds):
    evaluator = evaluator_of(protocol, [EVERYTHING], num_classes=2)
    for _ in range(rounds):
        evaluator.add([], [], [], [])
    curves = evaluator.accumulate()
    assert (curves.precision[:, :, 0, [0, 3]] == 0).all()
    assert (curves.recall[:, 0, [0, 3]] == 0).all()
    assert (curves.precision[:, :, 1] == -1).all()  # a class without objects supports no number
    assert (curves.recall[:, 0, [1, 2]] == -1).all()  # nor do sizes without objects


def test_without_objects_nothing_is_supported():
    evaluator = evaluator_of(LVIS, [])
    evaluator.add([0], [0], [EVERYTHING], [0.5])
    assert (evaluator.accumulate().precision == -1).all()


def test_an_image_added_or_merged_twice_is_an_error():
    evaluator, other = evaluator_of(COCO, [EVERYTHING]), evaluator_of(COCO, [EVERYTHING])
    evaluator.add([0], [0], [EVERYTHING], [0.5])
    other.add([0], [0], [EVERYTHING], [0.5])
    with pytest.raises(ValueError, match="1 images were evaluated twice, the first at index 0"):
        evaluator.add([0], [0], [EVERYTHING], [0.4])
    with pytest.raises(ValueError, match="add each image once"):
        evaluator.merge(other.state())
