"""tools/predict.py: pictures and JSON of detections, and what it says to bad input."""

import json

import pytest
from PIL import Image


def test_detections_are_drawn_and_written(call, trained, shapes, tmp_path):
    paths = sorted(shapes.folder.glob("val_*.png"))[:2]
    options = ("--checkpoint", trained.checkpoint, "--out", "new/drawn", "--score-threshold", 0)
    done = call("predict", *options, *paths, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "detections in 2 images: new/drawn/detections.json" in done.out
    records = json.loads((tmp_path / "new" / "drawn" / "detections.json").read_text())
    assert {record["file"] for record in records} == set(map(str, paths))
    assert {(record["category_id"], record["class"]) for record in records} <= {
        (3, "red square"), (7, "green ring"), (12, "yellow disc"), (90, "blue bar"),
    }  # fmt: skip
    for path in paths:
        width, height = Image.open(path).size
        boxes = [record["bbox"] for record in records if record["file"] == str(path)]
        assert boxes
        assert all(x >= 0 and y >= 0 and x + w <= width + 1e-3 and y + h <= height + 1e-3 for x, y, w, h in boxes)
    pictures = sorted(path.name for path in (tmp_path / "new" / "drawn").glob("*.png"))
    assert pictures == ["0000_val_0.png", "0001_val_1.png"]
    assert Image.open(tmp_path / "new" / "drawn" / pictures[0]).size == (360, 360)


def test_threshold_applies_to_what_is_drawn_and_written(call, trained, shapes, tmp_path):
    image = shapes.folder / "val_0.png"
    done = call(
        "predict", "--checkpoint", trained.checkpoint, "--out", "drawn", "--score-threshold", 1, image, cwd=tmp_path
    )
    assert done.out.startswith("0 detections in 1 images")
    assert json.loads((tmp_path / "drawn" / "detections.json").read_text()) == []


def test_folder_stands_for_the_images_in_it(call, trained, shapes, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    for name in ("b.png", "a.PNG"):
        (tmp_path / "photos" / name).write_bytes((shapes.folder / "val_0.png").read_bytes())
    done = call("predict", "--checkpoint", trained.checkpoint, "--out", "drawn", "photos", cwd=tmp_path)
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "drawn").glob("*.png")) == ["0000_a.png", "0001_b.png"]


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (["none.png"], "none.png: no such file or folder"),
        (["empty"], "empty: no image (.bmp, .jpeg"),
        (["broken.png"], "broken.png: cannot be decoded as an image"),
    ],
)
def test_path_without_image_is_named(call, is_error, trained, tmp_path, paths, text):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_text("no picture")
    done = call("predict", "--checkpoint", trained.checkpoint, "--out", "drawn", *paths, cwd=tmp_path)
    assert is_error(done, text)


def test_one_damaged_image_does_not_cost_the_others(call, is_error, trained, shapes, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    options = ("--checkpoint", trained.checkpoint, "--out", "drawn", "--score-threshold", 0)
    done = call("predict", *options, "broken.png", shapes.folder / "val_0.png", cwd=tmp_path)
    assert is_error(done, "1 of 2 images were left out: broken.png")
    assert json.loads((tmp_path / "drawn" / "detections.json").read_text())


def test_missing_checkpoint_is_named(call, is_error, shapes, tmp_path):
    done = call("predict", "--checkpoint", "none.pt", "--out", "drawn", shapes.folder / "val_0.png", cwd=tmp_path)
    assert is_error(done, "none.pt: no such checkpoint")
    assert not (tmp_path / "drawn").exists()


def test_threshold_in_percent_is_a_usage_error(call, tmp_path):
    done = call("predict", "--checkpoint", "a", "--out", "b", "--score-threshold", 30, "c.png", cwd=tmp_path)
    assert done.code == 2
    assert "expected a number from 0 to 1, found 30" in done.err
