"""Whole runs on images that cannot be read."""

import json

import pytest
import torch

from longshot.datasets import DataError
from longshot.detector.build_data import build_data
from longshot.detector.checkpoint.file import load_checkpoint
from longshot.detector.run.loop import train

PROCESS = """
import json, sys
from pathlib import Path
import torch
from longshot.detector.config.schema import parse_config
from longshot.detector.system.distributed import process_group
from longshot.detector.run.loop import train

torch.set_num_threads(1)
with process_group("cpu") as process:
    train(parse_config(json.loads(Path(sys.argv[1]).read_text())), process)
"""


@pytest.fixture(scope="module")
def sick_config(shapes, make_config, tmp_path_factory):
    """(run folder, differences) -> Config of a run on the shapes without one training and one validation image."""
    images = tmp_path_factory.mktemp("sick")
    for path in shapes.folder.glob("*.png"):
        (images / path.name).symlink_to(path)
    for name in ("train_5.png", "val_3.png"):
        (images / name).unlink()
    data = {
        "train": {"annotations": str(shapes.train), "images": str(images)},
        "val": {"annotations": str(shapes.val), "images": str(images)},
        "on_unreadable": "replace",
        "workers": 1,
    }

    def make(output, **differences):
        changed = {"data": data | differences.pop("data", {}), "schedule": {"length": 12}, "eval": {"pictures": 3}}
        return make_config(output, changed | differences)

    return make


@pytest.fixture(scope="module")
def replaced(sick_config, cpu, tmp_path_factory):
    """The folder of a run that has shown others."""
    folder = tmp_path_factory.mktemp("runs") / "replaced"
    assert train(sick_config(folder), cpu)
    return folder


def numbers_of(folder, kind):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def test_an_image_that_vanished_is_replaced_told_of_once_and_counted(replaced):
    log = (replaced / "log.txt").read_text()
    assert log.count("train_5.png: no such image (image 965 of ") == 1
    assert log.count("val_3.png: no such image (image 979 of ") == 1
    assert "another image is shown in its place" in log
    assert "it is scored as an image in which nothing was detected" in log
    assert "1 of 7 images could not be read" in log
    counts = [record.get("unreadable", 0) for record in numbers_of(replaced, "train")]
    assert counts == sorted(counts)
    assert counts[-1] >= 2  # 48 of 24 images
    assert f"in place of {counts[-1]} images that could not be read others were shown so far" in log
    assert json.loads((replaced / "metrics.json").read_text())["unreadable_images"] == 1


def test_a_resumed_run_goes_on_counting(replaced, sick_config, cpu, tmp_path):
    folder = tmp_path / "resumed"
    train(sick_config(folder, schedule={"length": 12}, train={"batch_size": 4, "checkpoint_every": 6}), cpu)
    (folder / "checkpoints" / "step_00000012.pt").unlink()
    train(sick_config(folder), cpu, resume="auto")
    for name in ("model", "unreadable"):
        ours, theirs = (load_checkpoint(f / "checkpoints" / "step_00000012.pt")[name] for f in (folder, replaced))
        if name == "model":
            assert all(torch.equal(ours[key], value) for key, value in theirs.items())
        else:
            assert ours == theirs > 0


def test_two_processes_replace_and_count_as_one(replaced, sick_config, run_processes, tmp_path):
    values = sick_config(tmp_path / "two").model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "process.py").write_text(PROCESS)
    ended = run_processes(2, tmp_path / "process.py", tmp_path / "config.json")
    assert ended.codes == [0, 0], ended.output
    ours, theirs = (load_checkpoint(f / "checkpoints" / "step_00000012.pt") for f in (tmp_path / "two", replaced))
    assert ours["unreadable"] == theirs["unreadable"] > 0
    # The same other image in its place: rounding, which grows with every step, apart.
    losses = [[r["loss"] for r in numbers_of(f, "train")] for f in (tmp_path / "two", replaced)]
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    # Whoever meets it tells of it.
    told = [(tmp_path / "two" / "log.txt").read_text(), ended.output[1]]
    assert sum("train_5.png: no such image" in text for text in told) >= 1
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["unreadable_images"] == 1


def test_by_default_a_run_does_not_begin_without_all_images(sick_config, cpu, tmp_path):
    with pytest.raises(DataError, match=r"1 of the 24 images looked at are missing, for example train_5\.png"):
        train(sick_config(tmp_path / "run", data={"on_unreadable": "stop"}), cpu)


def test_by_default_an_image_that_vanishes_later_stops_the_run(make_config, shapes, cpu, tmp_path, monkeypatch):
    data = build_data(make_config(), cpu)
    monkeypatch.setattr("longshot.detector.run.lifecycle.build_data", lambda *_: data)
    data.train.images = tmp_path  # where there is none
    with pytest.raises(DataError, match=r"train_\d+\.png: no such image \(image \d+ of .*data\.on_unreadable=replace"):
        train(make_config(tmp_path / "run"), cpu)
