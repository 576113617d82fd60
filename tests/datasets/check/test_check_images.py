"""Images: missing, damaged, of other sizes, twice there; and processes that die while reading them."""

import copy
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longshot.datasets.check import Finding, SplitFiles, check_dataset
from longshot.datasets.check import images as check_images_module


@pytest.fixture
def check(write, clean, image_folder):
    """(read_images, workers) -> the findings of the tiny dataset with its images."""

    def findings(**options):
        files = SplitFiles(write(clean), image_folder)
        return check_dataset(files, **{"workers": 2, **options}).findings

    return findings


def _noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_nothing_is_found_in_good_images(check):
    assert check() == []


def test_missing_image_is_found_without_decoding_too(check, image_folder):
    (image_folder / "7.png").unlink()
    expected = [Finding("train", "error", "images that are missing", 1, ("image 7 (7.png)",))]
    assert check() == expected
    assert check(read_images=False) == expected


def test_missing_folder_is_one_row(write, clean, tmp_path):
    assert check_dataset(SplitFiles(write(clean), tmp_path / "nowhere")).findings == [
        Finding("train", "error", "the folder of images is missing", 1, (str(tmp_path / "nowhere"),))
    ]


def test_file_names_that_no_file_can_have_are_missing_images(check, clean):
    for image, name in zip(clean["images"], ("a\0b", "a" * 5000, "\ud800", "11.png/x"), strict=False):
        image["file_name"] = name
    (finding,) = check()
    assert (finding.what, finding.count) == ("images that are missing", 4)


def test_truncated_jpeg_is_found_by_decoding_alone(check, clean, image_folder):
    clean["images"][0]["file_name"] = "cut.jpg"
    path = image_folder / "cut.jpg"
    _noise(40, 60).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with Image.open(path) as header:
        assert header.size == (60, 40)
    (finding,) = check()
    assert finding[:4] == ("train", "error", "images that cannot be decoded", 1)
    assert finding.examples[0].startswith("image 11 (cut.jpg): image file is truncated")
    assert check(read_images=False) == []


@pytest.mark.parametrize("written", [b"", b"<html>404</html>"])
def test_foreign_file_is_found(check, image_folder, written):
    (image_folder / "5.png").write_bytes(written)
    assert [(f.what, f.count) for f in check()] == [("images that cannot be decoded", 1)]


def test_image_of_another_size_is_told_with_both(check, image_folder):
    _noise(40, 60).resize((30, 20)).save(image_folder / "11.png")
    assert check() == [
        Finding("train", "error", "images of another size than annotated", 1,
                ("image 11 (11.png): 30 x 20, annotated 60 x 40",))
    ]  # fmt: skip


