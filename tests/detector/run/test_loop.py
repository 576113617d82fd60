"""The order of what the training loop does."""

import json
from pathlib import Path

import pytest
import yaml

from longshot.detector.build import Schedule
from longshot.detector.errors import ConfigError
from longshot.detector.inference import load_model, predict
from longshot.detector.run import loop, train_detector
from longshot.detector.run.lifecycle import Session


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (
            3,
            "step 1, step 2, save, step 3, save, evaluate, step 4, save, step 5, step 6, save, evaluate, step 7, save, evaluate",
        ),
        (None, "step 1, step 2, save, step 3, step 4, save, step 5, step 6, save, step 7, save, evaluate"),
    ],
)
def test_what_is_evaluated_is_saved_first_and_the_end_always_is(
    make_config, cpu, tmp_path, monkeypatch, every, expected
):
    events, optimize = [], loop.optimize

    def step(run, *args, **options):
        assert run.network.training
        events.append(f"step {run.step + 1}")
        return optimize(run, *args, **options)

    def evaluate(session):
        events.append("evaluate")
        session.run.network.eval()

    monkeypatch.setattr(loop, "optimize", step)
    monkeypatch.setattr(Session, "save", lambda session: events.append("save"))
    monkeypatch.setattr(Session, "evaluate", evaluate)
    loop.train(make_config(tmp_path, {"schedule": {"length": 7}, "eval": {"every": every}}), cpu)
    assert ", ".join(events) == expected


def test_every_step_has_the_learning_rate_of_the_schedule(make_config, cpu, tmp_path, monkeypatch):
    rates, optimize = [], loop.optimize

    def step(run, *args, **options):
        rates.append((run.step, {group["lr"] for group in run.optimizer.param_groups}))
        return optimize(run, *args, **options)

    monkeypatch.setattr(loop, "optimize", step)
    schedule = {"name": "multi_step", "length": 4, "milestones": [2], "factor": 0.5, "warmup_steps": 0}
    loop.train(make_config(tmp_path, {"schedule": schedule}), cpu)
    assert rates == [(0, {0.02}), (1, {0.02}), (2, {0.01}), (3, {0.01})]


def test_the_last_of_evenly_spread_evaluations_is_that_of_the_end():
    def due(total, every):
        schedule = Schedule(total, 1, every, lambda step: 0.1)
        return [step for step in range(1, total + 1) if schedule.evaluates_after(step)]

    # 24 epochs of 277.375 steps, rounded to 6,657 steps; every six epochs.
    assert due(6657, 6 * 277.375) == [1665, 3329, 4993, 6657]
    assert due(7, 2) == [2, 4, 6, 7]
    assert due(4, None) == [4]


def test_training_is_a_call_from_python_too(values, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({key: value for key, value in values.items() if key != "output"})
    )
    folder = train_detector(tmp_path / "mine.yaml", [f"output={tmp_path / 'run'}", "schedule.length=2"])
    assert folder == tmp_path / "run"
    assert json.loads((folder / "metrics.json").read_text())["step"] == 2
    image = next(Path(values["data"]["val"]["images"]).glob("val_*.png"))
    (found,) = predict(load_model(folder / "checkpoints" / "best.pt"), [image])
    assert found.boxes.shape[1] == 4
    with pytest.raises(ConfigError, match="holds a run already"):
        train_detector(tmp_path / "mine.yaml", [f"output={folder}"])


def test_a_configuration_that_is_read_already_takes_no_overrides(make_config, tmp_path):
    with pytest.raises(TypeError, match="change the Config itself"):
        train_detector(make_config(tmp_path), ["seed=1"])
