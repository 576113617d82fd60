"""Every defect of the annotations alone gives its row and no other; together they all do."""

import math

import pytest

from longshot.datasets import read_annotations
from longshot.datasets.check import Finding
from longshot.datasets.images.transforms import usable_objects


def _annotation(**values):
    return lambda content: content["annotations"][0].update(values)  # of zebra in image 90, 80 x 30: [10, 5, 20, 10]


def _image(**values):
    return lambda content: content["images"][0].update(values)  # 11.png, 60 x 40


def _category(**values):
    return lambda content: content["categories"][0].update(values)  # 90 zebra


def _without(key, field, position=0):
    return lambda content: content[key][position].pop(field)


def _add(key, **values):
    return lambda content: content[key].append(values)


_BOX = "annotation 101 [{}], image 90 (90.png) of 80 x 30"

ALONE = {
    "image without id": (
        _add("images", width=5, height=5, file_name="x.png"),
        [("error", "images: 'id' missing or not a whole number", 1, "images[5] (x.png)"),
         ("note", "images without objects", 1, "images[5] (x.png)")],
    ),
    "width of 0": (_image(width=0), [("error", "images: 'width' missing or not a whole number above 0", 1, "image 11 (11.png)")]),
    "no height": (
        _without("images", "height"),
        [("error", "images: 'height' missing or not a whole number above 0", 1, "image 11 (11.png)")],
    ),
    "no file name": (
        _without("images", "file_name"),
        [("error", "images: 'file_name' missing, and 'coco_url' too", 1, "image 11")],
    ),
    "category without id": (
        _add("categories", name="cat"),
        [("error", "categories: 'id' missing or not a whole number", 1, "cat"),
         ("warning", "classes without objects", 1, "cat")],
    ),
    "category without name": (
        _without("categories", "name"),
        [("error", "categories: 'name' missing or not a text", 1, "categories[0]")],
    ),
    "id as text": (
        _annotation(id="101"),
        [("error", "annotations: 'id' missing or not a whole number", 1, "annotations[0]")],
    ),
    "id of 65 bits": (
        _annotation(id=2**64),
        [("error", "annotations: 'id' missing or not a whole number", 1, "annotations[0]")],
    ),
    "image_id true": (
        _add("annotations", id=1, image_id=True, category_id=3, bbox=[1, 1, 2, 2]),
        [("error", "annotations: 'image_id' missing or not a whole number", 1, "annotation 1")],
    ),
    "category_id 3.5": (
        _add("annotations", id=1, image_id=5, category_id=3.5, bbox=[1, 1, 2, 2]),
        [("error", "annotations: 'category_id' missing or not a whole number", 1, "annotation 1")],
    ),
    "box of three numbers": (
        _add("annotations", id=1, image_id=5, category_id=3, bbox=[1, 1, 2]),
        [("error", "annotations: 'bbox' missing or not four numbers", 1, "annotation 1")],
    ),
    "no box": (
        _add("annotations", id=1, image_id=5, category_id=3),
        [("error", "annotations: 'bbox' missing or not four numbers", 1, "annotation 1")],
    ),
    "area as text": (_annotation(area="9"), [("error", "annotations: 'area' not a finite number", 1, "annotation 101")]),
    "area NaN": (_annotation(area=math.nan), [("error", "annotations: 'area' not a finite number", 1, "annotation 101")]),
    "area 0": (
        _annotation(area=0),
        [("warning", "annotations with an area of 0 or less, which LVIS does not score", 1, "annotation 101 (area 0)")],
    ),
    "iscrowd 2": (_annotation(iscrowd=2), [("error", "annotations: 'iscrowd' is neither 0 nor 1", 1, "annotation 101")]),
    "ignore as text": (
        _annotation(ignore="yes"),
        [("error", "annotations: 'ignore' is neither 0 nor 1", 1, "annotation 101")],
    ),
    "image id twice": (
        _add("images", id=11, width=60, height=40, file_name="x.png"),
        [("error", "image ids used more than once", 1, "11 (2 times)"),
         ("note", "images without objects", 1, "image 11 (x.png)")],
    ),
    "annotation id twice": (
        _annotation(id=105),
        [("error", "annotation ids used more than once", 1, "105 (2 times)")],
    ),
    "category id twice": (
        _add("categories", id=90, name="cat"),
        [("error", "category ids used more than once", 1, "90 (2 times)"),
         ("warning", "classes without objects", 1, "cat")],
    ),
    "file name twice": (
        _image(file_name="5.png"),
        [("warning", "file names of several images", 1, "5.png (2 times)")],
    ),
    "category name twice": (
        _category(name="bee"),
        [("warning", "category names used more than once", 1, "bee (2 times)")],
    ),
    "unknown image": (
        _add("annotations", id=1, image_id=12, category_id=3, bbox=[1, 1, 2, 2]),
        [("error", "annotations of unknown images", 1, "annotation 1 (image_id 12)")],
    ),
    "unknown category": (
        _add("annotations", id=1, image_id=5, category_id=4, bbox=[1, 1, 2, 2]),
        [("error", "annotations of unknown categories", 1, "annotation 1 (category_id 4)")],
    ),
    "NaN in a box": (
        _annotation(bbox=[10, math.nan, 20, 10]),
        [("error", "boxes with NaN or infinite numbers", 1, _BOX.format("10, nan, 20, 10"))],
    ),
    "infinite box": (
        _annotation(bbox=[10, 5, math.inf, 10]),
        [("error", "boxes with NaN or infinite numbers", 1, _BOX.format("10, 5, inf, 10"))],
    ),
    "negative width": (
        _annotation(bbox=[10, 5, -20, 10]),
        [("error", "boxes without area (a side below 0.01 pixels)", 1, _BOX.format("10, 5, -20, 10"))],
    ),
    "box beside the image": (
        _annotation(bbox=[80, 5, 20, 10]),
        [("error", "boxes outside their image", 1, _BOX.format("80, 5, 20, 10"))],
    ),
    "corners for width and height": (
        _annotation(bbox=[50, 5, 70, 15]),
        [("warning", "boxes that leave their image by more than 1 pixel", 1, _BOX.format("50, 5, 70, 15"))],
    ),
    "rounded box": (
        _annotation(bbox=[-0.5, 5, 20, 10]),
        [("note", "boxes that leave their image by 1 pixel or less", 1, _BOX.format("-0.5, 5, 20, 10"))],
    ),
    "the same box again": (
        _add("annotations", id=1, image_id=90, category_id=90, bbox=[10, 5, 20, 10]),
        [("warning", "boxes that repeat one of the same image and class", 1,
          "annotation 1 [10, 5, 20, 10], image 90 (90.png) of 80 x 30")],
    ),
    "crowd": (
        _add("annotations", id=1, image_id=5, category_id=3, bbox=[1, 1, 2, 2], iscrowd=1),
        [("note", "crowd annotations", 1, "annotation 1")],
    ),
    "ignore": (
        _add("annotations", id=1, image_id=5, category_id=3, bbox=[1, 1, 2, 2], ignore=1),
        [("note", "annotations to ignore", 1, "annotation 1")],
    ),
    "image without objects": (
        _add("images", id=1, width=5, height=5, file_name="x.png"),
        [("note", "images without objects", 1, "image 1 (x.png)")],
    ),
    "class without objects": (
        _add("categories", id=4, name="cat"),
        [("warning", "classes without objects", 1, "cat")],
    ),
    "record that is none": (
        lambda content: content["images"].append("x.png"),
        [("error", "entries of 'images' that are no objects", 1, "images[5]")],
    ),
}  # fmt: skip


