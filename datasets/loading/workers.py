"""Processes that compute ahead what is asked for by numbers, and start again when one of them dies.

Not torch's DataLoader: it tells of a dead process by an exception which a signal raises in the main thread, wherever that
is, in the middle of an optimizer step as well.
"""

import atexit
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import multiprocessing as mp

_AHEAD = 2  # numbers that a process is given before the result of the first is taken
_PATIENCE = 5.0  # seconds until a process that has closed its pipe, or was killed, must be gone

T = TypeVar("T")


class Watch:
    """What a process writes down for its parent to know what it was busy with, should it die.

    Args:
        busy: (2,) int64, in memory that is shared: the number, and the item with `busy_with`; NOTHING for neither.
        deadly: items that have killed processes before.
    """

    NOTHING = -1

    def __init__(self, busy: Tensor | None = None, deadly: frozenset[int] = frozenset()):
        self._busy = torch.full((2,), self.NOTHING) if busy is None else busy
        self.deadly = deadly

    def busy_with(self, item: int) -> None:
        """Write down an item of the number, or NOTHING."""
        self._busy[1] = item


class Death(NamedTuple):
    """How a process has died."""

    pid: int
    exit_code: int  # minus the number of a signal; above 0: by an exception, which it has printed
    number: int  # what it was busy with
    item: int  # or Watch.NOTHING


def compute_ahead(
    compute: Callable[[int, Watch], T],
    numbers: Sequence[int],
    *,
    workers: int,
    on_death: Callable[[Death], frozenset[int]],
) -> Iterator[T]:
    """compute(number, watch) of each number, in order. One that a process has died of is given to a new process.

    Args:
        workers: processes, above 0.
        on_death: is told of each death, and says what items are deadly, or raises.
    """
    team = [_Worker(compute) for _ in range(min(workers, len(numbers)))]
    dismiss = atexit.register(partial(_dismiss, team))  # an exception may keep this generator to the end of the program
    try:
        ahead = _AHEAD * len(team)
        for k, number in enumerate(numbers[:ahead]):
            team[k % len(team)].order(number)
        for k in range(len(numbers)):
            worker = team[k % len(team)]
            while isinstance(result := worker.result(), Death):
                worker.start_again(on_death(result))
            if k + ahead < len(numbers):
                worker.order(numbers[k + ahead])
            yield result
    finally:
        atexit.unregister(dismiss)
        dismiss()


class _Worker:
    """A process with a pipe of its own: nothing is left locked, or half written, for others when it dies."""

    def __init__(self, compute: Callable[[int, Watch], object]):
        self._compute = compute
        self._ordered: deque[int] = deque()
        self._deadly: frozenset[int] = frozenset()
        self._busy = torch.full((2,), Watch.NOTHING).share_memory_()
        self._start()

    def order(self, number: int) -> None:
        """Have it computed, after what was ordered before."""
        self._ordered.append(number)
        self._send(number)

    def result(self) -> object | Death:
        """Of the number that was ordered first; a Death if the process is gone without having handed it over."""
        try:
            result = self._pipe.recv()
        except (EOFError, OSError):  # also where pixels, which stay with the process until now, went with it
            self._process.join(_PATIENCE)
            if self._process.exitcode is None:
                raise
            return Death(self._process.pid, self._process.exitcode, *self._busy.tolist())
        self._ordered.popleft()
        return result

    def start_again(self, deadly: frozenset[int]) -> None:
        """Replace a dead process; the new one gets all that has been ordered and not handed over."""
        self._pipe.close()
        self._deadly = deadly
        self._busy.fill_(Watch.NOTHING)
        self._start()
        for number in self._ordered:
            self._send(number)

    def kill(self) -> None:
        """End the process at once: it writes nothing that could be lost."""
        self._process.kill()

    def join(self) -> None:
        """Wait for its end."""
        self._process.join(_PATIENCE)
        self._pipe.close()

    def _start(self) -> None:
        self._pipe, its_end = mp.Pipe()
        self._process = mp.Process(target=_serve, args=(self._compute, its_end, self._pipe, self._busy), daemon=True)
        self._process.start()
        its_end.close()  # or the pipe would stay open when the process dies

    def _send(self, number: int) -> None:
        with suppress(OSError):  # it is dead, which `result` finds out when its turn comes
            self._pipe.send((number, self._deadly))


def _dismiss(team: Sequence[_Worker]) -> None:
    for worker in team:
        worker.kill()
    for worker in team:
        worker.join()


def _serve(compute: Callable[[int, Watch], object], pipe: object, parents_end: object, busy: Tensor) -> None:
    """Compute what is ordered through the pipe until the parent closes it, or dies."""
    parents_end.close()  # which came along; with it open, the pipe would never end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this
    outlive_termination()
    torch.set_num_threads(1)
    while True:
        try:
            number, deadly = pipe.recv()
        except (EOFError, OSError):
            return
        busy[0] = number
        result = compute(number, Watch(busy, deadly))
        try:
            pipe.send(result)
        except OSError:
            return


def outlive_termination() -> None:
    """Ignore the next SIGTERM.

    Batch systems send it to all processes of a job. One that finishes its step and saves needs the processes that read its
    images until then; they end when it does.
    """

    def ignore_once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_once)
