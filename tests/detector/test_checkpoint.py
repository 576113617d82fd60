import argparse
import os
from random import Random

import pytest
import torch

from detector.checkpoint import (
    CheckpointError,
    discard_later,
    load_checkpoint,
    mark_best,
    network_weights,
    prune,
    save_checkpoint,
    saved_steps,
    step_path,
)

CONTENT = {"step": 3, "model": {"w": torch.arange(6.0).view(2, 3)}, "ema": None, "names": ["a", "b"], "lr": 0.1}


class Spy:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_steps(folder, *steps):
    for step in steps:
        save_checkpoint(step_path(folder, step), {"step": step})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_loaded(tmp_path):
    path = tmp_path / "new folder" / "a.pt"
    save_checkpoint(path, CONTENT)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["model"].pop("w"), CONTENT["model"]["w"])
    assert loaded == {**CONTENT, "model": {}}
    assert names(path.parent) == ["a.pt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"step": 2, "bad": lambda: 0})
    assert load_checkpoint(path) == {"step": 1}
    assert names(tmp_path) == ["a.pt"]


def test_nobody_sees_a_file_before_it_is_whole_and_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), seen.append((path.exists(), os.fstat(file).st_size))))
    save_checkpoint(path, CONTENT)
    assert seen == [(False, path.stat().st_size)]


def test_a_malicious_file_is_refused_and_not_executed(tmp_path):
    torch.save({"model": Spy(tmp_path / "was here")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "was here").exists()
    assert f"{tmp_path / 'evil.pt'}: refused: it holds posix.mkdir" in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's own text tells how to run it


def test_objects_of_other_programs_are_refused_by_name(tmp_path):
    torch.save({"args": argparse.Namespace(lr=1)}, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"it holds argparse.Namespace, .* expected tensors and plain values only"
    ):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("part", [0, 1, 100, 0.1, 0.5, 0.9, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_told_by_its_path(tmp_path, part, zipped):
    path = tmp_path / "a.pt"
    torch.save({**CONTENT, "model": {f"w{i}": torch.rand(9, 9) for i in range(9)}}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole)) if 0 < part < 1 else part])
    with pytest.raises(CheckpointError, match=f"^{path}: not a readable checkpoint; is it truncated"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_damage_leads_to_any_other_error(tmp_path):
    path, random = tmp_path / "a.pt", Random(0)
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    refused = 0
    for i in range(400):
        damaged = bytearray(whole if i % 2 else random.randbytes(200))
        for _ in range(3):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 250  # torch does not notice a flipped bit in the numbers


@pytest.mark.parametrize("content", [b"hello world\n", b"\x89PNG\r\n\x1a\n", b"{}", b"PK\x03\x04....", bytes(5000)])
def test_a_foreign_file_is_told_by_its_path(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_missing_file_and_a_lone_tensor_are_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"a.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "a.pt")
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt: expected a dictionary, found Tensor"):
        load_checkpoint(tmp_path / "a.pt")


def test_steps_are_listed_in_order_and_nothing_else(tmp_path):
    save_steps(tmp_path, 200, 30, 1)
    for other in ("best.pt", "step_00000007.pt.123.tmp", "step_7.pt", "notes.txt"):
        (tmp_path / other).write_text("")
    assert saved_steps(tmp_path) == [step_path(tmp_path, step) for step in (1, 30, 200)]
    assert saved_steps(tmp_path / "missing") == []


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    save_steps(tmp_path, 1, 2)
    mark_best(step_path(tmp_path, 2))
    save_steps(tmp_path, 3, 4)
    prune(tmp_path, 2)
    assert names(tmp_path) == ["best.pt", "step_00000003.pt", "step_00000004.pt"]
    assert load_checkpoint(tmp_path / "best.pt") == {"step": 2}


def test_pruning_removes_what_killed_writers_left(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "step_00000002.pt.77.tmp").write_bytes(b"half")
    prune(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001.pt"]


def test_the_best_is_replaced_by_a_better_one_and_not_by_a_rewritten_step(tmp_path):
    save_steps(tmp_path, 1, 2)
    mark_best(step_path(tmp_path, 1))
    save_checkpoint(step_path(tmp_path, 1), {"step": "written anew"})
    assert load_checkpoint(tmp_path / "best.pt") == {"step": 1}
    mark_best(step_path(tmp_path, 2))
    assert load_checkpoint(tmp_path / "best.pt") == {"step": 2}


def test_the_best_costs_no_space_or_is_copied_where_links_do_not_work(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)
    mark_best(step_path(tmp_path, 1))
    assert (tmp_path / "best.pt").samefile(step_path(tmp_path, 1))

    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    mark_best(step_path(tmp_path, 1))
    assert not (tmp_path / "best.pt").samefile(step_path(tmp_path, 1))
    assert load_checkpoint(tmp_path / "best.pt") == {"step": 1}


def test_later_steps_are_discarded(tmp_path):
    save_steps(tmp_path, 9, 10, 11, 100)
    assert discard_later(tmp_path, 10) == [step_path(tmp_path, 11), step_path(tmp_path, 100)]
    assert names(tmp_path) == ["step_00000009.pt", "step_00000010.pt"]


@pytest.mark.parametrize(("best", "stays"), [(9, True), (10, True), (11, False)])
def test_the_best_is_discarded_if_it_is_later(tmp_path, best, stays):
    save_steps(tmp_path, 9, 10, 11)
    mark_best(step_path(tmp_path, best))
    discard_later(tmp_path, 10)
    assert (tmp_path / "best.pt").exists() == stays
    (tmp_path / "best.pt").write_bytes(b"cannot be read")
    discard_later(tmp_path, 10)
    assert (tmp_path / "best.pt").exists()


def test_averaged_weights_are_preferred():
    weights, averaged = {"a": torch.zeros(2)}, {"n_averaged": torch.tensor(5), "module.a": torch.ones(2)}
    assert network_weights({"model": weights, "ema": averaged})["a"].tolist() == [1, 1]
    assert network_weights({"model": weights, "ema": averaged}).keys() == {"a"}
    assert network_weights({"model": weights, "ema": None}) is weights
