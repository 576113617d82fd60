"""The class hierarchy of Open Images."""

import json

import numpy as np
import pytest

from longshot.datasets.convert.hierarchy import expand, read_ancestors


@pytest.fixture
def ancestors(write_text):
    """The hierarchy of TensorFlow's own test (oid_hierarchical_labels_expansion_test.py): d is below c and below f."""
    tree = {
        "LabelName": "a",
        "Subcategory": [
            {"LabelName": "b"},
            {"LabelName": "c", "Subcategory": [{"LabelName": "d"}, {"LabelName": "e"}]},
            {"LabelName": "f", "Subcategory": [{"LabelName": "d", "Part": [{"LabelName": "b"}]}]},
        ],
    }
    return read_ancestors(write_text("tree.json", json.dumps(tree)), {name: k for k, name in enumerate("bcdef")})


def test_classes_above_are_those_of_every_place(ancestors):
    pairs = {("bcdef"[k], "bcdef"[above]) for k, above in np.argwhere(ancestors)}
    assert pairs == {("d", "c"), ("d", "f"), ("e", "c")}


def test_boxes_get_the_classes_above_once(ancestors):
    # TensorFlow's test: b stays, d becomes d, c and f.
    index, labels = expand(np.array([0, 2, 0]), ancestors)
    assert index.tolist() == [0, 1, 1, 1, 2]
    assert ["bcdef"[k] for k in labels] == ["b", "c", "d", "f", "b"]


def test_absent_classes_imply_those_below(ancestors):
    index, labels = expand(np.array([0, 1]), ancestors.T)
    assert list(zip(index.tolist(), ["bcdef"[k] for k in labels], strict=True)) == [
        (0, "b"),
        (1, "c"),
        (1, "d"),
        (1, "e"),
    ]


def test_nothing_implies_nothing(ancestors):
    index, labels = expand(np.zeros(0, np.int32), ancestors)
    assert len(index) == len(labels) == 0


def test_deep_class_has_all_above_it(write_text):
    tree = {
        "LabelName": "z",
        "Subcategory": [{"LabelName": "a", "Subcategory": [{"LabelName": "x", "Subcategory": [{"LabelName": "b"}]}]}],
    }
    found = read_ancestors(write_text("tree.json", json.dumps(tree)), {"a": 0, "b": 1})  # x is no listed class
    assert found.tolist() == [[False, False], [True, False]]
