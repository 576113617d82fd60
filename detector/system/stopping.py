"""Stopping on request: a signal asks one process, all processes agree at the end of a step, and the run can go on later."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))

# Exit code of a single process that was asked to stop and can be gone on with: EX_TEMPFAIL, "try again later". Under
# torchrun the exit code is 0, since torchrun restarts everybody after any other.
STOPPED = 75


class StopRequest:
    """Whether the processes of a run are to stop.

    Attributes:
        requested: this process was asked to.
        signal: the name of the signal that asked.
        agreed: all processes know, and stop after the step which they are in. Set by `training.step.optimize`.
    """

    def __init__(self) -> None:
        self.requested, self.signal, self.agreed = False, "", False

    def ask(self, by: str = "") -> None:
        """Ask this process to stop."""
        self.requested, self.signal = True, by


@contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGUSR1 ask to stop instead of ending the process. For the main thread."""

    def ask(number: int, _: FrameType | None) -> None:
        stop.ask(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():  # of a notebook, say: Python allows no handlers there
        yield
        return
    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
