"""One run per folder: filelock's lease, and what a run makes of it."""

import os
import signal
import subprocess
import sys
import threading
import time

import filelock
import pytest

from longshot.detector.errors import ConfigError
from longshot.detector.run.lock import NAME, RunLock
from longshot.detector.system.distributed import birth, elastic_job, machine

# Holds the folder in argv[1], prints a line, and adds a letter to a file every 50 ms as long as it may.
HOLDER = """
import sys, time
from pathlib import Path
from longshot.detector.errors import ConfigError
from longshot.detector.run.lock import RunLock
folder, lost = Path(sys.argv[1]), []
with RunLock(folder, on_loss=lambda: lost.append(1), lease=float(sys.argv[2])) as lock:
    lock.acquire()
    print("held", flush=True)
    for _ in range(10_000):
        try:
            lock.check()
        except ConfigError as error:
            print(error, flush=True)
            time.sleep(1)
            print(f"told by the heartbeat {len(lost)} times", flush=True)
            sys.exit(3)
        with open(folder / "written", "a") as file:
            file.write("x")
        time.sleep(0.05)
"""


@pytest.fixture
def lock(tmp_path):
    """(folder in it, options) -> a RunLock with a quick heart."""
    made = []

    def make(folder="run", *, on_loss=lambda: None, lease=2.0):
        made.append(RunLock(tmp_path / folder, on_loss=on_loss, lease=lease))
        return made[-1]

    yield make
    for each in made:
        each.__exit__()


@pytest.fixture
def holder(tmp_path):
    """(lease) -> a process that holds the folder `run`."""
    started = []

    def start(lease=2.0):
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), str(lease)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def from_afar(folder, *, lease=2.0):
    """What a holder on another machine has left in the folder."""
    folder.mkdir()
    other = filelock.SoftFileLease(folder / "other", lease_duration=lease)
    with other:
        text = (folder / "other").read_text()
    (folder / NAME).write_text(text.replace(f"host={other_host(text)}", "host=node7"))
    return folder / NAME


def other_host(text):
    return next(line.removeprefix("host=") for line in text.splitlines() if line.startswith("host="))


def test_the_folder_is_held_and_let_go(lock, tmp_path):
    with lock() as ours:
        ours.acquire()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]
        assert ours.is_ours()
        (tmp_path / "run" / "config.yaml").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_run_that_never_began_leaves_no_folder(lock, tmp_path):
    with lock("runs/new/run") as ours:
        ours.acquire()
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_on_this_machine_is_refused_at_once(lock, holder):
    process, begin = holder(lease=60.0), time.monotonic()
    with pytest.raises(
        ConfigError, match=rf"run: held by another run: process {process.pid} on .* is alive.* output=FOL"
    ):
        lock(lease=60.0).acquire()
    assert time.monotonic() - begin < 5


def test_a_run_that_died_on_this_machine_is_followed_at_once(lock, holder):
    process = holder(lease=60.0)
    process.kill()
    process.wait()
    begin, ours = time.monotonic(), lock(lease=60.0)
    ours.acquire()
    ours.check()
    assert time.monotonic() - begin < 5


def test_a_run_that_lives_on_another_machine_is_not_followed(lock, tmp_path):
    marker, over = from_afar(tmp_path / "run", lease=20.0), threading.Event()

    def live():
        while not over.wait(0.1):
            os.utime(marker)

    heart = threading.Thread(target=live)
    heart.start()
    try:
        with pytest.raises(ConfigError, match=r"held by another run: .* on node7 has just given a sign of life"):
            lock(lease=20.0).acquire()
    finally:
        over.set()
        heart.join()


@pytest.mark.parametrize("seconds", [-1e6, 0, 1e6])
def test_a_run_that_died_on_another_machine_is_followed_when_it_was_still_for_long(lock, tmp_path, capsys, seconds):
    marker = from_afar(tmp_path / "run", lease=1.0)
    os.utime(marker, (time.time() + seconds,) * 2)  # clocks are not compared
    begin, ours = time.monotonic(), lock(lease=1.0)
    ours.acquire()
    assert time.monotonic() - begin >= 1.0
    ours.check()
    assert "waiting 1 s to see whether it lives" in capsys.readouterr().out


def test_the_same_job_goes_on_at_once_on_another_machine(lock, tmp_path):
    from_afar(tmp_path / "run", lease=60.0)
    begin, ours = time.monotonic(), lock(lease=60.0)
    ours.acquire(goes_on=True)
    ours.check()
    assert time.monotonic() - begin < 10


def test_a_holder_gives_signs_of_life(lock, tmp_path):
    lock(lease=0.8).acquire()
    os.utime(tmp_path / "run" / NAME, (0, 0))
    end = time.monotonic() + 20
    while (tmp_path / "run" / NAME).stat().st_mtime < 1:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_suspended_process_that_was_taken_over_writes_nothing_when_it_wakes(lock, holder, tmp_path):
    process, ours = holder(lease=1.0), lock(lease=1.0)
    os.kill(process.pid, signal.SIGSTOP)
    marker = tmp_path / "run" / NAME  # of a holder that, for all we know, is on another machine
    text = marker.read_text()
    marker.write_text(text.replace(f"host={other_host(text)}", "host=node7"))
    ours.acquire()
    written = tmp_path / "run" / "written"
    before = written.stat().st_size if written.exists() else 0
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(20) == 3
    after = written.stat().st_size if written.exists() else 0
    assert after - before <= 1  # the letter that it was about to write when it was stopped
    message, told = process.stdout.read().splitlines()
    assert f"run: taken over by process {os.getpid()} on" in message
    assert message.endswith("this process writes nothing more and stops")
    assert told == "told by the heartbeat 1 times"
    ours.check()


def test_a_holder_learns_from_its_heartbeat_that_the_folder_is_lost(lock, tmp_path):
    lost = threading.Event()
    ours = lock(on_loss=lost.set, lease=0.8)
    ours.acquire()
    (tmp_path / "run" / NAME).unlink()
    assert lost.wait(20)
    with pytest.raises(ConfigError, match="run: taken over by nobody who left a name"):
        ours.check()


def test_of_many_that_want_to_follow_one_does(lock, holder, tmp_path):
    process = holder(lease=60.0)
    process.kill()
    process.wait()
    refused, begin = [], threading.Barrier(6)

    def follow(contender):
        begin.wait()
        try:
            contender.acquire()
        except ConfigError:
            refused.append(contender)

    threads = [threading.Thread(target=follow, args=(lock(lease=60.0),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5


def test_a_folder_that_cannot_be_made_is_named(lock, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run: Not a directory; the run folder must be writable"):
        lock("file/run").acquire()


def test_a_job_is_named_by_torchruns_id_or_by_torchrun_itself(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert elastic_job() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "4711")
    assert elastic_job() == "4711"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # without --rdzv-id
    assert elastic_job() == f"torchrun {os.getppid()} {birth(os.getppid())} on {machine()}"
