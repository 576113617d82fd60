"""The file that converters write."""

import json

import numpy as np
import pytest

from longshot.datasets.convert import output
from longshot.datasets.convert.output import Annotation, Category, Image, boxes_xywh, write_annotations


def test_records_of_several_batches_are_one_list(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_BATCH", 3)
    annotations = [Annotation(i, 1, 1, [0.5, 1.0, 2.0, 3.0], 6.0, i % 2, i % 2) for i in range(7)]
    path, images = tmp_path / "new" / "a.json", iter([Image(1, 4, 5, "é.png")])
    write_annotations(path, images=images, annotations=iter(annotations), categories=[Category(1, "cat")])
    box = {"image_id": 1, "category_id": 1, "bbox": [0.5, 1, 2, 3], "area": 6}
    flags = [{"iscrowd": 0}, {"iscrowd": 1, "ignore": 1}]
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "images": [{"id": 1, "width": 4, "height": 5, "file_name": "é.png"}],
        "annotations": [{"id": i, **box, **flags[i % 2]} for i in range(7)],
        "categories": [{"id": 1, "name": "cat"}],
    }


def test_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def broken():
        yield Image(1, 4, 5, "a.png")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_annotations(path, images=broken(), annotations=[], categories=[])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_right_edges_are_kept_to_a_thousandth_of_a_pixel():
    corners = np.random.default_rng(0).uniform(0, 500, (200, 2)).cumsum(axis=1)
    boxes = boxes_xywh(np.concatenate([corners, corners[::-1]], axis=1)[:, [0, 2, 1, 3]])
    np.testing.assert_allclose(boxes[:, 0] + boxes[:, 2], corners[:, 1], atol=0.0006)
    assert all(len(f"{value!r}".split(".")[1]) <= 3 for value in boxes.ravel().tolist())
