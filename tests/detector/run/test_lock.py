import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from longshot.detector.errors import ConfigError
from longshot.detector.run.lock import Holder, Lease
from longshot.detector.system.processes import birth, elastic_job, host, machine

ME = Holder(None, host(), machine(), os.getpid(), birth(os.getpid()))
FAR = replace(ME, host="node7", machine="node7 and its boot")


@pytest.fixture
def lease(tmp_path):
    """(folder in it, options) -> a Lease with a quick heart."""
    open_leases = []

    def make(folder="run", *, job=None, on_loss=lambda: None, heartbeat=0.05, stale=60.0):
        made = Lease(tmp_path / folder, job=job, on_loss=on_loss, heartbeat=heartbeat, stale=stale)
        open_leases.append(made)
        return made

    yield make
    for made in open_leases:
        made.__exit__()


def leave(folder, holder, number=1):
    """The lease of another process."""
    folder.mkdir(exist_ok=True)
    path = folder / f"lease_{number:08d}.json"
    path.write_text(json.dumps(asdict(holder)))
    return path


def held(folder):
    """Number and holder of all leases."""
    return {int(p.stem[-8:]): Holder(**json.loads(p.read_text().splitlines()[0])) for p in folder.glob("lease_*.json")}


def until(condition):
    """Wait for something that another thread does."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_lease_names_its_holder_and_goes_with_it(lease, tmp_path):
    with lease() as ours:
        ours.acquire()
        assert held(tmp_path / "run") == {1: ME}
        (tmp_path / "run" / "config.yaml").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_run_that_never_began_leaves_no_folder(lease, tmp_path):
    with lease("runs/new/run") as ours:
        ours.acquire()
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_at_once(lease, tmp_path):
    lease().acquire()
    told = rf"run: held by another run: process {os.getpid()} on {host()} is alive.* or choose another folder by output=FOLDER"
    with pytest.raises(ConfigError, match=told):
        lease().acquire()
    assert held(tmp_path / "run") == {1: ME}


def test_a_run_that_died_on_this_machine_is_followed_at_once(lease, tmp_path):
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: birth(zombie.pid) == "")  # dead, but nobody has asked for its exit code
    leave(tmp_path / "run", replace(ME, pid=zombie.pid, birth="123"), number=4)
    lease().acquire()
    assert held(tmp_path / "run") == {5: ME}
    zombie.wait()


def test_a_later_process_with_the_same_id_is_another(lease, tmp_path):
    leave(tmp_path / "run", replace(ME, birth="123"))
    lease().acquire()
    assert held(tmp_path / "run") == {2: ME}


def touch(path, count):
    os.utime(path)


def touch_by_a_clock_that_is_a_day_late(path, count):
    os.utime(path, (path.stat().st_ctime - 86400 + count,) * 2)


def write_where_times_are_not_kept(path, count):
    path.write_text(f"{json.dumps(asdict(FAR))}\n{count:010d}\n")
    os.utime(path, (0, 0))


@pytest.mark.parametrize("beat", [touch, touch_by_a_clock_that_is_a_day_late, write_where_times_are_not_kept])
def test_a_run_that_lives_on_another_machine_is_not_followed(lease, tmp_path, beat):
    path, over = leave(tmp_path / "run", FAR), threading.Event()
    beat(path, 0)

    def live():
        count = 0
        while not over.wait(0.05):
            count += 1
            beat(path, count)

    heart = threading.Thread(target=live)
    heart.start()
    try:
        with pytest.raises(ConfigError, match=r"held by another run: .* has just given a sign of life"):
            lease(stale=20.0).acquire()
    finally:
        over.set()
        heart.join()
    assert held(tmp_path / "run") == {1: FAR}


@pytest.mark.parametrize("seconds", [-1e6, 0, 1e6])
def test_a_run_that_died_on_another_machine_is_followed_when_it_was_still_for_long(lease, tmp_path, capsys, seconds):
    path = leave(tmp_path / "run", FAR)
    os.utime(path, (path.stat().st_mtime + seconds,) * 2)  # by a clock that is early or late, or long ago
    begin = time.monotonic()
    lease(stale=0.4).acquire()
    assert 0.4 <= time.monotonic() - begin < 10
    assert "held by process" in capsys.readouterr().out
    assert held(tmp_path / "run") == {2: ME}


@pytest.mark.parametrize("lost", ["utime", "open"])
def test_two_machines_see_each_other_where_one_of_the_signs_is_not_possible(lease, tmp_path, monkeypatch, lost):
    def fail(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with monkeypatch.context() as far:
        far.setattr("longshot.detector.run.lock.machine", lambda: "far away")
        theirs = lease()
    theirs.acquire()
    ours = lease(stale=20.0)
    before = (tmp_path / "run" / "lease_00000001.json").read_bytes()
    if lost == "utime":  # a file system that keeps no times
        monkeypatch.setattr(os, "utime", fail)
    else:  # one that is full, where even what is written over needs new space
        real = open
        monkeypatch.setattr(
            "longshot.detector.run.lock.open", lambda path, mode: fail() if "+" in mode else real(path, mode), raising=False
        )
    with pytest.raises(ConfigError, match="has just given a sign of life"):
        ours.acquire()
    assert ((tmp_path / "run" / "lease_00000001.json").read_bytes() == before) == (lost == "open")
    theirs.check()


def test_a_disk_that_is_too_full_for_a_lease_is_told_and_keeps_nobody_waiting(lease, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "_content", full)
        with pytest.raises(ConfigError, match=r"run: No space left on device; the run folder must be writable"):
            lease().acquire()
    assert not (tmp_path / "run").exists()


def test_the_same_job_takes_over_at_once_wherever_it_goes_on(lease, tmp_path):
    leave(tmp_path / "run", replace(FAR, job="job 7"))
    begin = time.monotonic()
    lease(job="job 7", stale=10.0).acquire()
    assert time.monotonic() - begin < 5
    assert held(tmp_path / "run") == {2: replace(ME, job="job 7")}


def test_no_job_is_no_name(lease, tmp_path):
    leave(tmp_path / "run", FAR)
    begin = time.monotonic()
    lease(stale=0.3).acquire()
    assert time.monotonic() - begin >= 0.3


def test_a_holder_gives_signs_of_life(lease, tmp_path):
    lease().acquire()
    path = tmp_path / "run" / "lease_00000001.json"
    os.utime(path, (0, 0))
    until(lambda: path.stat().st_mtime > 1)


def test_a_holder_learns_that_it_was_taken_over_and_writes_nothing_more(lease, tmp_path):
    told = threading.Event()
    ours = lease(on_loss=told.set)
    ours.acquire()
    ours.check()
    leave(tmp_path / "run", FAR, number=2)
    assert told.wait(20)
    with pytest.raises(ConfigError, match=r"run: taken over by process \d+ on node7; this process writes nothing more"):
        ours.check()


def test_a_check_needs_no_heartbeat(lease, tmp_path):
    ours = lease(heartbeat=1000.0)
    ours.acquire()
    (tmp_path / "run" / "lease_00000001.json").unlink()
    with pytest.raises(ConfigError, match="run: its lease is gone"):
        ours.check()


def test_of_many_that_want_to_follow_one_does(lease, tmp_path):
    leave(tmp_path / "run", replace(ME, birth="123"))
    refused, begin = [], threading.Barrier(8)

    def follow(contender):
        begin.wait()
        try:
            contender.acquire()
        except ConfigError:
            refused.append(contender)

    threads = [threading.Thread(target=follow, args=(lease(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert held(tmp_path / "run") == {2: ME}


def test_a_folder_that_cannot_be_made_is_told(lease, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run: Not a directory; the run folder must be writable"):
        lease("file/run").acquire()


def test_a_job_is_named_by_torchruns_id_or_by_torchrun_itself(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert elastic_job() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "4711")
    assert elastic_job() == "4711"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # without --rdzv-id
    assert elastic_job() == f"torchrun {os.getppid()} {birth(os.getppid())} on {machine()}"
