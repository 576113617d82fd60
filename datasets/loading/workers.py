"""Worker processes of torch's DataLoader, which read batches ahead; and what is said when one of them crashes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import DataError

NOTHING = -1
_ADVICE = {  # by the name of the signal: Windows lacks these
    "SIGKILL": "most likely there was too little memory: lower data.workers, or give the machine more",
    "SIGBUS": "most likely /dev/shm is full: enlarge it (docker run --shm-size), or set data.workers=0",
}
_OTHER_ADVICE = "the file may crash its decoder: look at it, or replace it"


def read_ahead(
    batches: Dataset, numbers: Sequence[int], *, workers: int, pin_memory: bool, describe: Callable[[int], str]
) -> Iterator[Any]:
    """batches[number] of each number, in order, read ahead by worker processes.

    Args:
        batches: write what they are reading into their attribute `reading`, see `_start_worker`.
        workers: processes, above 0.
        pin_memory: of what is read, for copies to a GPU; see torch's DataLoader.
        describe: an image, for messages.

    Raises:
        DataError: a worker has crashed: the image that it was reading, and what to do.
    """
    reading = torch.full((workers, 3), NOTHING).share_memory_()
    loader = DataLoader(
        batches, batch_size=None, sampler=numbers, num_workers=workers, collate_fn=_as_it_is, pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, reading), generator=torch.Generator(),  # not the one of training
    )  # fmt: skip
    before = multiprocessing.active_children()
    with _crashes_raised([]):
        iterator = iter(loader)
    crew = [process for process in multiprocessing.active_children() if process not in before]
    try:
        for _ in numbers:
            crash = None
            try:
                with _crashes_raised(crew):
                    batch = next(iterator)
            except RuntimeError:
                crash = _crash(crew, reading, describe)
                if crash is None:
                    raise
            if crash:  # raised here, it holds on to nothing of the loader
                raise crash
            yield batch
    finally:
        del iterator  # tells the workers to end
        for process in crew:
            process.kill()  # those that did not: after an error they may be waited for when the program ends


@contextmanager
def _crashes_raised(crew: Sequence[BaseProcess]) -> Iterator[None]:
    """A process of `crew` that crashes, before or while the block runs, is a RuntimeError in the block.

    torch installs a handler that raises it wherever the main thread is, in the middle of an optimizer step as well. Here
    the block leaves the handler that it has found, and the step that was begun is finished.
    """

    def check(*_: object) -> None:
        if any(process.exitcode for process in crew):
            raise RuntimeError("a process that reads images has crashed")

    # Elsewhere DataLoader looks after its workers every few seconds.
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, check)
    try:
        check()
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _crash(crew: Sequence[BaseProcess], reading: Tensor, describe: Callable[[int], str]) -> Exception | None:
    """What is said of the first process of `crew` that has crashed, if one has.

    Args:
        reading: (workers, 3) of each worker its process id, its batch and the image it was reading, or NOTHING.
    """
    crashed = next((process for process in crew if process.exitcode), None)
    if crashed is None:
        return None
    if crashed.exitcode > 0:
        return RuntimeError(f"a process that reads images ended with exit code {crashed.exitcode}; see above for why")
    number, image = next((row[1:] for row in reading.tolist() if row[0] == crashed.pid), (NOTHING, NOTHING))
    cause = signal.Signals(-crashed.exitcode).name
    return DataError(
        f"process {crashed.pid}, which reads images, was ended by {cause} in batch {number}, reading "
        f"{'no image' if image == NOTHING else describe(image)}; {_ADVICE.get(cause, _OTHER_ADVICE)}"
    )


def _start_worker(reading: Tensor, worker: int) -> None:
    """What a worker does first. `reading` (workers, 3) is memory shared with the main process."""
    batches = get_worker_info().dataset
    batches.reading = reading[worker]
    batches.reading[0] = os.getpid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    outlive_termination()


def outlive_termination() -> None:
    """Ignore the next SIGTERM.

    Batch systems send it to all processes of a job. One that finishes its step and saves needs the processes that read its
    images until then; they end when it does.
    """

    def ignore_once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_once)


def _as_it_is(batch: Any) -> Any:
    """In place of torch's function, which makes a tensor of each array; a tensor takes an open file on its way here."""
    return batch
