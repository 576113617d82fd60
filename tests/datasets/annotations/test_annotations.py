import pickle

import numpy as np
import pytest

from longshot.datasets import DataError
from longshot.datasets.annotations.annotations import frequency_groups, read_annotations


def test_ids_of_any_integers_are_sorted_and_mapped_to_indices(write, content):
    annotations = read_annotations(write(content))
    assert annotations.category_ids.tolist() == [3, 7, 90]
    assert annotations.class_names == ("ant", "bee", "zebra")
    assert annotations.image_ids.tolist() == [2, 5, 7, 11, 90]
    assert annotations.file_names[:] == ["2.png", "5.png", "7.png", "11.png", "90.png"]
    assert annotations.image_sizes.tolist() == [[80, 30], [60, 40], [48, 48], [40, 60], [30, 80]]


def test_negative_zero_and_huge_ids_are_ids_like_others(write, content):
    for old, new in ((3, -4), (7, 0), (90, 2**62)):
        for category in content["categories"]:
            category["id"] = new if category["id"] == old else category["id"]
        for annotation in content["annotations"]:
            annotation["category_id"] = new if annotation["category_id"] == old else annotation["category_id"]
    annotations = read_annotations(write(content))
    assert annotations.category_ids.tolist() == [-4, 0, 2**62]
    assert annotations.labels.tolist() == [1, 0, 0, 0, 2, 1]


def test_objects_of_an_image_lie_together_in_file_order(write, content):
    annotations = read_annotations(write(content))
    assert annotations.offsets.tolist() == [0, 1, 3, 3, 4, 6]
    assert annotations.annotation_ids.tolist() == [105, 102, 104, 100, 101, 103]
    assert annotations.labels.tolist() == [1, 0, 0, 0, 2, 1]
    assert annotations.boxes_xywh[annotations.objects(4)].tolist() == [[10, 5, 20, 10], [0, 0, 8, 8]]
    assert annotations.object_images.tolist() == [0, 1, 1, 3, 4, 4]


def test_missing_area_is_that_of_the_box_and_missing_flags_are_false(write, content):
    content["annotations"][0]["ignore"] = 1
    annotations = read_annotations(write(content))
    assert annotations.areas.tolist() == [600, 120, 600, 500, 200, 64]  # 500 is the file's, of a box of 600
    assert annotations.crowd.tolist() == [False, False, True, False, False, False]
    assert annotations.ignore.tolist() == [False, False, False, False, True, False]


def test_counts_leave_out_crowd_and_ignore_and_count_an_image_once(write, content):
    content["annotations"] += [
        {"id": 1, "image_id": 11, "category_id": 3, "bbox": [1, 1, 2, 2]},
        {"id": 2, "image_id": 7, "category_id": 90, "bbox": [1, 1, 2, 2], "ignore": 1},
    ]
    annotations = read_annotations(write(content))
    assert annotations.instance_counts.tolist() == [3, 2, 1]
    assert annotations.image_counts.tolist() == [2, 2, 1]


def test_lvis_lists_and_frequencies_are_read(write, content):
    for image in content["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [], []
    content["images"][0]["neg_category_ids"] = [90, 3]  # id 11, which is image 3
    content["images"][4]["not_exhaustive_category_ids"] = [7]  # id 2, which is image 0
    for category, group in zip(content["categories"], "rcf", strict=True):
        category["frequency"] = group
    annotations = read_annotations(write(content))
    assert annotations.is_lvis
    assert annotations.frequencies == ("c", "f", "r")
    assert annotations.negative_offsets.tolist() == [0, 0, 0, 0, 2, 2]
    assert annotations.negative_labels.tolist() == [2, 0]
    assert annotations.not_exhaustive_offsets.tolist() == [0, 1, 1, 1, 1, 1]
    assert annotations.not_exhaustive_labels.tolist() == [1]


def test_listed_negatives_without_a_category_are_left_out(write, content):
    content["images"][0]["neg_category_ids"] = [1203, 90]
    annotations = read_annotations(write(content))
    assert annotations.negative_labels.tolist() == [2]
    assert annotations.negative_offsets.tolist() == [0, 0, 0, 0, 1, 1]


def test_coco_file_has_no_lvis_fields(write, content):
    annotations = read_annotations(write(content))
    assert not annotations.is_lvis
    assert annotations.frequencies is None
    assert annotations.negative_offsets.tolist() == [0] * 6
    assert len(annotations.negative_labels) == len(annotations.not_exhaustive_labels) == 0


def test_empty_negative_list_still_makes_a_file_lvis(write, content):
    content["images"][2]["neg_category_ids"] = []
    assert read_annotations(write(content)).is_lvis


def test_file_name_comes_from_the_url_where_there_is_no_other(write, content):
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/000000000011.jpg"
    content["images"][1]["coco_url"] = "http://images.cocodataset.org/val2017/000000000005.jpg"
    names = read_annotations(write(content)).file_names
    assert names[3] == "train2017/000000000011.jpg"
    assert names[1] == "5.png"


def test_file_without_annotations_is_read(write, content):
    content["annotations"] = []
    annotations = read_annotations(write(content))
    assert annotations.boxes_xywh.shape == (0, 4)
    assert annotations.image_counts.tolist() == [0, 0, 0]


def test_nan_and_infinity_as_python_writes_them_are_read(write, content):
    content["annotations"][0]["bbox"] = [float("nan"), 0, float("inf"), 5]
    path = write(content)
    assert "NaN" in path.read_text()
    assert np.isnan(read_annotations(path).boxes_xywh[4, 0])


def test_byte_order_mark_is_no_obstacle(write, content):
    path = write(content)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_annotations(path).image_ids) == 5


