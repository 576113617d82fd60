"""Files of any quality are read as far as they go, and never better spoken of than training would find them."""

import copy
import json
import math
import random

import pytest

from longshot.datasets import DataError, read_annotations
from longshot.datasets.check import SplitFiles, check_dataset
from longshot.datasets.images.transforms import usable_objects


@pytest.mark.parametrize(
    ("text", "what", "example"),
    [
        ("{'images': []}", "the annotation file is not JSON", "in 14 bytes"),
        ('{"images": [{"id": 1', "the annotation file is not JSON", "in 20 bytes"),
        ("", "the annotation file is not JSON", "in 0 bytes"),
        ("[1, 2]", "the annotation file is not an object with lists", "a list is at its top level"),
    ],
)
def test_file_that_is_no_coco_is_a_row_and_the_other_is_checked(tmp_path, write, clean, text, what, example):
    train = tmp_path / "broken.json"
    train.write_text(text)
    clean["annotations"][0]["bbox"] = [10, 5, 0, 10]
    checked = check_dataset(SplitFiles(train, None), SplitFiles(write(clean), None))
    assert [(f.split, f.severity, f.what) for f in checked.findings[:2]] == [
        ("train", "error", what),
        ("val", "error", "boxes without area (a side below 0.01 pixels)"),
    ]
    assert example in checked.findings[0].examples[0]
    assert checked.summary[0] == f"train: {train}, not read"


def test_missing_file_is_a_row(tmp_path):
    (finding,) = check_dataset(SplitFiles(tmp_path / "nowhere.json", None)).findings
    assert finding.what == "the annotation file cannot be read"
    assert finding.examples[0].endswith("nowhere.json: No such file or directory")


def test_lists_that_are_missing_or_empty(check, clean):
    del clean["categories"]
    missing = [("'categories' is not a list", ("'categories' is missing",)), ("empty lists", ("categories",))]
    assert [(f.what, f.examples) for f in check(clean) if f.severity == "error"] == missing
    clean["annotations"] = {}
    assert [(f.what, f.examples) for f in check(clean) if f.severity == "error"] == [
        ("'annotations' is not a list", ("'annotations' is a dict",)),
        *missing,
    ]


def _damage(content: dict, draw: random.Random) -> None:
    """Change one value somewhere into something else, or take it away."""
    record = draw.choice(content[draw.choice(list(content))])
    key = draw.choice(list(record))
    wrong = [
        None,
        "",
        "x",
        -1,
        0,
        1,
        2,
        3,
        5,
        1.5,
        7.0,
        True,
        math.nan,
        2**70,
        [],
        [1],
        [3.0],
        {},
        [0, 0, 1, 1],
        [9, 9, 0, 1],
    ]
    if draw.random() < 0.2:
        del record[key]
    else:
        record[key] = draw.choice(wrong)


def test_what_reading_refuses_or_leaves_out_is_an_error(lvis, write):
    refused = 0
    for seed in range(400):
        draw, content = random.Random(seed), copy.deepcopy(lvis)
        for _ in range(draw.randint(1, 3)):
            _damage(content, draw)
        path = write(content, "damaged.json")
        errors = [f for f in check_dataset(SplitFiles(path, None)).findings if f.severity == "error"]
        try:
            _, left_out = usable_objects(read_annotations(path))
        except DataError:
            left_out, refused = "", refused + 1
            assert errors, json.dumps(content)
        assert errors or not left_out, json.dumps(content)
    assert refused > 100
