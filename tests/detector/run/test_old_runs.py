"""A run folder that Longshot wrote before it was a package: its checkpoint loads, predicts and goes on.

tests/fixtures/old_run was written at 2a0f35d (torch 2.14, one thread, x86-64): a run of 6 steps on the shapes of
tests/conftest.py, from a detector whose trunk has weights of one size and is frozen, with the moving average, killed in its
fifth step. expected.json has what the same code came to when it went on.
"""

import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from longshot.detector.checkpoint.file import load_checkpoint
from longshot.detector.checkpoint.folder import step_path
from longshot.detector.config.schema import load_config
from longshot.detector.inference import load_model, predict
from longshot.detector.run.loop import train

OLD = Path(__file__).parents[2] / "fixtures" / "old_run"


@pytest.fixture
def old(shapes, tmp_path, monkeypatch):
    """The folder of an old run beside its images, in the working directory."""
    shutil.copytree(shapes.folder, tmp_path / "shapes")
    monkeypatch.chdir(tmp_path / "shapes")
    folder = Path("run")
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "environment.json"):
        shutil.copy(OLD / name, folder / name)
    step_path(folder / "checkpoints", 4).write_bytes(lzma.decompress((OLD / "step_00000004.pt.xz").read_bytes()))
    return folder


def test_an_old_checkpoint_predicts(old):
    model = load_model(step_path(old / "checkpoints", 4))
    assert model.classes.names == ["red square", "green ring", "yellow disc", "blue bar"]
    (found,) = predict(model, ["val_1.png"])
    assert len(found.boxes) == len(found.scores) > 0
    assert np.isfinite(found.scores).all()


def test_an_old_run_goes_on_as_it_would_have(old, cpu):
    expected = json.loads((OLD / "expected.json").read_text())
    assert train(load_config(old / "config.yaml"), cpu, "auto")
    end = load_checkpoint(step_path(old / "checkpoints", 6))
    sums = {key: end["model"][key].double().abs().sum().item() for key in expected["weights"]}
    assert sums == pytest.approx(expected["weights"], rel=1e-5, abs=1e-8)
    for name, values in expected["criterion"].items():
        torch.testing.assert_close(end["criterion"][name].tolist(), values, rtol=1e-4, atol=1e-6)
    records = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    losses = [record.get("loss") for record in records]
    assert [loss is None for loss in losses] == [loss is None for loss in expected["losses"]]
    assert losses[:6] == pytest.approx(expected["losses"][:6], rel=1e-5)
    assert "changed configuration" not in (old / "log.txt").read_text()