def test_polygons_are_not_kept_and_pickles_are_small(write, content):
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1.5] * 10_000]
    assert len(pickle.dumps(read_annotations(write(content)))) < 4000


def _without(content: dict, key: str, field: str) -> dict:
    del content[key][1][field]
    return content


def _with(content: dict, key: str, field: str, value: object) -> dict:
    content[key][1][field] = value
    return content


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json: cannot read the annotation file: No such file"):
        read_annotations(tmp_path / "nowhere.json")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_file_is_told_from_a_foreign_one(write, content, kept):
    path = write(content)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DataError, match=r"train\.json: not JSON.*is it a complete copy"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"], "Expected `object`, got `array`"),
        (lambda c: {"images": []}, "missing required field `annotations`"),
        (lambda c: _without(c, "images", "width"), r"missing required field `width` - at `\$.images\[1\]`"),
        (lambda c: _without(c, "images", "file_name"), "image 5 has neither 'file_name' nor 'coco_url'"),
        (lambda c: _with(c, "images", "id", "5"), r"Expected `int`, got `str` - at `\$.images\[1\].id`"),
        (lambda c: _with(c, "images", "id", 2**70), "Expected `int` <= 9223372036854775807"),
        (lambda c: _with(c, "images", "height", 0), r"Expected `int` >= 1 - at `\$.images\[1\].height`"),
        (lambda c: {**c, "images": []}, "'images' is empty"),
        (lambda c: {**c, "categories": []}, "'categories' is empty"),
        (lambda c: _with(c, "images", "id", 11), "1 ids occur more than once in 'images', for example 11"),
        (lambda c: _with(c, "categories", "id", 90), "1 ids occur more than once in 'categories', for example 90"),
        (lambda c: _with(c, "annotations", "id", 105), "1 ids occur more than once in 'annotations', for example 105"),
        (
            lambda c: _with(c, "annotations", "image_id", 6),
            r"annotation 100 has image_id 6, but 'images' lists 5 ids \(2..90\) without it; 1 of 6 annotations are so",
        ),
        (
            lambda c: _with(c, "annotations", "category_id", 91),
            r"annotation 100 has category_id 91, but 'categories' lists 3 ids \(3..90\) without it",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said(write, content, change, message):
    with pytest.raises(DataError, match=r"train\.json: .*" + message):
        read_annotations(write(change(content)))


def test_wrong_type_behind_a_nan_is_found_too(write, content):
    content["annotations"][0]["bbox"][0] = float("nan")
    content["annotations"][1]["category_id"] = "none"
    with pytest.raises(DataError, match=r"Expected `int`, got `str` - at `\$.annotations\[1\].category_id`"):
        read_annotations(write(content))


def test_frequency_groups_include_their_limits():
    assert frequency_groups([0, 10, 11, 100, 101]) == ("r", "r", "c", "c", "f")
    assert frequency_groups(np.array([3, 4, 15, 16]), rare=3, common=15) == ("r", "c", "c", "f")


@pytest.mark.parametrize("box", [None, [], [1, 2, 3], [None, 1, 2, 3], "absent"])
def test_an_annotation_without_a_box_is_kept_as_a_bad_box(write, content, box):
    if box == "absent":
        del content["annotations"][0]["bbox"]
    else:
        content["annotations"][0]["bbox"] = box
    annotations = read_annotations(write(content))
    bad = np.isnan(annotations.boxes_xywh).all(axis=1)
    assert annotations.annotation_ids[bad].tolist() == [content["annotations"][0]["id"]]


def test_whole_numbers_may_be_written_as_floats_and_flags_as_text(write, content):
    expected = read_annotations(write(content, "plain.json"))
    for image in content["images"]:
        image |= {"id": float(image["id"]), "width": float(image["width"])}
    for annotation in content["annotations"]:
        annotation |= {"image_id": float(annotation["image_id"]), "iscrowd": str(annotation.get("iscrowd", 0))}
    for category in content["categories"]:
        category["frequency"] = ""
    found = read_annotations(write(content))
    assert found.image_ids.tolist() == expected.image_ids.tolist()
    assert found.image_sizes.tolist() == expected.image_sizes.tolist()
    assert found.crowd.tolist() == expected.crowd.tolist()
    assert found.frequencies is None