def test_nothing_is_found_in_a_clean_set(check, clean):
    assert check(clean) == []


@pytest.mark.parametrize("name", ALONE)
def test_defect_gives_its_row_and_no_other(check, clean, name):
    break_it, rows = ALONE[name]
    break_it(clean)
    assert sorted(check(clean)) == sorted(
        Finding("train", severity, what, count, (example,)) for severity, what, count, example in rows
    )


def test_many_defects_are_all_found(check, clean):
    for name in (
        "width of 0", "area as text", "image id twice", "category name twice", "category id twice", "unknown image",
        "record that is none", "unknown category", "the same box again", "crowd", "box of three numbers", "ignore as text",
        "id of 65 bits",
    ):  # fmt: skip
        ALONE[name][0](clean)
    assert {(f.severity, f.what, f.count) for f in check(clean)} == {
        ("error", "entries of 'images' that are no objects", 1),
        ("error", "images: 'width' missing or not a whole number above 0", 1),
        ("error", "annotations: 'id' missing or not a whole number", 1),
        ("error", "annotations: 'bbox' missing or not four numbers", 1),
        ("error", "annotations: 'area' not a finite number", 1),
        ("error", "annotations: 'ignore' is neither 0 nor 1", 1),
        ("error", "image ids used more than once", 1),
        ("error", "category ids used more than once", 1),
        ("error", "annotation ids used more than once", 1),  # 1, of all that were added
        ("warning", "category names used more than once", 1),
        ("error", "annotations of unknown images", 1),
        ("error", "annotations of unknown categories", 1),
        ("warning", "boxes that repeat one of the same image and class", 1),
        ("note", "crowd annotations", 1),
        ("note", "images without objects", 1),
        ("warning", "classes without objects", 1),
    }


