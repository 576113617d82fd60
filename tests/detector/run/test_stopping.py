"""Runs that are asked to stop, and go on by the same command."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from longshot.detector.checkpoint import file as checkpoint
from longshot.detector.checkpoint.folder import saved_steps, step_path
from longshot.detector.errors import CheckpointError, ConfigError, readable_errors
from longshot.detector.run import folder as run_folder
from longshot.detector.run import loop
from longshot.detector.run import resume as resuming
from longshot.detector.run.lifecycle import Session
from longshot.detector.run.loop import train
from longshot.detector.run.resume import what_to_resume
from longshot.detector.system.files import write_text
from longshot.detector.system.stopping import SIGNALS, StopRequest, stop_on_signals
from longshot.tools.checks.soak import compare

EFL_EMA = {"train": {"ema_decay": 0.9}}


@pytest.fixture
def asked_in(monkeypatch):
    """(step, signal): this process gets the signal while it is in that step."""

    def ask(step, number=signal.SIGTERM):
        optimize = loop.optimize

        def asked(run, *args, **options):
            if run.step + 1 == step:
                os.kill(os.getpid(), number)
            return optimize(run, *args, **options)

        monkeypatch.setattr(loop, "optimize", asked)

    return ask


@pytest.fixture
def broken_disk(monkeypatch):
    """(steps): checkpoints of these steps cannot be written, the given number of times."""

    def break_it(**times):
        write = checkpoint._write

        def full(path, content):
            name = f"step_{content['step']}"
            if times.get(name, 0):
                times[name] -= 1
                raise OSError(28, "No space left on device")
            return write(path, content)

        monkeypatch.setattr(checkpoint, "_write", full)

    return break_it


def differences(ours, theirs):
    """What differs between the last checkpoints, logs and metrics of two runs."""
    return [part for part in compare(ours, theirs) if part.different]


def steps(folder):
    return [int(path.stem[-8:]) for path in saved_steps(folder / "checkpoints")]


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 6)])
def test_a_run_that_is_asked_to_stop_saves_and_the_same_call_goes_on(
    make_config, cpu, tmp_path, asked_in, monkeypatch, number, step
):
    assert train(make_config(tmp_path / "whole", EFL_EMA), cpu) is True
    config = make_config(tmp_path / "run", EFL_EMA)
    with monkeypatch.context():
        asked_in(step, number)
        assert train(config, cpu) is False
    marker = json.loads((tmp_path / "run" / "preempted.json").read_text())
    assert (marker["step"], marker["signal"]) == (step, number.name)
    assert steps(tmp_path / "run") == [2, 3] if step == 3 else [4, 6]
    assert not (tmp_path / "run" / "metrics.json").exists(), "evaluating may take longer than there is time"
    monkeypatch.undo()
    assert train(config, cpu) is True
    assert not (tmp_path / "run" / "preempted.json").exists()
    assert not differences(tmp_path / "run", tmp_path / "whole")


def test_a_second_signal_does_not_come_between_the_checkpoint_and_the_marker(
    make_config, cpu, tmp_path, asked_in, monkeypatch
):
    finish = Session.finish

    def signalled(session):
        finish(session)
        os.kill(os.getpid(), signal.SIGUSR1)

    def marked(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        mark(*args)

    mark = resuming.mark_stopped
    monkeypatch.setattr(Session, "finish", signalled)
    monkeypatch.setattr(resuming, "mark_stopped", marked)
    asked_in(3)
    assert train(make_config(tmp_path), cpu) is False
    assert json.loads((tmp_path / "preempted.json").read_text())["step"] == 3


def test_signals_end_the_process_as_before_when_the_run_is_over():
    before, stop = [signal.getsignal(number) for number in SIGNALS], StopRequest()
    with stop_on_signals(stop):
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (stop.requested, stop.signal, stop.agreed) == (True, "SIGUSR1", False)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_processes_that_read_images_outlive_the_signal_that_a_batch_system_sends_to_all(
    make_config, cpu, tmp_path, monkeypatch, number
):
    optimize, hit = loop.optimize, []

    def signalled(run, *args, **options):
        if run.step == 1:
            hit.extend(multiprocessing.active_children())
            for child in hit:
                os.kill(child.pid, number)
        return optimize(run, *args, **options)

    monkeypatch.setattr(loop, "optimize", signalled)
    assert train(make_config(tmp_path, {"data": {"workers": 1}}), cpu)
    assert hit
    assert not any(child.is_alive() for child in hit)


def test_another_configuration_does_not_go_on_unasked(make_config, cpu, tmp_path, asked_in, monkeypatch):
    asked_in(1)
    train(make_config(tmp_path), cpu)
    monkeypatch.undo()
    different = make_config(tmp_path, {"optimizer": {"lr": 0.5}})
    with pytest.raises(ConfigError, match=r"holds a run already.*asked to stop.*: optimizer.lr: 0.02 -> 0.5"):
        train(different, cpu)
    assert (tmp_path / "preempted.json").exists()
    assert train(different, cpu, "auto")


def test_a_torchrun_job_that_was_killed_while_it_wrote_down_its_configuration_starts_again(
    make_config, cpu, tmp_path, monkeypatch
):
    # Both orders of the two files: what is written first must not make the folder that of another run.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    for written in (0, 1):
        folder, left = tmp_path / str(written), [written]

        def killed(path, text, left=left):
            if path.suffix in (".yaml", ".json"):
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
            write_text(path, text)

        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "write_text", killed)
            with pytest.raises(KeyboardInterrupt):
                train(make_config(folder), cpu)
        assert folder.exists()
        assert what_to_resume(folder, None, make_config(folder), "job 7") in (None, "auto")


def folder_of(tmp_path, config, job, *saved):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 0")
    (tmp_path / "environment.json").write_text(json.dumps([{"job": "an older one"}, {"job": job}]))
    for step in saved:
        step_path(tmp_path / "checkpoints", step).write_text("")
    return tmp_path, str(step_path(tmp_path / "checkpoints", 2))


@pytest.mark.parametrize("resume", [None, "auto", "elsewhere.pt", "inside"])
def test_a_torchrun_job_goes_on_with_what_it_began(make_config, tmp_path, resume):
    folder, inside = folder_of(tmp_path, None, "job 7", 2, 4)
    resume = inside if resume == "inside" else resume
    assert what_to_resume(folder, resume, make_config(tmp_path), "job 7") == "auto"


def test_a_torchrun_job_that_was_killed_before_its_first_checkpoint_starts_as_it_was_told(make_config, tmp_path):
    folder, _ = folder_of(tmp_path, None, "job 7")
    assert what_to_resume(folder, "elsewhere.pt", make_config(tmp_path), "job 7") == "elsewhere.pt"
    assert what_to_resume(folder, None, make_config(tmp_path), "job 7") == "auto"


@pytest.mark.parametrize("job", [None, "job 8", "an older one"])
def test_another_job_does_not_go_on_unasked(make_config, tmp_path, job):
    folder, inside = folder_of(tmp_path, None, "job 7", 2, 4)
    config = make_config(tmp_path)
    for resume in (None, "elsewhere.pt"):
        with pytest.raises(ConfigError, match="holds a run already; go on with it by --resume auto"):
            what_to_resume(folder, resume, config, job)
    assert what_to_resume(folder, "auto", config, job) == "auto"
    assert what_to_resume(folder, inside, config, job) == inside


def test_runs_without_a_job_are_not_the_same_job(make_config, tmp_path):
    folder, _ = folder_of(tmp_path, None, None, 2)
    with pytest.raises(ConfigError, match="holds a run already"):
        what_to_resume(folder, None, make_config(tmp_path), None)


def test_a_second_run_in_a_folder_is_refused_while_the_first_lives(make_config, cpu, tmp_path, monkeypatch):
    config, refused = make_config(tmp_path), []
    optimize = loop.optimize

    def twice(run, *args, **options):
        if run.step == 3:
            with pytest.raises(ConfigError, match=r"held by another run: process .* is alive") as error:
                train(config, cpu, "auto")
            refused.append(error)
        return optimize(run, *args, **options)

    monkeypatch.setattr(loop, "optimize", twice)
    train(config, cpu)
    assert len(refused) == 1
    assert not (tmp_path / "run.lock").exists()


def test_a_run_that_was_taken_over_stops_and_writes_nothing(make_config, cpu, tmp_path, monkeypatch):
    optimize, before = loop.optimize, {}

    def taken(run, *args, **options):
        if run.step == 2:
            (tmp_path / "run.lock").unlink()
            (tmp_path / "run.lock").write_text("somebody else")
            before.update({path.name: path.read_bytes() for path in tmp_path.glob("*.*") if path.name != "run.lock"})
        return optimize(run, *args, **options)

    monkeypatch.setattr(loop, "optimize", taken)
    with pytest.raises(ConfigError, match=r"taken over by .*; this process writes nothing more and stops"):
        train(make_config(tmp_path), cpu)
    after = {path.name: path.read_bytes() for path in tmp_path.glob("*.*") if path.name != "run.lock"}
    assert {name for name in before if not name.startswith("events")} <= after.keys()
    assert all(after[name] == before[name] for name in before if not name.startswith("events"))
    assert steps(tmp_path) == [2]


# ---------------------------------------------------------------------------------------------------------- a full disk


def test_training_goes_on_when_a_checkpoint_cannot_be_written(make_config, cpu, tmp_path, broken_disk):
    broken_disk(step_4=1)
    assert train(make_config(tmp_path), cpu)
    assert steps(tmp_path) == [2, 6]
    told = "warning: no checkpoint of step 4: "
    assert (tmp_path / "log.txt").read_text().count(told) == 1


def test_training_goes_on_when_an_older_checkpoint_cannot_be_removed(make_config, cpu, tmp_path, monkeypatch):
    unlink, times = Path.unlink, [1]

    def fail(path, missing_ok=False):
        if path.suffix == ".pt" and times[0]:
            times[0] -= 1
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", fail)
    assert train(make_config(tmp_path, {"train": {"keep_checkpoints": 1}}), cpu)
    assert steps(tmp_path) == [6], "the next one removes what has stayed"
    log = (tmp_path / "log.txt").read_text()
    assert "step_00000002.pt: cannot be removed: Permission denied; older checkpoints stay" in log
    assert "no checkpoint of step" not in log


def test_the_last_checkpoint_is_tried_again_when_all_else_is_done(make_config, cpu, tmp_path, broken_disk):
    broken_disk(step_6=1)
    assert train(make_config(tmp_path), cpu)
    assert steps(tmp_path) == [4, 6]
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 6


def test_a_run_whose_last_checkpoint_cannot_be_written_fails_and_can_be_gone_on_with(
    make_config, cpu, tmp_path, broken_disk, monkeypatch
):
    broken_disk(step_6=2)
    with pytest.raises(CheckpointError, match=r"step_00000006.pt: cannot be written: No space left on device"):
        train(make_config(tmp_path), cpu)
    assert steps(tmp_path) == [2, 4]
    monkeypatch.undo()
    assert train(make_config(tmp_path), cpu, "auto")
    assert steps(tmp_path) == [4, 6]


def test_a_run_that_is_asked_to_stop_and_cannot_save_does_not_claim_to_have(
    make_config, cpu, tmp_path, broken_disk, asked_in
):
    broken_disk(step_3=2)
    asked_in(3)
    with pytest.raises(CheckpointError, match="No space left"):
        train(make_config(tmp_path), cpu)
    assert not (tmp_path / "preempted.json").exists()
    assert steps(tmp_path) == [2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize("name", ["environment.json", "config.yaml"])
def test_a_disk_that_is_full_from_the_start_is_told_in_a_line(make_config, cpu, tmp_path, name):
    (tmp_path / f"{name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match=f"^error: {tmp_path / name}: No space left on device$"), readable_errors():
        train(make_config(tmp_path), cpu)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_logs_that_cannot_be_written_are_told_and_stop_nothing(make_config, cpu, tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    assert train(make_config(tmp_path), cpu)
    assert f"warning: {tmp_path}" in capsys.readouterr().out
    assert steps(tmp_path) == [4, 6]
