"""Training under torchrun with processes that are killed, and how tools/soak.py compares runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from longshot.detector.checkpoint.file import save_checkpoint
from longshot.detector.checkpoint.folder import step_path
from longshot.tools.checks.soak import Difference, compare, is_too_much, workers_of

TRAIN = Path(__file__).resolve().parents[2] / "tools" / "train.py"
OPTIONS = ["device=cpu", "train.checkpoint_every=5", "train.ema_decay=0.9", "data.workers=1"]


@pytest.fixture
def agents(tmp_path, free_port):
    """(arguments) -> two torchrun agents of one process each, as two machines would start them."""
    started, logs, port = [], [], free_port()

    def start(*arguments):
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            "--nproc-per-node=1",
            "--max-restarts=2",
        ]
        torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=one-job"]
        for node in range(2):
            logs.append(open(tmp_path / f"agent_{node}.log", "w"))  # noqa: SIM115
            command = [*torchrun, f"--rdzv-conf=is_host={int(node == 0)}", TRAIN, *arguments]
            started.append(
                subprocess.Popen(
                    list(map(str, command)), cwd=tmp_path, stdout=logs[-1], stderr=logs[-1],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )  # fmt: skip
        return started

    yield start
    for agent in started:
        agent.terminate()
    for agent, log in zip(started, logs, strict=True):
        agent.wait(60)
        log.close()


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_process_of_two_agents_that_is_killed_changes_nothing(agents, start, write_config, tmp_path):
    config = write_config(tmp_path)
    whole = start("train", "--config", config, "output=whole", *OPTIONS, cwd=tmp_path, processes=2)
    assert whole.code == 0, whole.err
    both, killed = agents("--config", config, "output=killed", *OPTIONS), tmp_path / "killed"
    end = time.monotonic() + 120
    while not step_path(killed / "checkpoints", 10).exists():
        assert time.monotonic() < end
        time.sleep(0.002)
    (victim,) = workers_of(both[1].pid)
    os.kill(victim, signal.SIGKILL)
    assert [agent.wait(120) for agent in both] == [0, 0], (tmp_path / "agent_1.log").read_text()[-3000:]
    begun = [entry["step"] for entry in json.loads((killed / "environment.json").read_text())]
    assert len(begun) == 2, "it was not killed"
    assert begun[1] >= 10
    assert not [part for part in compare(killed, tmp_path / "whole") if part.different]
    assert not (killed / "run.lock").exists()


def test_comparing_finds_what_differs(tmp_path):
    def leave(name, **changes):
        folder = tmp_path / name
        state = {"step": 2, "config": {"output": name}, "model": {"a": torch.ones(3), "b": torch.zeros(2)}, "ema": None}
        save_checkpoint(step_path(folder / "checkpoints", 2), state | changes.pop("state", {}))
        log = {"step": 1, "loss": 0.5, "step_seconds": changes.pop("seconds", 0.1)} | changes
        (folder / "metrics.jsonl").write_text(json.dumps(log) + "\n")
        (folder / "metrics.json").write_text(json.dumps({"AP": 1.0}))
        return folder

    def different(ours, theirs):
        return {part.part: part.different for part in compare(ours, theirs) if part.different}

    def relative(ours, theirs):
        return {part.part: part.relative for part in compare(ours, theirs) if part.different}

    first = leave("first")
    assert different(first, leave("same", seconds=7.0)) == {}
    assert sum(part.values for part in compare(first, first)) == 1 + 3 + 2 + 1 + 2 + 1
    weights = {"a": torch.tensor([1.0, 1.1, 1.0]), "b": torch.zeros(2)}
    assert different(first, leave("weights", state={"model": weights})) == {"model": 1}
    assert different(first, leave("missing", state={"model": {"a": torch.ones(3)}})) == {"model": 1}
    assert different(first, leave("step", state={"step": 3})) == {"step": 1}
    assert different(first, leave("loss", loss=0.6)) == {"log of steps": 1}
    # A difference of 0.1 among three ones and two zeros; of 0.1 and 0 to 0.5 and 1 in the log, whose step is no real number.
    assert relative(first, tmp_path / "weights")["model"] == pytest.approx(0.1 / 3**0.5)
    assert relative(first, tmp_path / "loss") == {"log of steps": pytest.approx(0.1 / 0.5)}
    assert relative(first, tmp_path / "step") == {"step": math.inf}
    assert relative(first, tmp_path / "missing") == {"model": math.inf}
    assert relative(first, leave("NaN", state={"model": {"a": torch.full((3,), math.nan), "b": torch.zeros(2)}}))


@pytest.mark.parametrize(
    ("part", "relative", "processes", "too_much"),
    [
        ("model", 1e-9, 2, True), ("model", 1e-9, 3, False), ("model", 2e-3, 3, True), ("criterion", 2e-3, 3, True),
        ("optimizer", 0.1, 3, False), ("step", math.inf, 3, True), ("model", math.nan, 3, True),
        ("log of steps", 0.1, 1, True),
    ],
)  # fmt: skip
def test_what_differs_is_too_much_beyond_rounding(part, relative, processes, too_much):
    assert is_too_much(Difference(part, 7, 1, relative), processes) is too_much
    assert not is_too_much(Difference(part, 7, 0, 0.0), processes)
