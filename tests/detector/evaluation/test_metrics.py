"""The reported numbers and their table."""

import json

import pytest

from longshot.datasets.classes import Classes
from longshot.detector.evaluation.columnar import ColumnarEvaluator
from longshot.detector.evaluation.ground_truth import COCO, LVIS, GroundTruth
from longshot.detector.evaluation.metrics import summarize, table


def evaluator_with(protocol):
    """Three classes in one image: a small object, found; a large one, missed; none, but a wrong detection."""
    truth = GroundTruth.from_arrays(
        protocol,
        num_images=1,
        num_classes=3,
        image_index=[0, 0],
        labels=[0, 1],
        boxes_xywh=[[0, 0, 10, 10], [0, 0, 100, 100]],
        areas=[100, 10_000],
        crowd=[0, 0],
        ignore=[0, 0],
        negative_cells=[2],
    )
    evaluator = ColumnarEvaluator(truth)
    evaluator.add([0, 0], [0, 2], [[0, 0, 10, 10], [0, 0, 9, 9]], [0.9, 0.8])
    return evaluator


def summary(protocol, frequencies=None, train_images=None, **options):
    evaluator = evaluator_with(protocol)
    classes = Classes([3, 7, 90], ["ant", "bee", "cat"], frequencies, train_images)
    return summarize(evaluator.accumulate(), evaluator.ground_truth, classes, **options)


def test_lvis_numbers_are_percent_and_none_without_objects():
    result = summary(LVIS, frequencies=("r", "f", "c"))
    expected = {"AP": 50, "AP50": 50, "AP75": 50, "APs": 100, "APm": None, "APl": 0, "APr": 100, "APc": None, "APf": 0}
    expected |= {"AR300": 50, "ARs300": 100, "ARm300": None, "ARl300": 0}
    assert {key: result[key] for key in list(result)[: len(expected)]} == pytest.approx(expected)


def test_coco_has_its_twelve_numbers_and_no_group_without_frequencies():
    result = summary(COCO)
    expected = {"AP": 50, "AP50": 50, "AP75": 50, "APs": 100, "APm": None, "APl": 0}
    expected |= {"APr": None, "APc": None, "APf": None}
    expected |= {"AR1": 50, "AR10": 50, "AR100": 50, "ARs": 100, "ARm": None, "ARl": 0}
    assert {key: result[key] for key in list(result)[: len(expected)]} == pytest.approx(expected)


def test_coco_has_groups_where_frequencies_are_given():
    result = summary(COCO, frequencies=("r", "f", "c"))
    assert [result[key] for key in ("APr", "APc", "APf")] == [pytest.approx(100), None, 0]


def test_each_class_has_a_row():
    result = summary(LVIS, frequencies=("r", "f", "c"), train_images=[4, 500, 60])
    assert result["classes"] == [
        {
            "name": "ant",
            "category_id": 3,
            "frequency": "r",
            "train_images": 4,
            "AP": pytest.approx(100),
            "num_objects": 1,
        },
        {"name": "bee", "category_id": 7, "frequency": "f", "train_images": 500, "AP": 0, "num_objects": 1},
        {"name": "cat", "category_id": 90, "frequency": "c", "train_images": 60, "AP": None, "num_objects": 0},
    ]


def test_the_result_says_by_which_rules_and_survives_json():
    result = summary(LVIS, score_threshold=0.001)
    assert result == json.loads(json.dumps(result))
    assert result["protocol"] == {
        "name": "lvis",
        "federated": True,
        "detections_per_image": 300,
        "detections_per_class_and_image": None,
        "iou_thresholds": [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
        "num_images": 1,
        "score_threshold": 0.001,
    }
    assert summary(COCO)["protocol"]["detections_per_class_and_image"] == 100


def test_the_table_shows_values_support_and_na():
    lines = table(summary(LVIS, frequencies=("r", "f", "c"), score_threshold=0.001)).splitlines()
    assert lines == [
        "lvis protocol (federated): 300 detections per image, IoU 0.50:0.95, 1 images, scores above 0.001",
        "        percent  classes  objects",
        "AP         50.0        2        2",
        "AP50       50.0        2        2",
        "AP75       50.0        2        2",
        "APs       100.0        1        1",
        "APm         n/a        0        0",
        "APl         0.0        1        1",
        "APr       100.0        1        1",
        "APc         n/a        0        0",
        "APf         0.0        1        1",
        "recall: AR300 50.0, ARs300 100.0, ARm300 n/a, ARl300 0.0",
    ]
    assert "APr         n/a        -        -" in table(summary(COCO))
