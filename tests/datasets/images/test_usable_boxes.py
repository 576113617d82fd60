import numpy as np
import pytest

from longshot.datasets import DataError, read_annotations
from longshot.datasets.images.transforms import clipped_boxes, usable_objects


def test_boxes_are_clipped_to_their_own_images():
    boxes = np.array([[-5, 70, 20, 30], [1, 2, 3, 4], [10, 10, 100, 100]], float)
    sizes = np.array([[80, 30], [80, 30], [50, 90]])
    assert clipped_boxes(boxes, sizes).tolist() == [[0, 70, 15, 80], [1, 2, 4, 6], [10, 10, 90, 50]]
    assert clipped_boxes(boxes[:1], sizes[0]).tolist() == [[0, 70, 15, 80]]


def test_bad_boxes_are_left_out_with_their_number_and_first_ids(write, content):
    nan = float("nan")
    bad = [
        [nan, 0, 5, 5],
        [0, 0, float("inf"), 5],
        [5, 5, 0, 5],
        [5, 5, 5, -2],
        [5, 5, 5, 0.001],
        [60, 0, 5, 5],
        [-9, 0, 9, 5],
    ]
    content["annotations"] += [{"id": i, "image_id": 11, "category_id": 3, "bbox": box} for i, box in enumerate(bad)]
    annotations = read_annotations(write(content))
    usable, report = usable_objects(annotations)
    assert sorted(annotations.annotation_ids[~usable].tolist()) == list(range(7))
    assert report.endswith(
        "train.json: 7 of 13 boxes left out: 2 NaN or infinite (annotations 0, 1), "
        "3 without area (annotations 2, 3, 4), 2 outside the image (annotations 5, 6)"
    )


def test_long_lists_of_bad_boxes_are_cut_short(write, content):
    content["annotations"] += [{"id": i, "image_id": 11, "category_id": 3, "bbox": [0] * 4} for i in range(9)]
    _, report = usable_objects(read_annotations(write(content)))
    assert "9 without area (annotations 0, 1, 2, 3, 4, …)" in report


def test_good_boxes_need_no_report(write, content):
    usable, report = usable_objects(read_annotations(write(content)))
    assert usable.all()
    assert report == ""


def test_dataset_without_one_usable_box_is_refused(write, content):
    for annotation in content["annotations"]:
        annotation["bbox"][2] = 0
    with pytest.raises(
        DataError, match=r"not one object to learn from among 6 annotations; 1 are crowd.*6 without area"
    ):
        usable_objects(read_annotations(write(content)))


@pytest.mark.parametrize("kind", ["iscrowd", "ignore"])
def test_dataset_of_ignored_boxes_alone_is_refused(write, content, kind):
    for annotation in content["annotations"]:
        annotation[kind] = 1
    with pytest.raises(DataError, match=r"not one object to learn from among 6 annotations; 6 are crowd or ignore\.$"):
        usable_objects(read_annotations(write(content)))
