"""YOLO's text files as COCO JSON."""

import pytest

from longshot.datasets import DataError, read_annotations
from longshot.datasets.convert import convert_yolo


@pytest.fixture
def convert(tmp_path, write_text, picture):
    """Labels by name, text of the names -> the file and the lines. Images a (60 x 100) and sub/b (40 x 40)."""

    def run(labels, names="cat\ndog\n", names_file="names.txt"):
        picture(tmp_path / "images" / "a.jpg", 60, 100)
        picture(tmp_path / "images" / "sub" / "b.png", 40, 40)
        for name, text in labels.items():
            write_text(f"labels/{name}.txt", text)
        out = tmp_path / "yolo.json"
        folders = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
        return out, convert_yolo(out, **folders, names=write_text(names_file, names), progress=False)

    return run


def test_center_and_size_become_corner_and_size_in_pixels(convert, boxes_of):
    out, _ = convert({"a": "1 0.5 0.5 0.2 0.5\n", "sub/b": "0 0.25 0.75 0.5 0.5"})
    assert boxes_of(out) == [
        ("a.jpg", "dog", [40, 15, 20, 30], False, False),
        ("sub/b.png", "cat", [0, 20, 20, 20], False, False),
    ]
    assert read_annotations(out).category_ids.tolist() == [0, 1]


def test_whole_pixels_survive_six_decimals(convert, boxes_of):
    # 7 / 60 = 0.116667 and so on: what annotation tools write for whole pixels.
    out, _ = convert({"a": "0 0.355000 0.616667 0.310000 0.533333"})
    assert boxes_of(out)[0][2] == pytest.approx([20, 21, 31, 32], abs=1e-3)


def test_polygon_becomes_its_bounding_box(convert, boxes_of):
    out, _ = convert({"a": "1 0.5 0.1 0.9 0.5 0.2 0.7"})
    assert boxes_of(out)[0][2] == [20, 6, 70, 36]


def test_empty_and_missing_labels_are_images_without_objects(convert, picture, tmp_path):
    picture(tmp_path / "images" / "c.jpg", 8, 8)
    out, lines = convert({"a": "0 .5 .5 1 1\n\n", "sub/b": ""})
    assert list(read_annotations(out).file_names) == ["a.jpg", "c.jpg", "sub/b.png"]
    assert lines == [
        f"{out}: 3 images, 1 boxes of 2 classes; 2 images without objects, 1 of them without a file of labels"
    ]


def test_sizes_are_those_of_the_upright_image(convert, picture, tmp_path, boxes_of):
    picture(tmp_path / "images" / "turned.jpg", 30, 50, orientation=6)
    out, _ = convert({"turned": "0 0.5 0.5 1 1"})
    assert boxes_of(out) == [("turned.jpg", "cat", [0, 0, 30, 50], False, False)]


@pytest.mark.parametrize(
    "text", ["path: .\nnames: [cat, dog]\n", "names:\n  0: cat\n  1: dog\n", "names:\n  1: dog\n  0: cat\nnc: 2\n"]
)
def test_names_of_a_yaml_file(convert, text):
    out, _ = convert({"a": "1 0.5 0.5 0.2 0.5"}, names=text, names_file="data.yaml")
    assert read_annotations(out).class_names == ("cat", "dog")


def test_list_of_classes_among_the_labels_is_no_label(convert):
    out, _ = convert({"a": "1 0.5 0.5 0.2 0.5", "classes": "cat\ndog\n"})
    assert len(read_annotations(out).labels) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.2 0.5", "class 2: expected a whole number from 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.5", "class 0.5: expected a whole number"),
        ("-1 0.5 0.5 0.2 0.5", "class -1: expected a whole number"),
        ("0 0.5 0.5 0.2", "4 numbers: expected 5 for a box"),
        ("0 0.5 0.5 0.2 0.5 0.9", "6 numbers: expected 5 for a box"),
        ("0 0.5 0.5 0.2 0.5 0.9 0.9 0.9", "8 numbers: expected 5 for a box"),
        ("0 50 50 20 50", "a coordinate that is not within 0 and 1"),
        ("0 nan 0.5 0.2 0.5", "a coordinate that is not within 0 and 1"),
        ("cat 0.5 0.5 0.2 0.5", "could not convert string to float: 'cat'"),
    ],
)
def test_malformed_line_is_named(convert, tmp_path, line, message):
    with pytest.raises(DataError, match=rf"labels/a.txt:2: {message}.* in '{line}'"):
        convert({"a": f"0 .5 .5 1 1\n{line}\n"})
    assert not (tmp_path / "yolo.json").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": "", "z": "0 .5 .5 1 1"}, "labels/z.txt: labels without an image in"),
        (
            {"b": "0 .5 .5 1 1"},
            "labels: not one file of labels for 2 images in .*images; expected .*labels/a.txt, for example",
        ),
        ({}, "labels: no such folder of labels"),
    ],
)
def test_labels_that_fit_no_image_are_named(convert, labels, message):
    with pytest.raises(DataError, match=message):
        convert(labels)


def test_two_images_with_the_same_labels_are_named(convert, picture, tmp_path):
    picture(tmp_path / "images" / "a.png", 8, 8)
    with pytest.raises(DataError, match=r"labels/a.txt: labels of 2 images, whose names differ in the ending alone"):
        convert({"a": "0 .5 .5 1 1"})


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("names.txt", "\n", "names no class"),
        ("names.txt", "cat\ncat\n", "class 'cat' comes twice"),
        ("data.yaml", "names: [cat, no]\n", "class False is not a name; write it in quotes"),
        ("data.yaml", "names: {0: cat, 2: dog}\n", "expected 'names': a list of classes, or a mapping of 0, 1"),
        ("data.yaml", "nc: 2\n", "expected 'names': .*; found None"),
        ("data.yaml", "names: [cat\n", "data.yaml: not YAML"),
    ],
)
def test_malformed_names_are_told(convert, file, text, message):
    with pytest.raises(DataError, match=message):
        convert({"a": "0 .5 .5 1 1"}, names=text, names_file=file)


def test_folder_without_images_is_named(tmp_path, write_text):
    options = {"labels": tmp_path, "names": write_text("names.txt", "cat")}
    with pytest.raises(DataError, match="nowhere: no such folder of images"):
        convert_yolo(tmp_path / "o.json", images=tmp_path / "nowhere", **options)
    with pytest.raises(DataError, match="holds no image"):
        convert_yolo(tmp_path / "o.json", images=tmp_path, **options)
