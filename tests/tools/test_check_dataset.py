"""tools/check_dataset.py: a table, a verdict and an exit code."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """train.json, val.json, images/train, images/val: two images and two classes each, and nothing wrong."""
    for split, first in (("train", 1), ("val", 3)):
        (tmp_path / "images" / split).mkdir(parents=True)
        ids = (first, first + 1)
        for i in ids:
            pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{i}.png")
        content = {
            "images": [{"id": i, "width": 30, "height": 20, "file_name": f"{i}.png"} for i in ids],
            "annotations": [{"id": i, "image_id": i, "category_id": i % 2, "bbox": [1, 2, 3, 4]} for i in ids],
            "categories": [{"id": 0, "name": "ant"}, {"id": 1, "name": "bee"}],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


TRAIN = ("--annotations", "train.json", "--images", "images/train")
VAL = ("--val-annotations", "val.json", "--val-images", "images/val")


def _rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_clean_set_passes(call, folder):
    done = call("check_dataset", *TRAIN, *VAL, cwd=folder)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "train: 2 images, 2 annotations, 2 classes (train.json, COCO); images in images/train",
        "val: 2 images, 2 annotations, 2 classes (val.json, COCO); images in images/val",
        "passed: nothing found",
    ]


def test_warnings_pass(call, folder):
    _rewrite(folder / "train.json", '"bbox": [1, 2, 3, 4]', '"bbox": [20, 2, 13, 4]')
    done = call("check_dataset", *TRAIN, cwd=folder)
    assert done.code == 0, done.err
    assert done.out.splitlines()[1:] == [
        "severity  split  count  what                                               first examples",
        "warning   train      1  boxes that leave their image by more than 1 pixel  annotation 1 [20, 2, 13, 4], image 1 "
        "(1.png) of 30 x 20",
        "passed: 1 warning",
    ]


def test_errors_of_all_kinds_fail_together(call, folder):
    (folder / "images" / "train" / "1.png").unlink()
    (folder / "images" / "val" / "4.png").write_bytes(b"no image")
    _rewrite(folder / "train.json", "[1, 2, 3, 4]", "[1, 2, 0, 4]")
    _rewrite(folder / "val.json", '"bee"', '"wasp"')
    done = call("check_dataset", *TRAIN, *VAL, "--json", "out/found.json", cwd=folder)
    assert done.code == 1
    rows = [line.split(maxsplit=3) for line in done.out.splitlines()[3:-1]]
    assert [row[:3] for row in rows] == [
        ["error", "train", "1"],
        ["error", "both", "1"],
        ["error", "train", "1"],
        ["error", "val", "1"],
        ["note", "train", "1"],
    ]
    assert done.out.splitlines()[-1] == "FAILED: 4 errors, 1 note"
    written = json.loads((folder / "out" / "found.json").read_text())
    assert written["verdict"] == "FAILED: 4 errors, 1 note"
    assert {"split": "train", "severity": "error", "what": "images that are missing", "count": 1,
            "examples": ["image 1 (1.png)"]} in written["findings"]  # fmt: skip


def test_images_need_not_be_decoded_or_known(call, folder):
    (folder / "images" / "train" / "1.png").write_bytes(b"no image")
    done = call("check_dataset", *TRAIN, "--no-images", cwd=folder)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].endswith("images in images/train, not decoded")
    done = call("check_dataset", *TRAIN[:2], "--no-images", cwd=folder)
    assert done.out.splitlines()[0].endswith("images not looked at")


def test_broken_json_fails_with_a_row(call, folder):
    (folder / "train.json").write_text('{"images": [')
    done = call("check_dataset", *TRAIN, *VAL, cwd=folder)
    assert done.code == 1
    assert "the annotation file is not JSON" in done.out
    assert "Traceback" not in done.err


def test_configuration_names_the_files(call, folder):
    data = {split: {"annotations": f"{split}.json", "images": f"images/{split}"} for split in ("train", "val")}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"data": data}))
    done = call("check_dataset", "--config", "mine.yaml", cwd=folder)
    assert (done.code, done.out.splitlines()[-1]) == (0, "passed: nothing found")
    done = call("check_dataset", "--config", "mine.yaml", "data.val.images=images/train", cwd=folder)
    assert (done.code, done.out.splitlines()[-1]) == (1, "FAILED: 1 error")


def test_drawn_dataset_of_a_configuration_is_good(call, write_config, tmp_path):
    write_config(tmp_path)
    done = call("check_dataset", "--config", "tiny.yaml", cwd=tmp_path)
    assert done.code == 0, done.out
    assert done.out.splitlines()[-1].startswith("passed")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "give --annotations or --config"),
        (TRAIN[:2], "train: the folder of images is not named; name it, or do without with --no-images"),
        ((*TRAIN, *VAL[:2]), "val: the folder of images is not named"),
        ((*TRAIN, *VAL[2:]), "--val-images: needs --val-annotations too"),
        ((*TRAIN, "data.flip=0"), "data.flip=0: only together with --config"),
        ((*TRAIN, "--config", "x.yaml"), "--annotations, --images cannot be used together with --config"),
        ((*TRAIN, "--workers", "0"), "expected a whole number of at least 1, found '0'"),
        ((*TRAIN, "--json", "images"), "--json: images is a folder; name a file"),
        (("--config", "empty.yaml", "data.generate={folder: x, categories: 2}"), "empty.yaml: data.generate: "),
        (("--config", "empty.yaml"), "empty.yaml: data.train.annotations is not set"),
    ],
)
def test_bad_arguments_are_usage_errors(call, folder, arguments, text):
    (folder / "empty.yaml").write_text("seed: 1\n")
    done = call("check_dataset", *arguments, cwd=folder)
    assert done.code == 2
    assert text in done.err
