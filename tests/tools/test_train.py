"""tools/train.py: what a run leaves behind, resuming, torchrun, and what it says to bad input."""

import json
import os
import shutil
import signal

import pytest
import torch
from PIL import Image

from longshot.detector.run import loop


def training_losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


def annotations_with(shapes, path, change):
    """A copy of the training annotations at `path`, changed in place by `change`."""
    content = json.loads(shapes.train.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_training_ends_with_table_picture_and_tensorboard_command(trained):
    ending = trained.done.out.strip().splitlines()
    assert ending[-1] == "curves and pictures: tensorboard --logdir runs/tiny"
    assert ending[-2] == "detections beside ground truth: runs/tiny/pictures/step_00000040.png"
    assert any(line.startswith("APr ") for line in ending[-15:])
    assert "4 classes (rare 1, common 1, frequent 2, as the file says)" in trained.done.out
    assert "warning: test.score_threshold is 0 and test.detections_per_image 50; LVIS" in trained.done.out


def test_run_folder_is_complete(trained):
    names = {path.name for path in trained.folder.iterdir()}
    assert names > {"config.yaml", "environment.json", "log.txt", "metrics.json", "metrics.jsonl", "pictures"}
    assert len(list(trained.folder.glob("events*"))) == 1
    saved = sorted(path.name for path in (trained.folder / "checkpoints").iterdir())
    assert saved == ["best.pt", "step_00000020.pt", "step_00000040.pt"]
    assert len(training_losses(trained.folder)) == 40
    picture = Image.open(trained.folder / "pictures" / "step_00000040.png")
    assert min(picture.size) > 300


def test_resolved_config_describes_the_same_run(trained, call, tmp_path):
    shutil.copytree(trained.home, tmp_path, dirs_exist_ok=True)
    done = call("train", "--config", "runs/tiny/config.yaml", "--resume", "auto", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "changed configuration" not in done.out


def test_resumed_run_ends_as_the_uninterrupted_one(trained, call, tmp_path):
    shutil.copytree(trained.home, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "runs" / "tiny"
    (folder / "checkpoints" / "step_00000040.pt").unlink()
    (folder / "metrics.json").unlink()
    done = call("train", "--config", "tiny.yaml", "--resume", "auto", "eval.pictures=0", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "steps 20 to 40" in done.out
    assert "warning: resumed with a changed configuration: eval.pictures: 2 -> 0" in done.out
    assert json.loads((folder / "metrics.json").read_text()) == trained.metrics
    assert training_losses(folder) == training_losses(trained.folder)


def test_finished_run_that_is_resumed_only_shows_its_table(trained, call, tmp_path):
    shutil.copytree(trained.home, tmp_path, dirs_exist_ok=True)
    done = call("train", "--config", "tiny.yaml", "--resume", "auto", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "steps 40 to 40" in done.out
    assert "tensorboard --logdir runs/tiny" in done.out
    assert training_losses(tmp_path / "runs" / "tiny") == training_losses(trained.folder)


def test_another_run_is_not_overwritten(trained, start, is_error):
    before = trained.checkpoint.read_bytes()
    done = start("train", "--config", "tiny.yaml", cwd=trained.home)
    assert is_error(done, "runs/tiny: holds a run already", "--resume auto", "output=FOLDER")
    assert trained.checkpoint.read_bytes() == before


def test_two_processes_train_like_one(trained, start, write_config, tmp_path):
    write_config(tmp_path)
    done = start("train", "--config", "tiny.yaml", "device=cpu", cwd=tmp_path, processes=2)
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "tiny"
    # Later steps magnify what rounding changes, as another number of threads does, too.
    assert training_losses(folder)[:6] == pytest.approx(training_losses(trained.folder)[:6], rel=1e-5)
    assert len(training_losses(folder)) == 40
    assert len(list(folder.glob("events*"))) == 1
    assert done.out.count("tensorboard --logdir") == 1
    assert json.loads((folder / "metrics.json").read_text())["AP"] > 1


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["optimizer.lrr=1"], ["optimizer.lrr: unknown key; did you mean 'lr'?"]),
        (["loss.classification={name: equalised_focal}"], ["did you mean 'equalized_focal'?"]),
        (["nonsense"], ["'nonsense': an override has the form section.key=value"]),
        (["data.train.annotations=null"], ["data.train.annotations: not set", "data.train.annotations=PATH"]),
        (["data.train.annotations=none.json"], ["none.json"]),
        (["data.val.images=nowhere"], ["nowhere: no such folder of images"]),
        (["train.batch_size=3", "train.images_per_pass=2"], ["train.batch_size 3 is not divisible"]),
        (["model.backbone.norm=frozen_bn"], ["there are none", "model.backbone.weights"]),
        (["--resume", "none.pt"], ["none.pt: no such checkpoint"]),
        (["init_from=tiny.yaml"], ["tiny.yaml: not a readable checkpoint"]),
        (["output=tiny.yaml/run"], ["tiny.yaml"]),
    ],
)
def test_bad_arguments_give_one_line(call, is_error, write_config, tmp_path, arguments, texts):
    write_config(tmp_path)
    assert is_error(call("train", "--config", "tiny.yaml", *arguments, cwd=tmp_path), *texts)
    assert not (tmp_path / "runs").exists(), "a run that never started left a folder which the next one stumbles over"


@pytest.mark.parametrize(("under_torchrun", "code"), [(False, 75), (True, 0)])
def test_a_run_that_is_asked_to_stop_says_so_by_its_exit_code(
    call, write_config, tmp_path, monkeypatch, under_torchrun, code
):
    def asked(run, *args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return optimize(run, *args, **options)

    write_config(tmp_path)
    optimize = loop.optimize
    if under_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(loop, "optimize", asked)
    done = call("train", "--config", "tiny.yaml", cwd=tmp_path)
    assert done.code == code
    assert done.out.splitlines()[-1] == "asked to stop, saved step 1: the same command goes on from there"
    assert json.loads((tmp_path / "runs" / "tiny" / "preempted.json").read_text())["signal"] == "SIGTERM"


def test_missing_config_is_named(call, is_error, tmp_path):
    assert is_error(call("train", "--config", "none.yaml", cwd=tmp_path), "none.yaml: no such file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_device_that_is_not_there_is_an_error(call, is_error, write_config, tmp_path):
    write_config(tmp_path)
    assert is_error(call("train", "--config", "tiny.yaml", "device=cuda", cwd=tmp_path), "device: cuda", "0 GPUs")


def test_truncated_annotations_are_an_error(call, is_error, write_config, shapes, tmp_path):
    write_config(tmp_path)
    (tmp_path / "cut.json").write_text(shapes.train.read_text()[:5000])
    done = call("train", "--config", "tiny.yaml", "data.train.annotations=cut.json", cwd=tmp_path)
    assert is_error(done, "cut.json", "JSON")


def test_unknown_category_is_an_error(call, is_error, write_config, shapes, tmp_path):
    write_config(tmp_path)
    changed = annotations_with(shapes, tmp_path / "changed.json", lambda c: c["annotations"][3].update(category_id=55))
    done = call("train", "--config", "tiny.yaml", f"data.train.annotations={changed}", cwd=tmp_path)
    assert is_error(done, "changed.json: annotation", "has category_id 55")


def test_dataset_without_a_usable_box_is_an_error(call, is_error, write_config, shapes, tmp_path):
    def flatten(content):
        for annotation in content["annotations"]:
            annotation["bbox"][2] = 0

    write_config(tmp_path)
    changed = annotations_with(shapes, tmp_path / "changed.json", flatten)
    done = call("train", "--config", "tiny.yaml", f"data.train.annotations={changed}", cwd=tmp_path)
    assert is_error(done, "changed.json: not one object to learn from")


def test_class_sets_of_train_and_val_must_agree(call, is_error, write_config, shapes, tmp_path):
    write_config(tmp_path)
    changed = annotations_with(shapes, tmp_path / "changed.json", lambda c: c["categories"][0].update(name="bar"))
    done = call("train", "--config", "tiny.yaml", f"data.train.annotations={changed}", cwd=tmp_path)
    assert is_error(done, "id 90: 'bar' here, 'blue bar' there")


def test_undecodable_image_in_a_worker_is_named(call, is_error, write_config, shapes, tmp_path):
    write_config(tmp_path)
    shutil.copytree(shapes.folder, tmp_path / "images")
    for path in (tmp_path / "images").glob("train_*.png"):
        path.write_bytes(path.read_bytes()[:200])
    done = call("train", "--config", "tiny.yaml", "data.train.images=images", "data.workers=1", cwd=tmp_path)
    assert done.code == 1
    assert "error: images/train_" in done.err.splitlines()[-1]
    assert "cannot be decoded as an image" in done.err
    assert "Traceback" not in done.err


def test_every_process_tells_what_only_the_first_could_see(trained, start):
    done = start("train", "--config", "tiny.yaml", "device=cpu", cwd=trained.home, processes=2)
    assert done.code == 1
    for rank in (0, 1):
        assert f"[rank {rank}] error: runs/tiny: holds a run already" in done.err
    assert 'tools/train.py", line' not in done.err, "a traceback of ours"
