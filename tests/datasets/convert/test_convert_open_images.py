"""Open Images CSV as LVIS JSON."""

import json

import pytest

from longshot.datasets import DataError, read_annotations
from longshot.datasets.convert import convert_open_images

CLASSES = "/m/animal,Animal\n/m/cat,Cat\n/m/dog,Dog\n/m/chair,Chair\n"
HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
BOXES = HEADER + (
    "bb,xclick,/m/cat,1,0.1,0.5,0.2,0.8,0,0,0,0,0\n"
    "aa,xclick,/m/dog,1,0,1,0,0.333333,0,0,1,0,0\n"
    "bb,xclick,/m/spoon,1,0,1,0,1,0,0,0,0,0\n"  # no listed class
    "bb,activemil,/m/chair,1,0.25,0.25,0,1,-1,-1,-1,-1,-1\n"
)
LABELS = (
    "ImageID,Source,LabelName,Confidence\n"
    "bb,verification,/m/dog,0\n"
    "bb,verification,/m/cat,1\n"  # has a box
    "cc,verification,/m/animal,0\n"
    "cc,verification,/m/chair,1\n"  # and yet no box
    "dd,verification,/m/spoon,0\n"
)
SIZES = "ImageID,Width,Height\nbb,200,100\naa,60,90\ncc,10,20\nee,1,1\n"
HIERARCHY = {
    "LabelName": "/m/entity",
    "Subcategory": [
        {"LabelName": "/m/animal", "Subcategory": [{"LabelName": "/m/cat"}, {"LabelName": "/m/dog"}]},
        {"LabelName": "/m/chair"},
    ],
}


@pytest.fixture
def convert(tmp_path, write_text):
    """Options, texts by option -> the file and the lines."""

    def run(*, hierarchy=None, **texts):
        texts = {"classes": CLASSES, "boxes": BOXES, "image_labels": LABELS, "sizes": SIZES} | texts
        options = {k: v for k, v in texts.items() if not isinstance(v, str)}
        files = {k: write_text(f"{k}.csv", v) for k, v in texts.items() if isinstance(v, str)}
        if hierarchy:
            files["hierarchy"] = write_text("hierarchy.json", json.dumps(hierarchy))
        out = tmp_path / "out" / "val.json"
        return out, convert_open_images(out, **files, **options, progress=False)

    return run


def test_boxes_are_pixels_of_the_image(convert, boxes_of):
    out, _ = convert()
    assert boxes_of(out) == [
        ("bb.jpg", "Cat", [20, 20, 80, 60], False, False),  # of 200 x 100
        ("aa.jpg", "Dog", [0, 0, 60, 30], True, False),  # 0.333333 * 90 = 29.99997, group-of
        ("bb.jpg", "Chair", [50, 0, 0, 100], False, False),  # without width, and IsGroupOf is not known
    ]


def test_ids_follow_the_image_names_and_the_list_of_classes(convert):
    out, _ = convert()
    content = json.loads(out.read_text())
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in content["images"]] == [
        (1, "aa.jpg", 60, 90),
        (2, "bb.jpg", 200, 100),
        (3, "cc.jpg", 10, 20),
    ]
    assert [(c["id"], c["name"], c["freebase_id"]) for c in content["categories"]][:2] == [
        (1, "Animal", "/m/animal"),
        (2, "Cat", "/m/cat"),
    ]
    assert [(a["id"], a["image_id"], a["category_id"], a["area"]) for a in content["annotations"]] == [
        (1, 2, 2, 4800),
        (2, 1, 3, 1800),
        (3, 2, 4, 0),
    ]


def test_checked_classes_without_a_box_are_negative(convert, absent_of):
    out, _ = convert()
    assert absent_of(out) == {"aa.jpg": [], "bb.jpg": [3], "cc.jpg": [1, 4]}
    assert read_annotations(out).is_lvis


def test_hierarchy_adds_the_classes_above_boxes_and_below_negative_labels(convert, boxes_of, absent_of):
    out, _ = convert(hierarchy=HIERARCHY)
    assert boxes_of(out) == [
        ("bb.jpg", "Animal", [20, 20, 80, 60], False, False),
        ("bb.jpg", "Cat", [20, 20, 80, 60], False, False),
        ("aa.jpg", "Animal", [0, 0, 60, 30], True, False),
        ("aa.jpg", "Dog", [0, 0, 60, 30], True, False),
        ("bb.jpg", "Chair", [50, 0, 0, 100], False, False),
    ]
    # Positive labels imply what is above them: bb has an animal, and a box of it. No animal in cc: no cat and no dog.
    assert absent_of(out) == {"aa.jpg": [], "bb.jpg": [3], "cc.jpg": [1, 2, 3, 4]}


def test_positive_labels_without_a_box_imply_the_classes_above(convert, absent_of):
    labels = "ImageID,LabelName,Confidence\nbb,/m/dog,1\ncc,/m/dog,1\n"
    out, _ = convert(hierarchy=HIERARCHY, image_labels=labels)
    assert absent_of(out) == {"aa.jpg": [], "bb.jpg": [3], "cc.jpg": [1, 3]}


def test_groups_can_be_objects(convert, boxes_of):
    out, _ = convert(groups_as_objects=True)
    assert not any(crowd for _, _, _, crowd, _ in boxes_of(out))


