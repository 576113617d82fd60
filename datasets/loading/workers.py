"""Worker processes that read batches ahead, by torch's DataLoader; one that dies names the image that it was reading."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import DataError
from ..images.transforms import View
from .batches import EvaluationBatches, Packed, TrainingBatches
from .dataset import Targets

_NOTHING = -1
_ADVICE = {
    "SIGKILL": "most likely there was too little memory: lower data.workers, or give the machine more",
    "SIGBUS": "most likely /dev/shm is full: enlarge it (docker run --shm-size), or set data.workers=0",
}


class _ByNumber(Dataset):
    """Batches for a DataLoader; each worker writes down what it is reading, for its parent to know should it die."""

    def __init__(self, batches: TrainingBatches | EvaluationBatches, workers: int):
        self._batches = batches
        self.busy = torch.full((workers, 3), _NOTHING).share_memory_()  # process, number and image of each worker

    def __getitem__(self, number: int) -> Packed | DataError:
        self._busy_with = self.busy[get_worker_info().id]
        self._busy_with[0], self._busy_with[1] = os.getpid(), number
        return self._batches(number, self._read)

    def _read(self, index: int, view: View) -> tuple[Tensor, Targets]:
        self._busy_with[2] = index
        found = self._batches.dataset.read(index, view)
        self._busy_with[2] = _NOTHING
        return found


def read_ahead(
    batches: TrainingBatches | EvaluationBatches, numbers: Sequence[int], workers: int
) -> Iterator[Packed | DataError]:
    """The batches of the numbers, in order, read by `workers` processes, above 0.

    Raises DataError when a worker has died, a few seconds after it did: with the signal, the image and what to do.
    """
    by_number = _ByNumber(batches, min(workers, max(1, len(numbers))))
    loader = DataLoader(
        by_number, batch_size=None, sampler=numbers, collate_fn=_as_it_is, num_workers=len(by_number.busy),
        worker_init_fn=_prepare_worker, pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it would draw from the random numbers of training
    )  # fmt: skip
    others = multiprocessing.active_children()
    with _own_signal_handler():
        iterator = iter(loader)
    team = [child for child in multiprocessing.active_children() if child not in others]
    try:
        yield from iterator
    except RuntimeError as error:
        for worker in team:
            if worker.exitcode is not None and worker.exitcode < 0:
                raise DataError(_what_happened(batches, by_number.busy.tolist(), worker)) from error
        raise  # an exception, which the worker has printed


def _what_happened(
    batches: TrainingBatches | EvaluationBatches, busy: list[list[int]], worker: multiprocessing.Process
) -> str:
    number, image = next((rest for process, *rest in busy if process == worker.pid), (_NOTHING, _NOTHING))
    cause = signal.Signals(-worker.exitcode).name
    of_image = "no image"
    if image != _NOTHING:
        of_image = f"{batches.dataset.path(image)} ({batches.dataset.called(image)})"
    return (
        f"worker process {worker.pid}, which reads images, was ended by {cause} in batch {number}, reading {of_image}; "
        f"{advice(cause)}"
    )


def advice(cause: str) -> str:
    """What to do about a process that was ended by the signal of that name while it read an image."""
    return _ADVICE.get(cause, "the file may crash its decoder: look at it, replace it, or take it out of the annotations")


@contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Keep the handler of SIGCHLD: DataLoader's would raise wherever the main thread is, in mid-step as well."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None:  # not installed by Python
            signal.signal(signal.SIGCHLD, before)


def _as_it_is(packed: Packed | DataError) -> Packed | DataError:
    return packed


def _prepare_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this
    outlive_termination()


def outlive_termination() -> None:
    """Ignore the next SIGTERM.

    Batch systems send it to all processes of a job. One that finishes its step and saves needs the processes that read its
    images until then; they end when it does.
    """

    def ignore_once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_once)
