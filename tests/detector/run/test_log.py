import json
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from longshot.detector.run.log import RunLog
from longshot.losses import EqualizedFocalLoss

FREQUENCIES = ["f", "r", "f", "r", "f"]
NUMBERS = {"loss": 1.5, "classification": 1.0, "box": 0.5}


@pytest.fixture
def make_log(tmp_path):
    logs = []

    def make(step=0, log_every=1, enabled=True):
        logs.append(RunLog(tmp_path, step=step, frequencies=FREQUENCIES, log_every=log_every, enabled=enabled))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(log, first, total, *, classification=None, numbers=NUMBERS):
    for step, _ in enumerate(log.progress(range(first, total), first=first, total=total), start=first + 1):
        log.training(step, numbers, classification or nn.Identity())


def test_every_nth_step_is_recorded(make_log, tmp_path):
    log = make_log(log_every=3)
    train(log, 0, 8)
    found = records(tmp_path)
    assert [record["step"] for record in found] == [3, 6]
    assert {key: found[0][key] for key in ("kind", *NUMBERS)} == {"kind": "train", **NUMBERS}
    assert all(record["memory_gb"] > 0 for record in found)


def test_resuming_leaves_no_step_twice(make_log, tmp_path):
    log = make_log()
    train(log, 0, 4)
    log.evaluation(4, {"AP": 1.0})
    train(log, 4, 6)
    log = make_log(step=4)
    assert [(r["step"], r["kind"]) for r in records(tmp_path)] == [(s, "train") for s in (1, 2, 3, 4)] + [
        (4, "evaluation")
    ]
    train(log, 4, 5)
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4, 4, 5]
    make_log(step=0)
    assert records(tmp_path) == []


def test_half_a_line_of_a_killed_run_is_dropped(make_log, tmp_path):
    train(make_log(), 0, 2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "kind": "tr')
    log = make_log(step=2)
    train(log, 2, 3)
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3]


def test_evaluations_are_found_again_by_step(make_log):
    log = make_log()
    train(log, 0, 1)
    log.evaluation(1, {"AP": 12.5, "APr": None})
    assert make_log(step=1).evaluations() == {1: {"step": 1, "kind": "evaluation", "AP": 12.5, "APr": None}}


def test_numbers_that_json_cannot_hold_become_null(make_log, tmp_path):
    train(make_log(), 0, 1, numbers={**NUMBERS, "gradient_norm": math.inf, "box": math.nan})
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert [(r["gradient_norm"], r["box"]) for r in records(tmp_path)] == [(None, None)]


@pytest.fixture
def sleep(monkeypatch):
    """Moves the clock."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_times_are_those_of_data_and_step_and_of_nothing_else(make_log, tmp_path, sleep):
    def slow():
        for wait in (1, 2, 3, 4):
            sleep(wait)
            yield wait

    log = make_log(log_every=2)
    for step, wait in enumerate(log.progress(slow(), first=0, total=4), start=1):
        sleep(10 * wait)
        log.training(step, NUMBERS, nn.Identity())
        sleep(1000)  # an evaluation
    assert [(r["data_seconds"], r["step_seconds"]) for r in records(tmp_path)] == [(1.5, 15), (3.5, 35)]


def test_the_first_record_of_a_resumed_run_is_a_mean_over_its_own_steps(make_log, tmp_path, sleep):
    log = make_log(step=3, log_every=4)
    for _ in log.progress(range(1), first=3, total=4):
        sleep(10)
        log.training(4, NUMBERS, nn.Identity())
    assert records(tmp_path)[0]["step_seconds"] == 10


def test_gradient_ratio_is_told_by_group(make_log, tmp_path):
    loss = EqualizedFocalLoss(5)
    loss.positive_gradient += torch.tensor([1.0, 2, 3, 4, 6])
    loss.negative_gradient += 8
    train(make_log(), 0, 1, classification=loss)
    (record,) = records(tmp_path)
    ratios = {key.removeprefix("gradient_ratio/"): v for key, v in record.items() if key.startswith("gradient_ratio")}
    assert (ratios["r/min"], ratios["r/max"]) == pytest.approx((0.25, 0.5))
    assert ratios["r/median"] == pytest.approx(0.375)
    assert ratios["f/median"] == pytest.approx(0.375)
    assert ratios["f/q75"] == pytest.approx(4.5 / 8)
    assert len(ratios) == 10  # no class is common


def test_ranks_other_than_zero_write_nothing(make_log, tmp_path, capsys):
    log = make_log(enabled=False)
    train(log, 0, 2)
    log.write("hello")
    log.evaluation(2, {"AP": 1.0})
    log.picture(2, "a", np.zeros((2, 2, 3), np.uint8))
    assert log.evaluations() == {}
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_what_is_said_is_printed_and_kept(make_log, tmp_path, capsys):
    make_log().write("hello")
    make_log(step=3).write("again")
    assert capsys.readouterr().out == "hello\nagain\n"
    assert [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["hello", "again"]


def test_tensorboard_gets_scalars_and_pictures(make_log, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = make_log()
    train(log, 0, 2)
    log.evaluation(2, {"AP": 12.5, "APr": None})
    log.picture(2, "detections", np.zeros((2, 2, 3), np.uint8))
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.5), (2, 1.5)]
    assert [(e.step, e.value) for e in events.Scalars("evaluation/AP")] == [(2, 12.5)]
    assert "evaluation/APr" not in events.Tags()["scalars"]
    assert [e.step for e in events.Images("detections")] == [2]
    train(make_log(step=1), 1, 2)  # a resumed run: step 2 anew
    assert [e.step for e in EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")] == [1, 2]