def test_defects_are_counted_and_the_first_ones_named(check, clean):
    for i in range(1, 13):
        clean["annotations"].append({"id": i, "image_id": 5, "category_id": 3, "bbox": [i, 1, 0, 5]})
    (finding,) = check(clean)
    assert finding.count == 12
    assert finding.examples[:2] == (
        "annotation 1 [1, 1, 0, 5], image 5 (5.png) of 40 x 60",
        "annotation 2 [2, 1, 0, 5], image 5 (5.png) of 40 x 60",
    )
    assert len(finding.examples) == 10


def test_record_without_id_does_not_displace_the_others(check, clean):
    clean["images"].insert(0, {"width": 5, "height": 5, "file_name": "x.png"})
    clean["categories"].insert(0, {"name": "cat"})
    clean["annotations"][0]["bbox"] = [10, 5, 0, 10]
    (finding,) = [f for f in check(clean) if f.what.startswith("boxes")]
    assert finding.examples == (_BOX.format("10, 5, 0, 10"),)


def test_the_first_of_equal_boxes_is_not_told(check, clean):
    again = [{"id": i, "image_id": 90, "category_id": 90, "bbox": [10, 5, 20, 10]} for i in (9, 8)]
    same_box_of_another_class = {"id": 7, "image_id": 90, "category_id": 3, "bbox": [10, 5, 20, 10]}
    clean["annotations"] += [*again, same_box_of_another_class]
    (finding,) = check(clean)
    assert [example.split(" [")[0] for example in finding.examples] == ["annotation 9", "annotation 8"]


def test_boxes_as_fractions_of_the_image_are_seen(check, clean):
    for annotation in clean["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.05 + annotation["id"] / 1000, 0.4]
    (finding,) = check(clean)
    assert (finding.severity, finding.count) == ("error", 6)
    assert finding.what == "boxes as fractions of the image, not pixels: all are within 0..1"
    clean["annotations"][0]["bbox"] = [0, 0, 1.5, 1]  # one is enough to know that they are pixels
    assert check(clean) == []


def test_a_side_is_empty_exactly_where_training_leaves_it_out(check, clean, write):
    for width, words in ((0.0099, "boxes without area"), (0.0101, None)):
        clean["annotations"][0]["bbox"] = [10, 5, width, 10]
        usable, _ = usable_objects(read_annotations(write(clean)))
        assert usable.all() == (words is None)
        findings = check(clean)
        assert [f.what.startswith(str(words)) for f in findings] == ([True] if words else [])


def test_rounding_of_float32_is_not_told(check, clean):
    clean["annotations"][0]["bbox"] = [25.1, 5, 54.90001, 10]
    assert check(clean) == []
    clean["annotations"][0]["bbox"] = [25.1, 5, 54.91, 10]
    assert [f.what for f in check(clean)] == ["boxes that leave their image by 1 pixel or less"]


def test_whole_numbers_may_be_floats_as_in_reading(check, clean, write):
    clean["annotations"][0]["id"], clean["images"][0]["width"] = 101.0, 60.0
    read_annotations(write(clean))
    assert check(clean) == []


def test_coco_url_gives_the_file_name(check, clean):
    clean["images"][0] = {"id": 11, "width": 60, "height": 40, "coco_url": "http://host/val2017/5.png"}
    assert check(clean) == []
    clean["images"][1]["file_name"] = "val2017/5.png"
    assert [f.examples for f in check(clean)] == [("val2017/5.png (2 times)",)]


def test_no_object_to_learn_from(check, clean):
    for annotation in clean["annotations"]:
        annotation["iscrowd"] = 1
    assert [f for f in check(clean) if f.severity == "error"] == [
        Finding("train", "error", "not one object to learn from", 1, ("0 of 6 annotations",))
    ]
