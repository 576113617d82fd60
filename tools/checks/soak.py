"""Killing the processes of a run at random moments, and comparing what it comes to with an undisturbed run."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from longshot.detector.checkpoint.file import load_checkpoint
from longshot.detector.checkpoint.folder import saved_steps
from longshot.detector.system.environment import progress_bar

MOMENTS = ("start", "step", "checkpoint", "evaluation")
STEPS_PER_KILL = 20
# Numbers of processes at which nothing may differ. The others sum gradients in an order that is not that of a run without
# restarts, since DDP arranges them anew after its first step.
EXACT = (1, 2)
TOLERANCE = 1e-3  # of weights, averages and EFL's state; momentum and AP follow single gradients and ranks
_JUDGED = ("model", "ema", "criterion")
_EVALUATE_EVERY = 10
_MEASURED = ("data_seconds", "step_seconds", "memory_gb")
_TRAIN = Path(__file__).parents[2] / "tools" / "train.py"


class Killed(NamedTuple):
    """What happened to a run."""

    kills: Counter  # by moment
    seconds: float
    code: int  # of torchrun


def write_config(folder: Path, steps: int, processes: int) -> Path:
    """A configuration with all the state that a run can have: EFL's, momentum, averages, a random sampler, passes."""
    batch_size = processes * math.ceil(4 / processes)
    # At 0.02, the rounding of one step is a percent of the loss fifteen steps later.
    rate = 0.02 if processes in EXACT else 0.0003
    values = {
        "data": {
            "generate": {"folder": str(folder / "data"), "categories": 10, "train_images": 60, "val_images": 16, "image_size": 64},
            "short_sides": [56, 64], "test_short_side": 64, "long_side": 64, "workers": 1,
            "sampler": {"name": "repeat_factor", "threshold": 0.5, "rounding": "stochastic"},
        },
        "model": {
            "backbone": {"name": "thin", "norm": "gn"},
            "fpn": {"channels": 16, "levels": 3},
            "head": {"num_convs": 1, "width": 16, "norm": "gn", "prior": 0.05},
            "anchors": {"base_size": 3.0, "ratios": [1.0], "scales": [1.0]},
        },
        "matching": {"matcher": {"name": "atss"}},
        "loss": {"classification": {"name": "equalized_focal"}, "box": {"name": "giou"}},
        "optimizer": {"lr": rate, "clip_norm": 10.0},
        "schedule": {"unit": "steps", "name": "cosine", "length": steps, "milestones": [], "warmup_steps": 10},
        "train": {"batch_size": batch_size, "images_per_pass": 1, "ema_decay": 0.99, "log_every": 1, "checkpoint_every": 5},
        "eval": {"every": _EVALUATE_EVERY, "batch_size": 4, "pictures": 0},
        "test": {"score_threshold": 0.0},
        "device": "cpu",
    }  # fmt: skip
    path = folder / "soak.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(config: Path, output: Path, *, processes: int, steps: int, kills: int = 0, seed: int = 0) -> Killed:
    """Train under torchrun, killing one of the processes `kills` times.

    Kills are spread over the steps; each is at one of MOMENTS, chosen at random: while the processes start, at any time in
    a step, as soon as a checkpoint is being written, and in an evaluation.
    """
    begin, dice, done = time.monotonic(), random.Random(seed), Counter()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--max-restarts={kills}"]
    command = [*torchrun, f"--nproc-per-node={processes}", str(_TRAIN), "--config", str(config), f"output={output}"]
    with open(output.with_suffix(".log"), "w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    bar = progress_bar(total=kills, desc="soak", unit="kill", disable=not kills)
    try:
        before: set[int] = set()
        while done.total() < kills:
            workers = _wait(job, lambda: len(new := workers_of(job.pid) - before) == processes and new)  # noqa: B023
            moment, earliest = dice.choice(MOMENTS), (done.total() + dice.random()) * steps / (kills + 1)
            if not workers or not _wait_for(moment, job, output, earliest, dice):
                break
            with suppress(ProcessLookupError):  # the run is over
                os.kill(dice.choice(sorted(workers)), signal.SIGKILL)
                done[moment] += 1
                bar.update()
            before = workers
        code = job.wait()
    finally:
        bar.close()
        job.kill()
    return Killed(done, time.monotonic() - begin, code)


def _wait_for(moment: str, job: subprocess.Popen, output: Path, earliest: float, dice: random.Random) -> bool:
    """Return at such a moment, at step `earliest` or later; False if the run is over before."""
    if moment == "start":
        return not _wait(job, lambda: False, seconds=dice.uniform(0, 6))
    checkpoints = output / "checkpoints"
    if not _wait(job, lambda: _last_step(output) >= earliest):
        return False
    if moment == "step":
        return not _wait(job, lambda: False, seconds=dice.uniform(0, 0.05))
    if moment == "checkpoint":
        return bool(_wait(job, lambda: next(checkpoints.glob("*.tmp"), None)))

    def evaluating() -> bool:  # what is evaluated was saved just before
        newest = max(saved_steps(checkpoints), default=None)
        step = int(newest.stem.removeprefix("step_")) if newest else 0
        return step > earliest and step % _EVALUATE_EVERY == 0 and step >= _last_step(output)

    return bool(_wait(job, evaluating)) and not _wait(job, lambda: False, seconds=dice.uniform(0, 0.2))


def _wait(job: subprocess.Popen, condition: Callable[[], Any], seconds: float = 600.0) -> Any:
    """What `condition` returns as soon as that is true; None when the job is over or the time is up."""
    end = time.monotonic() + seconds
    while job.poll() is None and time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.001)
    return None


