"""The official packages as users call them: whatever our reader takes, and what they say to how far we are from them."""

import copy
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from longshot.detector.errors import ResultsError
from longshot.detector.evaluation.ground_truth import COCO, LVIS
from longshot.detector.results.columns import DetectionColumns
from longshot.tools.checks.official import (
    complete,
    differences,
    differences_line,
    load_lvis,
    score_with_official,
)


@pytest.fixture
def official_of(columns_of):
    """(case, protocol, frequencies) -> Official, through columns."""

    def run(case, protocol, frequencies=None):
        dataset = copy.deepcopy(case.dataset)
        complete(dataset, frequencies)
        ids = {name: sorted(row["id"] for row in dataset[name]) for name in ("images", "categories")}
        columns = DetectionColumns(*columns_of(case))
        return score_with_official(protocol, dataset, columns, image_ids=ids["images"], category_ids=ids["categories"])

    return run


@pytest.mark.parametrize("protocol", [LVIS, COCO], ids=["lvis", "coco"])
def test_columns_score_as_the_records_of_a_file(protocol, random_case, official_of, lvis_oracle, coco_oracle):
    # Some of unknown categories, which use up places.
    case = random_case(7, images=2, detections=320)
    categories = sorted(case.dataset["categories"], key=lambda category: category["id"])
    found = official_of(case, protocol, [category["frequency"] for category in categories])
    expected = (lvis_oracle if protocol == LVIS else coco_oracle)(case)
    np.testing.assert_array_equal(found.precision, expected.precision)
    np.testing.assert_array_equal(found.recall, expected.recall)
    assert found.numbers == expected.numbers
    assert max(value or 0 for value in found.numbers.values()) > 5


@pytest.mark.parametrize("protocol", [LVIS, COCO], ids=["lvis", "coco"])
def test_what_a_file_may_leave_out_is_filled_in(protocol, random_case, official_of, score):
    case = random_case(3, corners=False)
    for annotation in case.dataset["annotations"]:  # areas are the boxes' now
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    expected = score(case, protocol)
    bare = copy.deepcopy(case)
    for i, annotation in enumerate(bare.dataset["annotations"]):
        del annotation["area"], annotation["iscrowd"]
        annotation["id"] = i  # 0 is one of them
    for category in bare.dataset["categories"]:
        del category["frequency"]
    for image in bare.dataset["images"]:
        image.update({key: None for key, ids in image.items() if ids == []})
    found = official_of(bare, protocol)
    np.testing.assert_array_equal(found.precision, expected.curves.precision)
    np.testing.assert_array_equal(found.recall, expected.curves.recall)


def test_differences_are_the_largest_and_in_percent(random_case, score, lvis_oracle):
    case = random_case(0)
    ours, official = score(case, LVIS), lvis_oracle(case)
    same = differences(ours.curves, ours.result, official)
    assert same == {"package": "lvis 0.5.3", "numbers": 13, "in_numbers": 0, "in_precision": 0, "in_recall": 0}
    changed = copy.deepcopy(official)
    changed.numbers["AP75"] += 3
    changed.numbers["APf"] -= 4
    changed.precision[0, 0, 2] += 0.25
    changed.recall[0, 2] -= 0.125
    found = differences(ours.curves, ours.result, changed)
    assert found == pytest.approx(same | {"in_numbers": 4, "in_precision": 0.25, "in_recall": 0.125})
    expected = (
        "official lvis 0.5.3: largest difference 4 over 13 numbers in percent, 0.25 in precision, 0.125 in recall"
    )
    assert differences_line(found) == expected


def test_a_number_that_only_one_side_has_is_a_difference(random_case, score, lvis_oracle):
    case = random_case(0)
    ours, official = score(case, LVIS), lvis_oracle(case)
    official.numbers["AP"] = None
    assert differences(ours.curves, ours.result, official)["in_numbers"] == pytest.approx(100 + ours.result["AP"])


def test_groups_of_unknown_frequency_are_not_compared(random_case, score, official_of):
    case = random_case(0)
    ours = score(case, LVIS)
    ours.result["support"].update(APr=None, APc=None, APf=None)
    ours.result.update(APr=None, APc=None, APf=None)
    found = differences(ours.curves, ours.result, official_of(case, LVIS))
    assert (found["numbers"], found["in_numbers"]) == (10, 0)


def test_without_detections_the_packages_are_not_asked(random_case, official_of):
    for protocol in (LVIS, COCO):
        with pytest.raises(ResultsError, match="cannot score a file without detections; ours says AP 0"):
            official_of(random_case(0)._replace(results=[]), protocol)


@pytest.mark.parametrize(("protocol", "package"), [(LVIS, "lvis"), (COCO, "pycocotools"), (LVIS, "pycocotools")])
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(
    protocol, package, random_case, official_of, monkeypatch
):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResultsError, match=rf"package {package}\S* is not installed; pip install -e '\.\[test\]'"):
        official_of(random_case(0), protocol)


def test_loading_lvis_leaves_logging_and_modules_as_they_were(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # with one, basicConfig does nothing
    level = logging.root.level
    load_lvis()
    assert (logging.root.handlers, logging.root.level) == ([], level)
    assert not [name for name in sys.modules if name.split(".")[0] == "lvis"]


def test_the_packages_are_imported_by_need_only():
    code = "import sys, longshot.tools.checks.official; print([n for n in ('lvis', 'pycocotools') if n in sys.modules])"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
