"""Classes without objects, fields of LVIS, and the classes of train and val."""

import copy

import pytest

from longshot.datasets.check import Finding


def _image(**values):
    return lambda content: content["images"][0].update(values)  # 11.png, 60 x 40


def _category(**values):
    return lambda content: content["categories"][0].update(values)  # 90 zebra


def _without(key, field, position=0):
    return lambda content: content[key][position].pop(field)


ALONE_IN_LVIS = {
    "no list of absent classes": (
        _without("images", "neg_category_ids"),
        [("warning", "images without 'neg_category_ids'", 1, "image 11 (11.png)")],
    ),
    "no list of classes not exhausted": (
        _without("images", "not_exhaustive_category_ids"),
        [("warning", "images without 'not_exhaustive_category_ids'", 1, "image 11 (11.png)")],
    ),
    "absent class that is there": (
        _image(neg_category_ids=[90, 3]),
        [("error", "classes in 'neg_category_ids' of an image that has objects of them", 1, "3 in image 11 (11.png)")],
    ),
    "class not exhausted that is not there": (
        _image(not_exhaustive_category_ids=[3, 90]),
        [("warning", "classes in 'not_exhaustive_category_ids' of an image without objects of them", 1,
          "90 in image 11 (11.png)")],
    ),
    "unknown absent class": (
        _image(neg_category_ids=[5]),
        [("note", "unknown ids in 'neg_category_ids'", 1, "5 in image 11 (11.png)")],
    ),
    "unknown class not exhausted": (
        _image(not_exhaustive_category_ids=[5]),
        [("note", "unknown ids in 'not_exhaustive_category_ids'", 1, "5 in image 11 (11.png)")],
    ),
    "absent class as a name": (
        _image(neg_category_ids=["zebra"]),
        [("error", "'neg_category_ids' is not a list of whole numbers", 1, "image 11 (11.png)")],
    ),
    "absent class without a list": (
        _image(neg_category_ids=90),
        [("error", "'neg_category_ids' is not a list of whole numbers", 1, "image 11 (11.png)")],
    ),
    "no frequency": (
        _without("categories", "frequency"),
        [("warning", "classes without 'frequency' r, c or f", 1, "zebra")],
    ),
    "another image count": (
        _category(image_count=7),
        [("warning", "classes with another 'image_count' than the file's", 1, "zebra (7, has 1)")],
    ),
    "another instance count": (
        _category(instance_count=7),
        [("warning", "classes with another 'instance_count' than the file's", 1, "zebra (7, has 1)")],
    ),
}  # fmt: skip


def test_nothing_is_found_in_a_clean_lvis_set(check, lvis):
    assert check(lvis) == []


@pytest.mark.parametrize("name", ALONE_IN_LVIS)
def test_defect_of_lvis_gives_its_row_and_no_other(check, lvis, name):
    break_it, rows = ALONE_IN_LVIS[name]
    break_it(lvis)
    assert check(lvis) == [
        Finding("train", severity, what, count, (example,)) for severity, what, count, example in rows
    ]


@pytest.mark.parametrize(("rare", "common"), [(10, 100), (1, 3)])
def test_frequency_is_held_against_the_thresholds_that_fit_best(check, rare, common):
    counts = [1, 2, 3, 4, 9, 10, 11, 12, 50, 100, 101, 102]
    images = [{"id": i, "width": 9, "height": 9, "file_name": f"{i}.png"} for i in range(1, 103)]
    groups = ["r" if n <= rare else "c" if n <= common else "f" for n in counts]
    categories = [{"id": k, "name": f"class {k}", "frequency": group} for k, group in enumerate(groups)]
    owners = [(k, i) for k, n in enumerate(counts) for i in range(1, n + 1)]
    annotations = [{"id": j, "image_id": i, "category_id": k, "bbox": [0, 0, 5, 5]} for j, (k, i) in enumerate(owners)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    assert check(content) == []
    categories[11]["frequency"] = "r"
    assert check(content) == [
        Finding("train", "warning", "classes whose 'frequency' does not fit their images", 1, ("class 11 (r, 102 images)",))
    ]  # fmt: skip


def test_counts_leave_out_crowd_as_the_file_does(check, lvis):
    lvis["annotations"].append({"id": 1, "image_id": 2, "category_id": 90, "bbox": [1, 1, 2, 2], "iscrowd": 1})
    assert [f.what for f in check(lvis)] == ["crowd annotations"]


def test_a_single_class_is_noted(check, clean):
    clean["categories"] = clean["categories"][1:2]
    clean["annotations"] = [a | {"category_id": 3} for a in clean["annotations"]]
    assert check(clean) == [Finding("train", "note", "only one class", 1, ("ant",))]


def test_val_must_have_the_same_categories(check, clean):
    val = copy.deepcopy(clean)
    for image in val["images"]:
        image["file_name"] = f"val_{image['file_name']}"
    assert check(clean, val) == []
    val["categories"][1]["name"] = "aunt"
    assert check(clean, val) == [
        Finding("both", "error", "categories that differ between train and val", 1, ("id 3: 'ant' in train, 'aunt' in val",))
    ]  # fmt: skip


def test_class_that_only_val_has_is_named(check, clean):
    val = copy.deepcopy(clean)
    for image in val["images"]:
        image["file_name"] = f"val_{image['file_name']}"
    clean["annotations"][0]["category_id"] = 7
    assert [f for f in check(clean, val) if f.split == "both"] == [
        Finding("both", "warning", "classes with objects in val but none in train", 1, ("zebra (1 objects in val)",))
    ]


def test_class_without_objects_is_a_note_in_val(check, clean):
    val = copy.deepcopy(clean)
    for image in val["images"]:
        image["file_name"] = f"val_{image['file_name']}"
    val["annotations"][0]["category_id"] = 7
    assert check(clean, val) == [Finding("val", "note", "classes without objects", 1, ("zebra",))]


def test_class_that_neither_split_has_is_not_told_of_both(check, clean):
    clean["categories"].append({"id": 4, "name": "cat"})
    val = copy.deepcopy(clean)
    for image in val["images"]:
        image["file_name"] = f"val_{image['file_name']}"
    assert [(f.split, f.severity, f.what) for f in check(clean, val)] == [
        ("train", "warning", "classes without objects"),
        ("val", "note", "classes without objects"),
    ]


def test_val_states_the_counts_of_train(check, lvis):
    val = copy.deepcopy(lvis)
    for image in val["images"]:
        image["file_name"] = f"val_{image['file_name']}"
    val["annotations"].append({"id": 1, "image_id": 2, "category_id": 90, "bbox": [1, 1, 2, 2]})
    assert check(lvis, val) == []
