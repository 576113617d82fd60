"""What the evaluation benchmark measures, on data that it makes up."""

import json

import numpy as np
import pytest

from longshot.datasets import read_annotations
from longshot.detector.evaluation.ground_truth import LVIS, GroundTruth
from longshot.detector.results.files import read_results
from longshot.tools.benchmarks import memory
from longshot.tools.benchmarks.evaluation import OFFICIAL, Cost, Measured, findings, measure, table
from longshot.tools.benchmarks.evaluation_data import as_lvis, load_objects, save, synthetic

SIZES = {"num_classes": 40, "detections_per_image": 60}


@pytest.fixture(scope="module")
def measured():
    return measure(30, subset=10, **SIZES)


def test_all_ways_are_measured_and_agree_with_the_official_package(measured):
    names = [f"{way}, {count} images" for way, count in (
        ("ours from arrays", 30), ("ours from .npz", 30), ("ours from JSON", 30), ("ours from JSON", 10), (OFFICIAL, 10),
    )]  # fmt: skip
    assert list(measured.costs) == names
    assert [(cost.num_images, cost.num_detections) for cost in measured.costs.values()] == [(30, 1800)] * 3 + [
        (10, 600)
    ] * 2
    assert measured.same_bits
    assert measured.official == (0, 0)
    aps = [cost.percent for cost in measured.costs.values()]
    assert aps[0] == aps[1] == aps[2] != aps[3] == aps[4]
    assert min(aps) > 5
    for cost in measured.costs.values():
        assert 0 < cost.cpu_seconds < 60
        assert (cost.peak is not None) == memory.is_measurable()
        assert 10 * memory.MB < (cost.peak or 100 * memory.MB) < 2000 * memory.MB


def test_without_a_subset_the_official_package_is_left_out():
    measured = measure(4, subset=0, **SIZES)
    assert len(measured.costs) == 3
    assert measured.official is None
    assert "lvis" not in findings(measured)


def test_the_table_and_the_findings_tell_costs_and_targets():
    def cost(cpu, peak):
        return Cost(19809, 5_942_700, 2 * cpu, cpu, peak, 12.34567)

    costs = {
        "ours from arrays": cost(14.9, 900 * memory.MB),
        "ours from .npz": cost(15, None),
        "ours from JSON": cost(60.1, 1),
    }
    lines = table(costs).splitlines()
    assert lines[0].split() == ["detections", "seconds", "CPU", "s", "peak", "MB", "AP"]
    assert lines[1].split() == ["ours", "from", "arrays", "5,942,700", "29.80", "14.90", "900", "12.3457"]
    assert lines[2].split()[-2] == "-"
    assert findings(Measured(costs, False, (0.5, 0.25))).splitlines() == [
        "our ways give the same bits: NO",
        "largest difference between lvis and ours: 0.5 in precision, 0.25 in recall",
        "target: CPU seconds from arrays at most 15: 14.9, met",
        "target: CPU seconds from JSON at most 60: 60.1, NOT met",
        "target: MB (1e6 bytes) from arrays at most 800: 943.7, NOT met",
    ]


def test_the_data_are_federated_and_as_crowded_as_those_of_lvis():
    objects, detections = synthetic(400, num_classes=1203, detections_per_image=300)
    truth = objects.ground_truth
    assert len(truth.cell) / 400 == pytest.approx(12.7, abs=0.1)
    found = np.isin(detections.image_index * 1203 + detections.labels, truth.verified_cells).mean()
    assert found == pytest.approx(0.54, abs=0.02)
    counts = np.sort(np.bincount(objects.labels, minlength=1203))[::-1]
    assert counts[:120].sum() > 0.4 * counts.sum()  # a tenth of the classes
    assert len(truth.not_exhaustive_cells)
    assert (np.bincount(detections.image_index) == 300).all()
    assert detections.boxes_xywh.dtype == detections.scores.dtype == np.float32


def test_the_same_arguments_give_the_same_data():
    first, again, other = (synthetic(5, seed=seed, **SIZES) for seed in (1, 1, 2))
    for columns, same in zip(first, again, strict=True):
        for column, expected in zip(columns, same, strict=True):
            np.testing.assert_array_equal(column, expected)
    assert not np.array_equal(first[1].scores, other[1].scores)


def test_arrays_and_files_hold_the_same_dataset(tmp_path):
    objects, detections = synthetic(12, **SIZES)
    save(objects, detections, tmp_path, annotations=True)
    from_file = GroundTruth.from_annotations(read_annotations(tmp_path / "annotations.json"), LVIS)
    for truth in (load_objects(tmp_path).ground_truth, from_file):
        for ours, theirs in zip(truth[1:], objects.ground_truth[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert json.loads((tmp_path / "annotations.json").read_text()) == as_lvis(objects)
    for suffix in ("npz", "json"):
        for ours, theirs in zip(read_results(tmp_path / f"found.{suffix}", **objects.ids), detections, strict=True):
            np.testing.assert_array_equal(ours, theirs)
