"""One run per folder, also where several machines share the file system: filelock's lease, a file named run.lock.

A living holder touches the file every few seconds. Whoever wants the folder is refused if the holder lives on this machine,
follows at once if it died here, and else watches the file: its holder counts as dead when it was left alone for LEASE
seconds. A former holder that comes back finds that the file is another's, and writes nothing more. File locks of the
operating system, which many network file systems lack, are not used, and clocks of machines are not compared.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from ..errors import ConfigError

NAME = "run.lock"
LEASE = 120.0  # seconds without a sign of life; network file systems show what others write up to a minute late


class RunLock:
    """The hold of this process on a run folder, from `acquire` to the end of the `with` block.

    Args:
        folder: of the run.
        on_loss: called, in another thread, when another process has taken over.
        lease: seconds; every process must have the same.
    """

    def __init__(self, folder: Path, *, on_loss: Callable[[], None], lease: float = LEASE):
        self.folder, self._lease_seconds = folder, lease
        self._lease = SoftFileLease(
            folder / NAME, lease_duration=lease, heartbeat_interval=lease / 8, on_compromise=lambda _: on_loss(),
            thread_local=False,
        )  # fmt: skip
        self._marker: str | None = None  # of the file that is ours, see `_read_marker`
        self._made: list[Path] = []

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self._lease.release()
        for folder in self._made:  # a run that never began leaves no folder
            with suppress(OSError):  # it is not empty
                folder.rmdir()

    def acquire(self, *, goes_on: bool = False) -> None:
        """Hold the folder. Waits while it cannot tell whether a holder on another machine lives, LEASE seconds at most.

        Args:
            goes_on: this process goes on with the very run that the folder holds, as a restarted torchrun job: a holder on
                another machine is then known to be gone.

        Raises ConfigError if another process holds the folder, or the folder cannot be written.
        """
        try:
            self._made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._is_free(timeout=0):
                self._outlive(goes_on)
            self._marker = self._read_marker()
        except OSError as error:
            if isinstance(error, Timeout):
                raise
            raise ConfigError(f"{self.folder}: {error.strerror}; the run folder must be writable") from error

    def check(self) -> None:
        """Raise ConfigError if another process has taken the folder over. Asks the file system, not the heartbeat."""
        if not self.is_ours():
            raise ConfigError(
                f"{self.folder}: taken over by {self._holder()}; this process writes nothing more and stops"
            )

    def is_ours(self) -> bool:
        """Whether this process may write: it holds the folder, or never asked for it, as ranks other than 0 do."""
        if self._marker is None:
            return True
        try:
            return self._read_marker() == self._marker
        except FileNotFoundError:
            return False
        except OSError:  # a file system that is away for a while
            return True

    def _read_marker(self) -> str:
        """The content of the file, with a token that no other claim has; inodes of removed files are used again."""
        return Path(self._lease.lock_file).read_text(encoding="utf-8")

    def _is_free(self, *, timeout: float) -> bool:
        try:
            self._lease.acquire(timeout=timeout)
        except Timeout:
            return False
        return True

    def _outlive(self, goes_on: bool) -> None:
        """Acquire when the holder is known to be gone. Raises ConfigError when it is known to live."""
        if self._is_of_this_machine():
            raise ConfigError(self._refusal("is alive"))
        if goes_on:
            self._lease.force_break()
        else:
            print(
                f"{self.folder}: held by {self._holder()}; waiting {self._lease_seconds:.0f} s to see whether it lives"
            )
        end, seen = time.monotonic() + 1.5 * self._lease_seconds, self._sign_of_life()
        while not self._is_free(timeout=self._lease_seconds / 40):
            if (sign := self._sign_of_life()) != seen and sign is not None:
                raise ConfigError(self._refusal("has just given a sign of life"))
            if time.monotonic() > end:
                raise ConfigError(self._refusal("does not let go"))

    def _is_of_this_machine(self) -> bool:
        """Whether the holder has a name that is ours: another process here would have been followed, were it dead."""
        probe = SoftFileLease(self.folder / f"{NAME}.{os.getpid()}", lease_duration=self._lease_seconds)
        with probe:
            here, holder = probe.owner, self._lease.owner
        return holder is None or here is None or here.hostname == holder.hostname

    def _sign_of_life(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._lease.lock_file)
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _holder(self) -> str:
        owner = self._lease.owner
        return f"process {owner.pid} on {owner.hostname}" if owner else "nobody who left a name"

    def _refusal(self, sign: str) -> str:
        return (
            f"{self.folder}: held by another run: {self._holder()} {sign}. Stop it or wait for its end, or choose another "
            f"folder by output=FOLDER; a run on another machine counts as dead {self._lease_seconds:.0f} s after its last sign "
            "of life"
        )