def test_without_image_labels_nothing_is_said_of_absent_classes(convert):
    out, _ = convert(image_labels=None)
    assert not read_annotations(out).is_lvis
    assert "neg_category_ids" not in out.read_text()


def test_sizes_of_image_files_are_those_of_the_stored_pixels(convert, tmp_path, picture):
    for name, height, width in (("aa", 90, 60), ("bb", 100, 200), ("cc", 20, 10)):
        picture(tmp_path / "images" / f"{name}.jpg", height, width, orientation=6)
    out, _ = convert(images=tmp_path / "images", sizes=None)
    assert read_annotations(out).image_sizes.tolist() == [[90, 60], [100, 200], [20, 10]]


def test_report_counts_what_is_written_and_left_out(convert):
    out, lines = convert(hierarchy=HIERARCHY)
    assert lines == [
        f"{out}: 3 images, 5 boxes of 4 classes: 3 in the file (1 group-of) and 2 for the classes above theirs",
        "verified labels: 2 of present classes, 2 of absent ones",
        "left out: 2 rows of 1 classes that are not listed, most of them /m/spoon (2)",
    ]


def test_header_of_classes_is_no_class_and_columns_may_come_in_any_order(convert, boxes_of):
    boxes = "ymax,ymin,xmax,xmin,IsGroupOf,LabelName,ImageID\n0.8,0.2,0.5,0.1,0,/m/cat,bb\n\n"
    out, _ = convert(classes="LabelName,DisplayName\n" + CLASSES, boxes=boxes)
    assert boxes_of(out) == [("bb.jpg", "Cat", [20, 20, 80, 60], False, False)]


def row(**changes):
    fields = dict(
        zip(
            HEADER.strip().split(","),
            ["bb", "xclick", "/m/cat", "1", "0.1", "0.5", "0.2", "0.8", "0", "0", "0", "0", "0"],
            strict=True,
        )
    )
    return HEADER + BOXES.split("\n")[1] + "\n" + ",".join((fields | changes).values()) + "\n"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"boxes": row(XMin="left")}, r"boxes.csv:3: 'left' is not a number \(XMin\)"),
        ({"boxes": row(XMin="nan")}, r"boxes.csv:3: 'nan' is not a number \(XMin\)"),
        ({"boxes": row(XMax="inf")}, "boxes.csv:3: XMin 0.1, YMin 0.2, XMax inf, YMax 0.8: expected 0 <= XMin"),
        ({"boxes": row(XMax="0.05")}, "boxes.csv:3: XMin 0.1, YMin 0.2, XMax 0.05, YMax 0.8: expected 0 <= XMin"),
        ({"boxes": row(YMax="1.5")}, "boxes.csv:3: XMin 0.1, YMin 0.2, XMax 0.5, YMax 1.5: expected 0 <= XMin"),
        ({"boxes": row(IsGroupOf="yes")}, "boxes.csv:3: 'yes' is not 0, 1 or -1"),
        ({"boxes": BOXES + "bb,xclick\n"}, "boxes.csv:6: 2 fields, but the header has 13"),
        ({"boxes": BOXES.replace("XMin", "Left")}, "boxes.csv:1: the header has no column 'XMin'"),
        ({"boxes": HEADER, "image_labels": None}, "boxes.csv: no box of any of the 4 classes"),
        ({"classes": CLASSES + "/m/cat,Cat\n"}, "classes.csv:5: expected a new LabelName"),
        ({"classes": "/m/cat\n"}, "classes.csv:1: expected a new LabelName"),
        ({"classes": ""}, "classes.csv: names no class"),
        ({"image_labels": LABELS + "bb,machine,/m/dog,0.7\n"}, "image_labels.csv:7: '0.7' is not 0 or 1"),
        ({"sizes": SIZES.replace("aa,60", "ff,60")}, "sizes.csv: has no line for image aa"),
        ({"sizes": SIZES.replace("200", "0")}, "sizes.csv:2: '0' is not a number of pixels"),
        ({"sizes": None}, "name either the folder of the images or a CSV of sizes"),
        ({"hierarchy": {"LabelName": "/m/entity"}}, "hierarchy.json: not a class hierarchy"),
        (
            {"hierarchy": {**HIERARCHY, "Subcategory": []}},
            "4 of 4 classes are not in the hierarchy, for example /m/ani",
        ),
    ],
)
def test_malformed_input_is_named_with_its_line(convert, tmp_path, texts, message):
    with pytest.raises(DataError, match=message):
        convert(**texts)
    assert not (tmp_path / "out" / "val.json").exists()


def test_all_malformed_lines_are_counted(convert):
    bad = "".join(f"bb,xclick,/m/cat,1,{x},0.5,0.2,0.8,0,0,0,0,0\n" for x in ["a", "0.6"] * 4)
    with pytest.raises(DataError, match=r"boxes.csv:6: 'a'.*; … 8 problems in all. Nothing was written"):
        convert(boxes=BOXES + bad)


def test_missing_images_are_counted(convert, tmp_path, picture):
    picture(tmp_path / "images" / "bb.jpg", 100, 200)
    (tmp_path / "images" / "cc.jpg").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"aa.jpg: no such image; .*cc.jpg: cannot be read as an image.*Nothing was written"
    ):
        convert(images=tmp_path / "images", sizes=None)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.csv: cannot read the classes: No such file"):
        convert_open_images(
            tmp_path / "o.json", classes=tmp_path / "none.csv", boxes=tmp_path / "b", sizes=tmp_path / "s"
        )
