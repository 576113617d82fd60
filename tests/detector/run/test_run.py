"""Whole runs, killed runs, resumed runs."""

import json
import logging
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from longshot.datasets import DataError
from longshot.detector.checkpoint.file import load_checkpoint, network_weights
from longshot.detector.checkpoint.folder import saved_steps, step_path
from longshot.detector.config.schema import parse_config
from longshot.detector.errors import CheckpointError, ConfigError
from longshot.detector.evaluation.evaluate import Evaluation
from longshot.detector.run import folder as run_folder
from longshot.detector.run import loop
from longshot.detector.run.log import RunLog
from longshot.detector.run.loop import train
from longshot.losses import EqualizedFocalLoss

ROOT = Path(__file__).parents[3]
MEASURED = ("data_seconds", "step_seconds", "memory_gb")

# Every piece of state is in one of them: momentum and Adam's moments, EFL's sums, the average, the loss scale, the
# position in a stream of randomly repeated images.
VARIANTS = {
    "focal": {"loss": {"classification": {"name": "focal"}}},
    "efl-ema": {
        "train": {"ema_decay": 0.9, "images_per_pass": 2},
        "data": {"sampler": {"name": "repeat_factor", "threshold": 0.9, "rounding": "stochastic"}},
    },
    "efl-fp16-bn-worker": {
        "data": {"workers": 1},
        "train": {"precision": "fp16"},
        "model": {"backbone": {"norm": "bn"}},
    },
    "focal-ema-adamw-worker": {
        "loss": {"classification": {"name": "focal"}},
        "data": {"workers": 1},
        "train": {"ema_decay": 0.9},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    },
}


class Killed(BaseException):
    """Nothing in the program catches this."""


@contextmanager
def killed_at(owner, name, *, call=1, before=True):
    """Within the block, the n-th call of a function ends the run before or after it has done its work."""
    calls, function = [], getattr(owner, name)

    def deadly(*args, **options):
        calls.append(args)
        if len(calls) == call and before:
            raise Killed
        result = function(*args, **options)
        if len(calls) == call:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, deadly)
        try:
            yield
        except Killed:
            return
    pytest.fail(f"{name} was not called {call} times")


@pytest.fixture(scope="module")
def uninterrupted(make_config, cpu, tmp_path_factory):
    """variant -> the folder of its uninterrupted run."""
    folders = {}

    def folder(variant):
        if variant not in folders:
            folders[variant] = tmp_path_factory.mktemp("uninterrupted") / variant
            train(make_config(folders[variant], VARIANTS[variant]), cpu)
        return folders[variant]

    return folder


