import csv
import json

import pytest

from longshot.detector.report import write_comparison

BOX, FAR = (100, 100, 100, 100), (600, 100, 100, 100)


@pytest.fixture
def compare(tmp_path):
    """(validation, {name: detections}) -> compare.json, and the text of the page"""

    def run(validation, runs, **options):
        path = write_comparison(tmp_path / "out", validation, runs.items(), **{"resamples": 20} | options)
        return json.loads(path.with_suffix(".json").read_text()), path.read_text()

    return run


@pytest.fixture
def halves(make_validation, columns):
    """20 images with an object of class 0: one run finds all, the other half of them."""
    validation = make_validation([(i, 0, BOX) for i in range(20)], num_images=20)
    every = columns(*((i, 0, BOX, 0.5 + i / 100) for i in range(20)))
    half = columns(*((i, 0, BOX, 0.5 + i / 100) for i in range(10)))
    return validation, {"half": half, "every": every}


def test_runs_stand_side_by_side(compare, halves):
    numbers, page = compare(*halves)
    assert [row["run"] for row in numbers["summary"]] == ["half", "every"]
    half, every = numbers["summary"]
    assert every["AP"] == every["APr"] == 100
    assert half["AP"] == pytest.approx(100 * 51 / 101)
    assert (every["AP_low"], every["AP_high"]) == (100, 100)
    assert half["AP_low"] < half["AP"] < half["AP_high"]
    assert every["APc"] is None
    assert "APc_low" not in every
    assert "http" not in page


def test_differences_are_paired(compare, halves):
    numbers, _ = compare(*halves)
    (row,), (half, _) = numbers["differences"], numbers["summary"]
    assert row["difference"] == "every - half"
    assert row["AP"] == pytest.approx(100 - 100 * 51 / 101)
    # One run always has 100, so that the difference is as uncertain as the other.
    assert row["AP_low"] == pytest.approx(100 - half["AP_high"])
    assert row["APr_high"] == pytest.approx(100 - half["APr_low"])
    first = numbers["classes"][0]
    assert (first["AP half"], first["AP every"]) == (half["AP"], 100)
    assert first["every - half_low"] == pytest.approx(row["AP_low"])


def test_a_run_does_not_differ_from_itself(compare, random_case):
    validation, detections = random_case(0)
    numbers, page = compare(validation, {"a": detections, "b": detections, "c": detections})
    assert len(numbers["differences"]) == 2
    for row in numbers["differences"]:
        assert {value for key, value in row.items() if key != "difference"} <= {0, None}
        assert row["AP_low"] == row["AP_high"] == 0
    assert "c - a, by class" in page
    assert "+0.0" in page
    assert "-0.0" not in page


def test_tables_are_files_too(compare, halves, tmp_path):
    numbers, _ = compare(*halves)
    for table in ("summary", "differences", "classes"):
        with open(tmp_path / "out" / f"compare_{table}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(numbers[table])
    assert float(rows[0]["AP every"]) == 100
    assert rows[1]["every - half"] == ""


def test_run_without_detections_has_ap_zero(compare, make_validation, columns):
    validation = make_validation([(0, 0, BOX)], frequencies=None)
    numbers, page = compare(validation, {"found": columns((0, 0, BOX, 0.5)), "nothing": columns()})
    assert numbers["differences"][0]["AP"] == pytest.approx(-100)
    assert "-100.0" in page
    assert "validation objects stand in" in page


def test_head_tells_the_cost_of_the_intervals(compare, halves):
    numbers, page = compare(*halves, resamples=7)
    assert numbers["header"]["bootstrap"] == "7 resamples of the images"
    assert "half, every" in page
