"""Stopping on request: a signal asks one process, all processes agree at the end of a step, and the run can go on later."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..training.state import StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

# Of a single process that was asked to stop and can be gone on with: EX_TEMPFAIL, "try again later". Under torchrun the
# exit code is 0, since torchrun restarts everybody after any other.
STOPPED = os.EX_TEMPFAIL


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
