import argparse
import errno
import os
import zipfile
from contextlib import suppress
from random import Random

import pytest
import torch

from longshot.detector.checkpoint import file as checkpoint
from longshot.detector.checkpoint.file import load_checkpoint, network_weights, save_checkpoint
from longshot.detector.checkpoint.folder import discard_later, mark_best, prune, saved_steps, step_path
from longshot.detector.errors import CheckpointError

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
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), seen.append((path.exists(), os.fstat(file)))))
    save_checkpoint(path, CONTENT)
    assert [exists for exists, _ in seen] == [False, True]
    assert seen[0][1].st_size == path.stat().st_size
    assert os.path.samestat(seen[1][1], tmp_path.stat())  # the folder, which holds the new name


@pytest.mark.parametrize(("moment", "newest"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2), (5, 2)])
def test_a_process_that_is_killed_at_any_moment_of_a_write_leaves_a_good_checkpoint(tmp_path, moment, newest):
    save_steps(tmp_path, 1)
    child = os.fork()
    if child == 0:  # killed before it syncs, renames, syncs the folder, removes the temporary name, removes the old one
        calls = []

        def until(call):
            def counted(*args, **options):
                if len(calls) == moment:
                    os._exit(9)
                calls.append(call)
                return call(*args, **options)

            return counted

        os.fsync, os.replace, os.unlink = until(os.fsync), until(os.replace), until(os.unlink)
        save_steps(tmp_path, 2)
        prune(tmp_path, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if moment < 5 else 0)
    assert load_checkpoint(saved_steps(tmp_path)[-1]) == {"step": newest}
    assert len(saved_steps(tmp_path)) == (2 if moment in (2, 3, 4) else 1)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint."""
    save_checkpoint(tmp_path / "a.pt", CONTENT)
    return tmp_path / "a.pt"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_flipped_bit_changes_what_is_loaded(saved):
    whole, random, refused = saved.read_bytes(), Random(1), 0
    with zipfile.ZipFile(saved) as archive:
        directory = archive.start_dir
    flips = [(position, random.randrange(8)) for position in range(directory)]
    flips += [(position, bit) for position in range(directory, len(whole)) for bit in range(8)]
    for position, bit in flips:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        saved.write_bytes(damaged)
        try:
            loaded = load_checkpoint(saved)
        except CheckpointError:
            refused += 1
        else:  # it was one that means nothing: between the parts, a time, a version
            assert equal(loaded, CONTENT), f"bit {bit} of byte {position}"
    assert refused > len(flips) / 2


def test_a_flipped_bit_in_the_numbers_says_what_to_do(saved):
    whole = saved.read_bytes()
    numbers = CONTENT["model"]["w"].numpy().tobytes()
    damaged = bytearray(whole)
    damaged[whole.index(numbers) + 1] ^= 4
    saved.write_bytes(damaged)
    with pytest.raises(
        CheckpointError, match=rf"^{saved}: damaged: bits of \S+ in it have changed.*Take the checkpoint"
    ):
        load_checkpoint(saved)


def equal(one, other):
    """Whether two contents are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


def test_a_checkpoint_is_a_file_of_torch_for_others_too(saved):
    assert torch.load(saved, weights_only=True, mmap=True)["step"] == 3
    assert zipfile.ZipFile(saved).testzip() is None


def test_a_file_of_torch_alone_and_one_with_a_comment_are_read(tmp_path):
    torch.save({"step": 4}, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt") == {"step": 4}
    with zipfile.ZipFile(tmp_path / "old.pt", "a") as archive:  # as checkpoints had them, with a SHA-256
        archive.comment = b"longshot sha256 " + b"0" * 64
    assert load_checkpoint(tmp_path / "old.pt") == {"step": 4}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize("size", [2, 500])  # the error comes when the file is closed, or from within torch.save
def test_a_full_disk_is_told_and_leaves_the_old_file(saved, size):
    saved.with_name(f"a.pt.{os.getpid()}.tmp").symlink_to("/dev/full")
    told = rf"{saved}: cannot be written: No space left on device \([\d,]+ MB are free there\); free some space"
    with pytest.raises(CheckpointError, match=told):
        save_checkpoint(saved, {"w": torch.rand(size, size)})
    assert load_checkpoint(saved)["step"] == 3
    assert names(saved.parent) == ["a.pt"]


def test_what_torch_makes_of_a_full_disk_is_not_what_is_told(saved, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(content, file):
        file._file = Full()
        with suppress(OSError):
            file.write(b"x")
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(CheckpointError, match=f"{saved}: cannot be written: {os.strerror(errno.ENOSPC)}"):
        save_checkpoint(saved, {"step": 4})


@pytest.mark.parametrize(("number", "told"), [(errno.EROFS, "make .* writable"), (errno.EIO, "is the disk there")])
def test_a_disk_that_cannot_be_written_is_told_and_leaves_the_old_file(saved, monkeypatch, number, told):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "rename", refuse)
    with pytest.raises(CheckpointError, match=rf"{saved}: cannot be written: {os.strerror(number)}; {told}"):
        save_checkpoint(saved, {"step": 4})
    assert load_checkpoint(saved)["step"] == 3
    assert names(saved.parent) == ["a.pt"]


def test_a_disk_that_loses_a_bit_is_found_before_the_old_file_goes(saved, monkeypatch):
    fsync = os.fsync

    def lossy(file):
        fsync(file)
        os.pwrite(file, b"x", 70)

    monkeypatch.setattr(os, "fsync", lossy)
    with pytest.raises(CheckpointError, match="the disk does not give back what it was given"):
        save_checkpoint(saved, {"step": 4})
    assert load_checkpoint(saved)["step"] == 3
    assert names(saved.parent) == ["a.pt"]


def test_a_file_that_the_system_cannot_read_is_told(saved, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint, "open", fail, raising=False)
    with pytest.raises(CheckpointError, match=f"{saved}: cannot be read: {os.strerror(errno.EIO)}"):
        load_checkpoint(saved)


def test_a_malicious_file_is_refused_though_it_is_whole(tmp_path):
    save_checkpoint(tmp_path / "evil.pt", {"model": Spy(tmp_path / "was here")})
    with pytest.raises(CheckpointError, match=r"refused: it holds posix.mkdir"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "was here").exists()


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
    told = (
        "truncated: it ends after" if zipped and path.stat().st_size > 1 and part != -1 else "not a readable checkpoint"
    )
    with pytest.raises(CheckpointError, match=f"^{path}: {told}"):
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


@pytest.mark.parametrize("content", [b"hello world\n", b"\x89PNG\r\n\x1a\n", b"{}", b"", bytes(5000)])
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
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), synced.append(os.fstat(file).st_ino)))
    mark_best(step_path(tmp_path, 1))
    assert not (tmp_path / "best.pt").samefile(step_path(tmp_path, 1))
    assert synced[0] == (tmp_path / "best.pt").stat().st_ino, "synced before it has its name"
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