def workers_of(torchrun: int) -> set[int]:
    """Ids of the processes that a torchrun has started to train."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children")
    found = set()
    for pid in children.read_text().split() if children.exists() else []:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # gone
            continue
        if str(_TRAIN).encode() in command:
            found.add(int(pid))
    return found


def _last_step(output: Path) -> int:
    path = output / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


class Difference(NamedTuple):
    """How a part of two runs differs."""

    part: str
    values: int
    different: int
    relative: float  # L2 norm of differences over that of values, if any; infinite where others than reals differ


def compare(ours: Path, theirs: Path) -> list[Difference]:
    """Every number of the last checkpoint and of the logs of two runs; what a clock measures is left out."""
    counts: dict[str, list[float]] = {}
    states = [load_checkpoint(saved_steps(folder / "checkpoints")[-1]) for folder in (ours, theirs)]
    for state in states:
        del state["config"]
    logs = [_log(folder) for folder in (ours, theirs)]
    both = [dict(_flat({**state, **log})) for state, log in zip(states, logs, strict=True)]
    for key in sorted(both[0].keys() | both[1].keys()):
        count = counts.setdefault(key.split("/")[0], [0, 0, 0.0, 0.0])
        for i, number in enumerate(_difference(both[0].get(key), both[1].get(key))):
            count[i] += number
    return [
        Difference(part, int(values), int(different), math.sqrt(squared / square) if square else squared)
        for part, (values, different, squared, square) in counts.items()
    ]


def is_too_much(difference: Difference, processes: int) -> bool:
    """Whether a part differs by more than rounding can explain: at all for one of EXACT; else by TOLERANCE, or by its kind."""
    if processes in EXACT:
        return difference.different > 0
    return not difference.relative <= (TOLERANCE if difference.part in _JUDGED else sys.float_info.max)  # nor NaN


def _log(folder: Path) -> dict:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [{k: v for k, v in record.items() if k not in _MEASURED} for record in records]
    return {"log of steps": records, "metrics": json.loads((folder / "metrics.json").read_text())}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield path, value
    for key, part in items or ():
        yield from _flat(part, f"{path}/{key}" if path else str(key))


def _difference(ours: Any, theirs: Any) -> tuple[int, int, float, float]:
    """Values, how many differ, and the sums of the squares of differences and of values."""
    if isinstance(ours, float) and isinstance(theirs, float):
        ours, theirs = torch.tensor([[ours], [theirs]], dtype=torch.float64)
    alike = isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor) and ours.shape == theirs.shape
    if not alike:
        differ = isinstance(ours, torch.Tensor) or isinstance(theirs, torch.Tensor) or ours != theirs
        return 1, int(differ), math.inf if differ else 0.0, 0.0
    different = int((ours != theirs).sum())
    if not ours.is_floating_point():
        return ours.numel(), different, math.inf if different else 0.0, 0.0
    ours, theirs = ours.double(), theirs.double()
    return ours.numel(), different, float((ours - theirs).square().sum()), float(ours.square().sum())