def test_orientation_is_taken_into_account(check, image_folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    _noise(60, 40, seed=1).save(image_folder / "11.png", exif=exif)  # upright 40 x 60 (height, width), as annotated
    _noise(60, 40, seed=2).save(image_folder / "5.png", exif=exif)  # stored 60 x 40, as annotated
    assert check() == [
        Finding("train", "note", "images annotated as stored, without their EXIF orientation", 1, ("image 5 (5.png)",))
    ]


def test_image_without_a_usable_size_is_decoded_all_the_same(check, clean, image_folder):
    clean["images"][0]["width"] = 0
    (image_folder / "11.png").write_bytes(b"")
    assert [f.what for f in check()] == [
        "images: 'width' missing or not a whole number above 0",
        "images that cannot be decoded",
    ]


def test_equal_files_of_a_split_are_found(check, clean, image_folder):
    clean["images"][1] |= {"height": 40, "width": 60}
    clean["annotations"][3]["bbox"] = [4, 6, 10, 12]
    shutil.copy(image_folder / "11.png", image_folder / "5.png")
    assert check() == [
        Finding("train", "warning", "image files that repeat another", 1, ("image 5 (5.png) is image 11 (11.png) of train",))
    ]  # fmt: skip
    clean["images"][1]["file_name"] = "11.png"  # the same file is told as a name, once
    assert [f.what for f in check()] == ["file names of several images"]


def _two_splits(write, clean, val, train_images, val_images, **options):
    train = SplitFiles(write(clean, "train.json"), train_images)
    return check_dataset(train, SplitFiles(write(val, "val.json"), val_images), workers=2, **options).findings


def test_image_of_both_splits_is_found_by_its_name(write, clean, image_folder):
    val = copy.deepcopy(clean)
    val["images"][0]["id"] = 12
    val["annotations"][1]["image_id"] = 12
    (finding,) = _two_splits(write, clean, val, image_folder, image_folder)
    assert finding[:4] == ("both", "error", "images that are in train and in val", 5)
    assert finding.examples[0] == "image 11 (11.png) in train, image 12 (11.png) in val"


def test_image_of_both_splits_is_found_by_its_content(write, clean, image_folder, tmp_path):
    val, other = copy.deepcopy(clean), tmp_path / "other"
    other.mkdir()
    for image in val["images"]:
        name, image["file_name"] = image["file_name"], f"val_{image['id']}.png"
        _noise(image["height"], image["width"], seed=99 + image["id"]).save(other / image["file_name"])
        if image["id"] == 7:
            shutil.copy(image_folder / name, other / image["file_name"])
    assert _two_splits(write, clean, val, image_folder, other) == [
        Finding("both", "error", "image files of val that train has under another path", 1,
                ("image 7 (val_7.png) is image 7 (7.png) of train",))
    ]  # fmt: skip


def test_equal_names_in_different_folders_may_be_different_images(write, clean, image_folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for image in clean["images"]:
        _noise(image["height"], image["width"], seed=99 + image["id"]).save(other / image["file_name"])
    (finding,) = _two_splits(write, clean, clean, image_folder, other)
    assert finding[:4] == ("both", "warning", "file names that are in train and in val", 5)


@pytest.fixture
def deadly(monkeypatch):
    """Reading deadly.png kills the process, as a crash of a decoder or a lack of memory does; huge.png does not fit."""
    if multiprocessing.get_start_method() != "fork":
        pytest.skip("other processes would not be patched")
    read = check_images_module.read_image

    def die(path, expected_size=None):
        if Path(path).name == "deadly.png":
            os.kill(os.getpid(), signal.SIGKILL)
        if Path(path).name == "huge.png":
            raise MemoryError
        return read(path, expected_size)

    monkeypatch.setattr(check_images_module, "read_image", die)


@pytest.mark.parametrize("position", [0, 2, 13])
def test_killed_process_is_a_row_and_the_others_are_read(write, deadly, image_folder, position):
    images = [{"id": i, "width": 80, "height": 30, "file_name": "90.png"} for i in range(14)]
    images[position]["file_name"] = "deadly.png"
    images[5]["height"] = 31
    (image_folder / "deadly.png").touch()
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    findings = check_dataset(SplitFiles(write(content), image_folder), workers=2).findings
    found = [f for f in findings if f.what.startswith(("images that cannot", "images of"))]
    assert [(f.count, f.examples[0].split(":")[0]) for f in found] == [
        (1, f"image {position} (deadly.png)"),
        (1, "image 5 (90.png)"),
    ]
    assert "was killed" in found[0].examples[0]


def test_image_that_does_not_fit_into_memory_is_a_row(check, clean, deadly, image_folder):
    clean["images"][0]["file_name"] = "huge.png"
    (image_folder / "huge.png").touch()
    assert check() == [
        Finding("train", "error", "images that cannot be decoded", 1, ("image 11 (huge.png): not enough memory",))
    ]


def test_process_killed_from_outside_loses_no_image(write, clean, image_folder):
    (image_folder / "2.png").write_bytes(b"")  # the last

    def progress(iterable, length):
        for number, item in enumerate(iterable):
            if number == 1:
                for process in multiprocessing.active_children():
                    process.kill()
            yield item

    for image in clean["images"][:-1]:
        image["file_name"] = "big.png"
        image["width"] = image["height"] = 1500  # takes long enough that not all are read before
    _noise(1500, 1500).save(image_folder / "big.png")
    findings = check_dataset(SplitFiles(write(clean), image_folder), workers=1, progress=progress).findings
    found = [f for f in findings if f.what == "images that cannot be decoded"]
    assert [f.count for f in found] == [1]
    assert found[0].examples[0].startswith("image 2 (2.png): the file is empty")


def test_blocks_of_images_are_all_read_in_order(write, clean, image_folder, monkeypatch):
    monkeypatch.setattr(check_images_module, "_BLOCK", 2)
    for name in ("11.png", "90.png", "2.png"):  # the first, the fourth, the fifth
        (image_folder / name).write_bytes(b"")
    (finding,) = check_dataset(SplitFiles(write(clean), image_folder), workers=2).findings
    assert [example.split(":")[0] for example in finding.examples] == [
        "image 11 (11.png)",
        "image 90 (90.png)",
        "image 2 (2.png)",
    ]


def test_progress_sees_every_image(write, clean, image_folder):
    seen = []

    def progress(iterable, length):
        for item in iterable:
            seen.append(length)
            yield item

    check_dataset(SplitFiles(write(clean), image_folder), workers=1, progress=progress)
    assert seen == [5] * 5
