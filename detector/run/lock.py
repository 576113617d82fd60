"""One run per folder, also where several machines share the file system: a lease which its holder keeps alive.

A lease is a small file in the run folder, lease_00000001.json and so on, that says who holds it. It is created by an
exclusive open, which is atomic on network file systems as well; file locks are not used. A living holder changes its
lease every 15 seconds, and who wants to take over watches whether it does. Taking over creates the lease of the next
number, which only one process can do; a former holder that comes back finds it and stops. No clock and no time of a file is
compared with another machine's.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ConfigError
from ..system.processes import birth, host, machine

_LEASES = "lease_" + "[0-9]" * 8 + ".json"

HEARTBEAT = 15.0  # seconds
STALE = 120.0  # seconds without a heartbeat; network file systems show what others write up to a minute late


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    job: str | None  # see hosts.elastic_job
    host: str
    machine: str
    pid: int
    birth: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class RunLock:
    """The hold of this process on a run folder, from `acquire` to the end of the `with` block.

    Args:
        folder: of the run.
        job: names the run through its restarts: what the same job left behind is taken over at once, from wherever.
        on_loss: called, in another thread, when another process has taken over.
        heartbeat, stale: seconds.
    """

    def __init__(
        self, folder: Path, *, job: str | None, on_loss: Callable[[], None],
        heartbeat: float = HEARTBEAT, stale: float = STALE,
    ):  # fmt: skip
        self.folder, self.heartbeat, self.stale = folder, heartbeat, stale
        self._me = Holder(job, host(), machine(), os.getpid(), birth(os.getpid()))
        self._on_loss = on_loss
        self._path: Path | None = None
        self._beats = 0
        self._made: list[Path] = []  # folders
        self._lost = ""
        self._over = threading.Event()

    def acquire(self) -> None:
        """Hold the folder, which is created if need be.

        Waits while it cannot tell whether a holder on another machine lives: until its next heartbeat, or the lack of it.

        Raises ConfigError if another process holds the folder, or it cannot be written.
        """
        try:
            self._made = [parent for parent in (self.folder, *self.folder.parents) if not parent.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            while self._path is None:
                newest = self._newest()
                if newest is not None:
                    self._outlive(newest)
                self._create(1 if newest is None else _number(newest) + 1)
        except OSError as error:
            self._leave()
            raise ConfigError(
                f"{error.filename or self.folder}: {error.strerror}; the run folder must be writable"
            ) from error
        threading.Thread(target=self._live, daemon=True).start()

    def check(self) -> None:
        """Raises ConfigError if another process has taken over: from then on nothing may be written."""
        if not self._lost and self._path:
            self._look()
        if self._lost:
            raise ConfigError(self._lost)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._leave()

    def _leave(self) -> None:
        """Leave nothing behind: neither the lease nor folders that were made for it alone."""
        try:
            if self._path:
                self._path.unlink(missing_ok=True)
            for folder in self._made:
                folder.rmdir()
        except OSError:  # folders of a run that has begun are not empty; a lost disk holds no lease
            pass

    def _newest(self) -> Path | None:
        return max(self.folder.glob(_LEASES), default=None)

    def _create(self, number: int) -> None:
        """Take the lease of a number, unless another process is faster."""
        path = self.folder / f"lease_{number:08d}.json"
        try:
            with open(path, "xb") as file:
                file.write(self._content())
        except FileExistsError:
            return
        except OSError:
            with suppress(OSError):
                path.unlink()  # an empty one would keep others waiting
            raise
        self._path = path
        for older in self.folder.glob(_LEASES):
            if older < path:
                older.unlink(missing_ok=True)

    def _content(self) -> bytes:
        """Who we are, and how many heartbeats there were: of the same length each time."""
        return f"{json.dumps(asdict(self._me))}\n{self._beats:010d}\n".encode()

    def _outlive(self, lease: Path) -> None:
        """Return when the holder of a lease is known to be gone. Raises ConfigError when it is known to live."""
        end, first = time.monotonic() + self.stale, _sign_of_life(lease)
        told = False
        while time.monotonic() < end and (sign := _sign_of_life(lease)):
            holder = _read(lease)
            here = holder is not None and holder.machine == self._me.machine
            if here and birth(holder.pid) == holder.birth:
                raise ConfigError(self._refusal(holder, "is alive"))
            if here or (holder and holder.job and holder.job == self._me.job):
                return
            if sign != first:
                raise ConfigError(self._refusal(holder, "has just given a sign of life"))
            if not told:
                print(
                    f"{self.folder}: held by {holder}; waiting {self.stale:.0f} s to see whether it lives", flush=True
                )
                told = True
            time.sleep(self.heartbeat / 10)

    def _refusal(self, holder: Holder | None, sign: str) -> str:
        return (
            f"{self.folder}: held by another run: {holder or 'a process without a name'} {sign}. Stop it or wait for its end, or choose another folder by "
            f"output=FOLDER; a run on another machine counts as dead {self.stale:.0f} s after its last sign of life"
        )

    def _live(self) -> None:
        while not self._over.wait(self.heartbeat) and not self._lost:
            self._look()
        if self._lost:
            self._on_loss()

    def _look(self) -> None:
        """A heartbeat, if the lease is still ours."""
        try:
            newest = self._newest()
            holder = newest and _read(newest)
            if newest == self._path and holder == self._me:
                self._beat()
            elif not self._over.is_set():
                what = f"taken over by {holder}" if holder else "its lease is gone"
                self._lost = f"{self.folder}: {what}; this process writes nothing more and stops"
        except OSError:  # a file system that is away for a while; the next heartbeat will tell
            pass

    def _beat(self) -> None:
        """A sign of life in two ways: one needs no space on the disk, the other no file system that keeps times."""
        with suppress(OSError):
            os.utime(self._path)
        self._beats += 1
        with open(self._path, "r+b") as file:
            file.write(self._content())


def _number(lease: Path) -> int:
    return int(lease.stem.removeprefix("lease_"))


def _read(lease: Path) -> Holder | None:
    """The holder; None if the lease is gone, or not written yet."""
    try:
        return Holder(**json.loads(lease.read_text(encoding="utf-8").partition("\n")[0]))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _sign_of_life(lease: Path) -> tuple[int, bytes] | None:
    """What every heartbeat changes; None if the lease is gone."""
    try:
        with open(lease, "rb") as file:  # opened, since attributes may be cached
            return os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return None
