"""tools/convert_annotations.py."""

import pytest
from PIL import Image

from longshot.datasets import read_annotations


@pytest.fixture
def yolo(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (100, 60)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.5\n0 0.5 0.5 0 0.5\n")
    (tmp_path / "names.txt").write_text("cat\n")
    return ("yolo", "--images", "images", "--labels", "labels", "--names", "names.txt", "--out", "new/train.json")


def test_converted_file_is_read_and_its_bad_boxes_told(call, yolo, tmp_path):
    done = call("convert_annotations", *yolo, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "new/train.json: 1 images, 2 boxes of 1 classes; 0 images without objects, 0 of them without a file of labels",
        "new/train.json: 1 of 2 boxes left out: 1 without area (annotations 2)",
    ]
    assert read_annotations(tmp_path / "new" / "train.json").boxes_xywh[0].tolist() == [40, 15, 20, 30]


def test_malformed_input_is_one_line(call, is_error, yolo, tmp_path):
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2\n")
    assert is_error(call("convert_annotations", *yolo, cwd=tmp_path), "labels/a.txt:1: 4 numbers: expected 5 for a box")


def test_voc_and_open_images(call, tmp_path):
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text(
        "<annotation><filename>a.jpg</filename><size><width>9</width><height>8</height></size><object><name>cat</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"
    )
    done = call("convert_annotations", "voc", "--xml", "xml", "--out", "voc.json", cwd=tmp_path)
    assert (done.code, done.out) == (0, "voc.json: 1 images, 1 boxes (0 difficult) of 1 classes\n"), done.err
    (tmp_path / "classes.csv").write_text("/m/cat,Cat\n")
    (tmp_path / "boxes.csv").write_text("ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,/m/cat,0,1,0,1,1\n")
    (tmp_path / "sizes.csv").write_text("ImageID,Width,Height\na,9,8\n")
    files = [text for name in ("classes", "boxes", "sizes") for text in (f"--{name}", f"{name}.csv")]
    done = call(
        "convert_annotations", "open-images", *files, "--groups-as-objects", "--out", "oi.json", cwd=tmp_path
    )  # fmt: skip
    assert done.code == 0, done.err
    assert read_annotations(tmp_path / "oi.json").crowd.tolist() == [False]


def test_format_must_be_named(call, tmp_path):
    done = call("convert_annotations", cwd=tmp_path)
    assert done.code == 2
    assert "the following arguments are required: FORMAT" in done.err
