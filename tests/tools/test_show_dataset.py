"""tools/show_dataset.py: pictures of a dataset as the model sees it."""

import pytest
from PIL import Image


def test_pictures_and_description(call, write_config, tmp_path):
    write_config(tmp_path)
    done = call("show_dataset", "--config", "tiny.yaml", "--count", 6, cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("train: 24 images")
    assert lines[-2:] == [
        "what the model sees: runs/tiny/dataset/train_images.png",
        "training images per class: runs/tiny/dataset/long_tail.png",
    ]
    for name in ("train_images.png", "long_tail.png"):
        assert min(Image.open(tmp_path / "runs" / "tiny" / "dataset" / name).size) > 500


def test_looking_at_the_data_leaves_the_run_folder_free(call, write_config, tmp_path):
    write_config(tmp_path)
    call("show_dataset", "--config", "tiny.yaml", "--count", 1, cwd=tmp_path)
    done = call("train", "--config", "tiny.yaml", "schedule.length=1", cwd=tmp_path)
    assert done.code == 0, done.err


def test_validation_images_and_another_folder(call, write_config, tmp_path):
    write_config(tmp_path)
    done = call("show_dataset", "--config", "tiny.yaml", "--split", "val", "--out", "new/here", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "new" / "here" / "val_images.png").is_file()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["data.short_side=3"], "data.short_side: unknown key; did you mean 'short_sides'?"),
        (["data.train.images=nowhere"], "nowhere: no such folder of images"),
        (["--out", "tiny.yaml"], "tiny.yaml: File exists"),
    ],
)
def test_bad_arguments_give_one_line(call, is_error, write_config, tmp_path, arguments, text):
    write_config(tmp_path)
    assert is_error(call("show_dataset", "--config", "tiny.yaml", *arguments, cwd=tmp_path), text)


def test_no_image_at_all_is_a_usage_error(call, tmp_path):
    done = call("show_dataset", "--config", "tiny.yaml", "--count", "0", cwd=tmp_path)
    assert done.code == 2
    assert "--count: expected a whole number of at least 1, found '0'" in done.err