def records(folder):
    """The lines of metrics.jsonl, without what is measured by the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def newest(folder):
    return load_checkpoint(saved_steps(folder / "checkpoints")[-1])


def assert_same(ours, theirs, where=""):
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def assert_same_run(ours, theirs):
    """Bit for bit: weights, optimizer, EFL, average, loss scale, every loss of every step, the evaluation."""
    assert records(ours) == records(theirs)
    a, b = newest(ours), newest(theirs)
    a["config"]["output"] = b["config"]["output"]
    assert_same(a, b)
    assert (ours / "metrics.json").read_text() == (theirs / "metrics.json").read_text()


# ------------------------------------------------------------------------------------------------------- the run folder


def test_a_run_leaves_everything_in_its_folder(learned):
    names = {path.name for path in learned.iterdir()}
    assert names >= {
        "checkpoints", "config.yaml", "environment.json", "log.txt", "metrics.json", "metrics.jsonl", "pictures"
    }  # fmt: skip
    assert any(name.startswith("events") for name in names)
    assert [p.name for p in sorted((learned / "checkpoints").iterdir())] == [
        "best.pt", "step_00000150.pt", "step_00000300.pt"
    ]  # fmt: skip
    assert [p.name for p in (learned / "pictures").iterdir()] == ["step_00000300.png"]
    config = yaml.safe_load((learned / "config.yaml").read_text())
    assert config["optimizer"]["lr"] == 0.004
    assert config["loss"]["classification"]["name"] == "equalized_focal"
    assert config["loss"]["classification"]["gamma"] == 2.0
    assert parse_config(config).output == str(learned)
    assert json.loads((learned / "environment.json").read_text())[0]["torch"] == version("torch")
    kinds = [(r["step"], r["kind"]) for r in records(learned)]
    assert kinds == [(s, "train") for s in (50, 100, 150, 200, 250, 300)] + [(300, "evaluation")]
    result = json.loads((learned / "metrics.json").read_text())
    assert (result["step"], result["AP"]) == (300, records(learned)[-1]["AP"])


def test_the_gradient_ratio_is_told_at_every_evaluation(make_config, cpu, tmp_path, uninterrupted):
    train(make_config(tmp_path, {"eval": {"every": 3}}), cpu)
    log = (tmp_path / "log.txt").read_text()
    assert re.findall(r" step (\d): AP .*\n.* gradient ratio g: r \d", log) == ["3", "6"]
    assert log.count("gradient ratio") == 2
    assert "gradient ratio" not in (uninterrupted("focal") / "log.txt").read_text()


def test_the_gradient_ratio_is_told_by_median_and_extremes_of_each_group(tmp_path):
    loss = EqualizedFocalLoss(6)
    loss.positive_gradient += torch.tensor([0.02, 9.0, 5.0, 1.0, 9.6, 3.5])
    loss.negative_gradient += torch.tensor([2.0, 10.0, 10.0, 0.5, 10.0, 10.0])
    log = RunLog(tmp_path, step=0, frequencies=list("rffffc"), log_every=1, enabled=True)
    log.gradient_ratio(loss)
    log.close()
    told = "gradient ratio g: r 0.01 (0.01..0.01), c 0.35 (0.35..0.35), f 0.93 (0.50..1.00)\n"  # of 0.5, 0.9, 0.96, 1
    assert (tmp_path / "log.txt").read_text().endswith(told)


@pytest.mark.parametrize("fails", [False, True])
def test_a_warning_of_our_packages_is_said_once_in_terminal_and_log(
    make_config, cpu, tmp_path, monkeypatch, capsys, fails
):
    optimize, loggers = loop.optimize, [logging.getLogger("longshot")]

    def warning(run, *args, **options):
        if run.step == 1:
            logging.getLogger("longshot.losses.any").warning("%d classes look odd", 3)
            logging.getLogger("longshot.losses.any").info("nothing to see")
            logging.getLogger("somebody.else").warning("not ours")
        if run.step == 2 and fails:
            raise FloatingPointError
        return optimize(run, *args, **options)

    monkeypatch.setattr(loop, "optimize", warning)
    monkeypatch.setattr(logging.getLogger("longshot.losses.any"), "level", logging.INFO)
    before = [list(logger.handlers) for logger in loggers]
    try:
        train(make_config(tmp_path, {"schedule": {"length": 3}}), cpu)
    except FloatingPointError:
        assert fails
    written, log = capsys.readouterr(), (tmp_path / "log.txt").read_text()
    assert written.out.count("warning: 3 classes look odd\n") == log.count("warning: 3 classes look odd\n") == 1
    assert "look odd" not in written.err
    assert "nothing to see" not in log
    assert "not ours" not in log
    assert [logger.handlers for logger in loggers] == before


def test_the_log_ends_with_table_picture_and_where_to_look(learned):
    log = (learned / "log.txt").read_text()
    assert "train: 24 images, " in log
    assert "4 classes (rare 1, common 1, frequent 2, as the file says), in training images: green ring 1" in log
    end = log[log.rindex("lvis protocol (federated)") :]
    assert "APr " in end
    assert str(learned / "pictures" / "step_00000300.png") in end
    assert end.rstrip().endswith(f"tensorboard --logdir {learned}")


def test_a_run_learns_by_equalized_focal_loss(learned):
    result = json.loads((learned / "metrics.json").read_text())
    assert result["AP50"] > 85
    assert result["AP"] > 50
    assert result["APr"] > 5
    losses = [record["loss"] for record in records(learned)[:-1]]
    assert losses[-1] < losses[0] / 2


def test_a_run_learns_by_focal_loss(make_config, long_enough, cpu, tmp_path):
    config = make_config(tmp_path, {**long_enough, "loss": {"classification": {"name": "focal"}}})
    train(config, cpu)
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["AP50"] > 85
    assert result["AP"] > 50


def test_a_folder_that_holds_a_run_is_refused(make_config, cpu, learned, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in learned.rglob("*")}
    with pytest.raises(ConfigError, match=rf"{learned}: holds a run already; go on with it by --resume auto"):
        train(make_config(learned), cpu)
    (tmp_path / "config.yaml").write_text("seed: 0")  # a run that was killed before its first checkpoint
    with pytest.raises(ConfigError, match="holds a run already"):
        train(make_config(tmp_path), cpu)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(make_config(tmp_path), cpu, resume=str(learned / "checkpoints" / "best.pt"))
    assert {path: path.stat().st_mtime_ns for path in learned.rglob("*")} == before


# ------------------------------------------------------------------------------------------------------- kill and resume


@pytest.mark.parametrize("variant", ["focal", "efl-ema"])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6])
def test_a_run_killed_at_any_step_and_resumed_equals_the_uninterrupted_one(
    make_config, cpu, tmp_path, uninterrupted, variant, step
):
    config = make_config(tmp_path, VARIANTS[variant])
    with killed_at(loop, "optimize", call=step):
        train(config, cpu)
    train(config, cpu, resume="auto")
    assert_same_run(uninterrupted(variant), tmp_path)


@pytest.mark.parametrize("variant", ["efl-fp16-bn-worker", "focal-ema-adamw-worker"])
def test_so_it_does_with_workers_loss_scale_and_other_optimizers(make_config, cpu, tmp_path, uninterrupted, variant):
    config = make_config(tmp_path, VARIANTS[variant])
    with killed_at(loop, "optimize", call=4):
        train(config, cpu)
    train(config, cpu, resume="auto")
    assert_same_run(uninterrupted(variant), tmp_path)


def test_workers_change_nothing(make_config, cpu, tmp_path, uninterrupted):
    train(make_config(tmp_path, {**VARIANTS["efl-ema"], "data": {**VARIANTS["efl-ema"]["data"], "workers": 2}}), cpu)
    assert records(tmp_path) == records(uninterrupted("efl-ema"))


@pytest.mark.parametrize(
    ("owner", "name", "before"),
    [
        (loop, "optimize", False),  # a step done, nothing recorded
        (run_folder, "save_checkpoint", True),
        (run_folder, "save_checkpoint", False),
        (run_folder, "prune", False),
        (Evaluation, "run", True),  # between the checkpoint and the evaluation of the same step
        (run_folder, "mark_best", True),
        (RunLog, "evaluation", True),  # the evaluation done, not recorded
        (RunLog, "evaluation", False),
        (run_folder, "conclude", True),
    ],
)
def test_a_run_killed_between_the_files_that_it_writes_goes_on(
    make_config, cpu, tmp_path, uninterrupted, owner, name, before
):
    config = make_config(tmp_path, VARIANTS["efl-ema"])
    with killed_at(owner, name, before=before):
        train(config, cpu)
    train(config, cpu, resume="auto")
    assert_same_run(uninterrupted("efl-ema"), tmp_path)
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt")["step"] == 6


def test_a_run_can_be_killed_again_and_again(make_config, cpu, tmp_path, uninterrupted):
    config = make_config(tmp_path, VARIANTS["efl-ema"])
    for _ in range(2):
        with killed_at(loop, "optimize", call=4):
            train(config, cpu, resume="auto")  # which also starts a run
    train(config, cpu, resume="auto")
    train(config, cpu, resume="auto")  # finished already: nothing to do
    assert_same_run(uninterrupted("efl-ema"), tmp_path)


def test_a_process_killed_while_it_writes_a_checkpoint_goes_on(make_config, cpu, tmp_path, uninterrupted):
    config = make_config(tmp_path, VARIANTS["focal"])
    script = (
        "import json, os, signal, sys, torch; from longshot.detector.checkpoint import file as checkpoint; from longshot.detector.config.schema import parse_config;"
        "from longshot.detector.system.distributed import process_group; from longshot.detector.run.loop import train;"
        "from pathlib import Path; config = parse_config(json.loads(sys.argv[1])); torch.set_num_threads(1);"
        "fsync, fourth = os.fsync, lambda: list(Path(config.output, 'checkpoints').glob('step_00000004.pt.*.tmp'));"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL) if fourth() else fsync(file)\n"
        "with process_group('cpu') as process: train(config, process)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, config.model_dump_json()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left[0] == "step_00000002.pt"
    assert left[1].startswith("step_00000004.pt.")
    assert left[1].endswith(".tmp")
    train(config, cpu, resume="auto")
    assert_same_run(uninterrupted("focal"), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


def test_a_truncated_checkpoint_falls_back_to_the_one_before(make_config, cpu, tmp_path, uninterrupted, capsys):
    config = make_config(tmp_path, VARIANTS["efl-ema"])
    with killed_at(loop, "optimize", call=6):
        train(config, cpu)
    path = step_path(tmp_path / "checkpoints", 4)
    path.write_bytes(path.read_bytes()[:1000])
    train(config, cpu, resume="auto")
    assert f"warning: {path}: truncated: it ends after 1,000 bytes" in capsys.readouterr().out
    assert_same_run(uninterrupted("efl-ema"), tmp_path)


def test_no_readable_checkpoint_at_all_is_an_error(make_config, cpu, tmp_path):
    config = make_config(tmp_path, {"schedule": {"length": 4}})
    train(config, cpu)
    for path in saved_steps(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoints: none of its 2 checkpoints can be read"):
        train(config, cpu, resume="auto")


def test_resuming_from_an_earlier_checkpoint_removes_what_came_later(make_config, cpu, tmp_path, uninterrupted):
    config = make_config(tmp_path, {**VARIANTS["focal"], "train": {"keep_checkpoints": 3}})
    train(config, cpu)
    second = step_path(tmp_path / "checkpoints", 2)
    with killed_at(loop, "optimize", call=1):
        train(config, cpu, resume=str(second))
    assert list((tmp_path / "checkpoints").iterdir()) == [second]
    assert [record["step"] for record in records(tmp_path)] == [1, 2]
    log = (tmp_path / "log.txt").read_text()
    assert f"warning: removed {step_path(tmp_path / 'checkpoints', 6)}, since the run goes on from step 2" in log
    train(config, cpu, resume="auto")
    assert records(tmp_path) == records(uninterrupted("focal"))


def test_a_checkpoint_of_another_folder_can_be_gone_on_from(make_config, cpu, tmp_path, uninterrupted):
    with killed_at(loop, "optimize", call=5):
        train(make_config(tmp_path / "first", VARIANTS["efl-ema"]), cpu)
    start = step_path(tmp_path / "first" / "checkpoints", 4)
    train(make_config(tmp_path / "second", VARIANTS["efl-ema"]), cpu, resume=str(start))
    assert start.exists()
    whole = [record for record in records(uninterrupted("efl-ema")) if record["step"] > 4]
    assert records(tmp_path / "second") == whole


def test_a_finished_run_can_be_made_longer_or_shorter(make_config, cpu, tmp_path):
    train(make_config(tmp_path, {"schedule": {"length": 4}}), cpu)
    train(make_config(tmp_path, {"schedule": {"length": 6}}), cpu, resume="auto")
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4, 4, 5, 6, 6]
    train(make_config(tmp_path, {"schedule": {"length": 3}}), cpu, resume="auto")
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4, 4, 5, 6, 6]


def test_a_run_that_turns_out_to_be_long_enough_is_evaluated(make_config, cpu, tmp_path):
    with killed_at(loop, "optimize", call=5):
        train(make_config(tmp_path), cpu)
    train(make_config(tmp_path, {"schedule": {"length": 3}}), cpu, resume="auto")
    assert [(r["step"], r["kind"]) for r in records(tmp_path)][-1] == (4, "evaluation")


# ----------------------------------------------------------------------------------- starting from a run with another loss

# The old run, the loss of the new one, what the log says was taken.
CHANGES_OF_LOSS = [
    (
        "efl-ema", "focal",
        "averaged weights of step 6 of a run with equalized_focal; its loss state (positive_gradient, negative_gradient) "
        "is dropped, the loss of this run starts anew",
    ),
    (
        "efl-fp16-bn-worker", "equalized_focal",
        "weights of step 6 of a run with equalized_focal; its loss state (positive_gradient, negative_gradient) is "
        "dropped, the loss of this run starts anew",
    ),
    ("focal", "equalized_focal", "weights of step 6 of a run with focal"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "told"), CHANGES_OF_LOSS)
def test_a_run_starts_from_the_weights_of_a_run_with_another_loss(
    make_config, cpu, tmp_path, uninterrupted, monkeypatch, capsys, old, new, told
):
    checkpoint = step_path(uninterrupted(old) / "checkpoints", 6)
    at_start, optimize = {}, loop.optimize

    def watched(run, *args, **options):
        if run.step == 0:
            at_start.update(deepcopy(run.state_dict()))
        return optimize(run, *args, **options)

    monkeypatch.setattr(loop, "optimize", watched)
    differences = {"init_from": str(checkpoint), "seed": 5, "loss": {"classification": {"name": new}}}
    capsys.readouterr()
    train(make_config(tmp_path, {"model": VARIANTS[old].get("model", {}), **differences}), cpu)
    assert_same(dict(at_start["model"]), dict(network_weights(load_checkpoint(checkpoint))))
    assert not any(sums.any() for sums in at_start["criterion"].values())
    line = f"init_from {checkpoint}: {told}\n"
    assert capsys.readouterr().out.count(line) == 1
    assert (tmp_path / "log.txt").read_text().count(line) == 1
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4, 5, 6, 6]
    sums = newest(tmp_path)["criterion"].values()
    assert len(sums) == (2 if new == "equalized_focal" else 0)
    assert all((s > 0).all() for s in sums)


def test_such_a_run_is_resumed_without_the_file_that_it_started_from(make_config, cpu, tmp_path, uninterrupted):
    start = tmp_path / "start.pt"
    start.write_bytes(step_path(uninterrupted("focal") / "checkpoints", 6).read_bytes())
    differences = {**VARIANTS["efl-ema"], "init_from": str(start)}
    train(make_config(tmp_path / "whole", differences), cpu)
    with killed_at(loop, "optimize", call=4):
        train(make_config(tmp_path / "killed", differences), cpu)
    start.unlink()
    train(make_config(tmp_path / "killed", differences), cpu, resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


# ------------------------------------------------------------------------------------------------- the best of evaluations


def test_the_best_evaluation_keeps_its_checkpoint_whatever_is_pruned(make_config, cpu, tmp_path, monkeypatch):
    evaluate, values = Evaluation.run, iter([1.0, 3.0, None, 2.0])
    monkeypatch.setattr(Evaluation, "run", lambda self, network: {**evaluate(self, network), "APr": next(values)})
    config = make_config(
        tmp_path,
        {
            "schedule": {"length": 7},
            "train": {"checkpoint_every": 5, "keep_checkpoints": 1},
            "eval": {"every": 2, "best_metric": "APr"},
        },
    )
    train(config, cpu)
    assert [(r["step"], r["APr"]) for r in records(tmp_path) if r["kind"] == "evaluation"] == [
        (2, 1.0), (4, 3.0), (6, None), (7, 2.0)
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.pt", "step_00000007.pt"]
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt")["step"] == 4


# ---------------------------------------------------------------------------------------------------------------- errors


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_its_checkpoints(make_config, cpu, tmp_path, monkeypatch):
    config = make_config(tmp_path, VARIANTS["efl-ema"])
    optimize = loop.optimize

    def diverging(run, *args, **options):
        if run.step == 4:
            torch.nn.init.constant_(run.network.head.deltas.bias, float("nan"))
        return optimize(run, *args, **options)

    monkeypatch.setattr(loop, "optimize", diverging)
    with pytest.raises(FloatingPointError, match=r"step 4: loss .*'box': nan"):
        train(config, cpu)
    assert saved_steps(tmp_path / "checkpoints") == [step_path(tmp_path / "checkpoints", s) for s in (2, 4)]
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4]


def test_a_changed_configuration_is_told(make_config, cpu, tmp_path):
    train(make_config(tmp_path, {"schedule": {"length": 2}}), cpu)
    train(make_config(tmp_path, {"optimizer": {"weight_decay": 0.5}}), cpu, resume="auto")
    log = (tmp_path / "log.txt").read_text()
    assert "warning: resumed with a changed configuration: optimizer.weight_decay: 0.0001 -> 0.5" in log
    assert "warning: resumed with a changed configuration: schedule.length: 2.0 -> 6.0" in log
    assert log.count("resumed with a changed configuration") == 2
    groups = newest(tmp_path)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5}


@pytest.mark.parametrize(
    ("differences", "told"),
    [
        ({"model": {"fpn": {"channels": 24}}}, r"model.fpn.channels: 16 -> 24; .*size mismatch"),
        ({"model": {"head": {"num_convs": 2}}}, r"model.head.num_convs: 1 -> 2; .*Missing key"),
        ({"model": {"backbone": {"frozen_stages": 2}}}, r"model.backbone.frozen_stages: 0 -> 2; "),
        (
            {"loss": {"classification": {"name": "focal"}}},
            r"loss.classification.name: equalized_focal -> focal; .*Unexpected key",
        ),
        ({"optimizer": {"name": "adamw"}}, r"optimizer.name: sgd -> adamw"),
    ],
)
def test_a_checkpoint_of_another_model_is_a_clear_error(make_config, cpu, tmp_path, learned_little, differences, told):
    with pytest.raises(
        CheckpointError,
        match=rf"--resume: the checkpoint is of another model, loss or optimizer \(init_from takes the weights alone\): .*{told}",
    ) as error:
        train(make_config(tmp_path, differences), cpu, resume=str(learned_little))
    assert len(str(error.value)) < 1000
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_optimizer_is_refused_though_torch_would_take_it(make_config, cpu, tmp_path):
    train(make_config(tmp_path, {"schedule": {"length": 2}, "optimizer": {"name": "adamw"}}), cpu)
    with pytest.raises(CheckpointError, match=r"another model, loss or optimizer .*: optimizer.name: adamw -> sgd"):
        train(make_config(tmp_path), cpu, resume="auto")


@pytest.fixture(scope="module")
def learned_little(make_config, cpu, tmp_path_factory):
    """The checkpoint of step 2 of `values`."""
    folder = tmp_path_factory.mktemp("little")
    train(make_config(folder, {"schedule": {"length": 2}}), cpu)
    return step_path(folder / "checkpoints", 2)


def test_a_checkpoint_with_other_classes_names_them(make_config, cpu, tmp_path, shapes, learned_little):
    for name in ("train", "val"):
        content = json.loads((shapes.folder / f"{name}.json").read_text())
        for category in content["categories"]:
            category["name"] = {"yellow disc": "sun"}.get(category["name"], category["name"])
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    other = {name: {"annotations": str(tmp_path / f"{name}.json")} for name in ("train", "val")}
    with pytest.raises(DataError, match=r"1 differ: id 12: 'sun' here, 'yellow disc' there"):
        train(make_config(tmp_path / "run", {"data": other}), cpu, resume=str(learned_little))
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_checkpoint_of_a_run_is_told(make_config, cpu, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"found format None, expected 'longshot 1'.* set init_from"):
        train(make_config(tmp_path / "run"), cpu, resume=str(tmp_path / "weights.pt"))
    with pytest.raises(CheckpointError, match=r"nothing.pt: no such checkpoint"):
        train(make_config(tmp_path / "run"), cpu, resume=str(tmp_path / "nothing.pt"))


def test_batch_norm_over_several_passes_is_warned_of(make_config, cpu, tmp_path):
    different = {"schedule": {"length": 1}, "model": {"backbone": {"norm": "bn"}}}
    train(make_config(tmp_path / "a", {**different, "train": {"images_per_pass": 2}}), cpu)
    assert (
        "warning: model.backbone.norm bn takes its statistics from 2 images at a time"
        in (tmp_path / "a/log.txt").read_text()
    )
    train(make_config(tmp_path / "b", different), cpu)
    assert "takes its statistics" not in (tmp_path / "b/log.txt").read_text()
