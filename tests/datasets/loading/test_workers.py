"""Worker processes: what they do, what disturbs them, and what is said when one of them crashes."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from longshot.datasets import DataError, read_annotations
from longshot.datasets.loading.batches import BatchLoader, EvaluationBatches
from longshot.datasets.loading.dataset import DetectionDataset
from longshot.datasets.loading.workers import outlive_termination

OPTIONS = {"short_side": 32, "long_side": 48, "pad_multiple": 16, "batch_size": 1}
DEADLY = 2  # index of the image whose reading ends the process


class Deadly(DetectionDataset):
    """Reading one image ends the process, by a signal or an exit code."""

    end = signal.SIGKILL

    def read(self, index, view):
        if index == DEADLY and isinstance(self.end, signal.Signals):
            os.kill(os.getpid(), self.end)
        elif index == DEADLY:
            os._exit(self.end)
        return super().read(index, view)


@pytest.fixture
def dataset(shapes):
    return DetectionDataset(read_annotations(shapes.val), shapes.folder)


@pytest.fixture
def deadly(shapes):
    return Deadly(read_annotations(shapes.val), shapes.folder)


@pytest.fixture
def method(request):
    """How processes are started, in the test alone."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def loader(dataset, *, workers=2, replace=False):
    batches = EvaluationBatches(dataset, **OPTIONS, replace=replace)
    return BatchLoader(batches, range(len(batches)), workers=workers)


def assert_same(a, b):
    assert len(a) == len(b)
    for ours, theirs in zip(a, b, strict=True):
        assert ours[2:] == theirs[2:]
        assert all(torch.equal(x, y) for x, y in zip(ours.images, theirs.images, strict=True))
        assert all(
            torch.equal(x, y)
            for s, t in zip(ours.targets, theirs.targets, strict=True)
            for x, y in zip(s, t, strict=True)
        )


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("end", "advice"),
    [
        (signal.SIGKILL, "most likely there was too little memory"),
        (signal.SIGBUS, "most likely /dev/shm is full"),
        (signal.SIGSEGV, "the file may crash its decoder"),
    ],
)
def test_a_worker_that_crashes_names_the_image_it_was_reading(deadly, end, advice, replace):
    deadly.end = end
    number = EvaluationBatches(deadly, **OPTIONS)._order.tolist().index(DEADLY)
    told = rf"was ended by {end.name} in batch {number}, reading {deadly.path(DEADLY)} \({deadly.called(DEADLY)}\); {advice}"
    with pytest.raises(DataError, match=told):
        list(loader(deadly, replace=replace))
    assert not multiprocessing.active_children()


def test_a_worker_that_ends_by_itself_is_an_error_of_ours(deadly):
    deadly.end = 3
    with pytest.raises(RuntimeError, match="a process that reads images ended with exit code 3"):
        list(loader(deadly))


@pytest.mark.parametrize("method", ["fork", "spawn"], indirect=True)
def test_a_worker_that_crashes_between_batches_was_reading_no_image_and_leaves_the_step_alone(dataset, method):
    batches = iter(loader(dataset, workers=1))
    next(batches)
    before = signal.getsignal(signal.SIGCHLD)
    victim = multiprocessing.active_children()[0]
    time.sleep(0.5)  # all that was asked for is read
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    sum(range(10**6))  # the step, in which nothing is raised
    with pytest.raises(
        DataError, match=rf"process {victim.pid}, .* SIGKILL in batch \d, reading no image; most likely"
    ):
        next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    assert not multiprocessing.active_children()


def test_the_handler_of_torch_that_raises_in_mid_step_is_not_left_behind(dataset):
    before = signal.getsignal(signal.SIGCHLD)
    for _ in loader(dataset):
        assert signal.getsignal(signal.SIGCHLD) == before
    assert signal.getsignal(signal.SIGCHLD) == before


def test_workers_end_with_an_iteration_that_is_broken_off(dataset):
    batches = iter(loader(dataset))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


def test_workers_read_on_after_one_sigterm(dataset):
    expected, found = list(loader(dataset, workers=0)), []
    for batch in loader(dataset, workers=1):
        if not found:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGTERM)
        found.append(batch)
    assert_same(found, expected)


def test_a_worker_ignores_the_first_sigterm_alone():
    before = signal.getsignal(signal.SIGTERM)
    try:
        outlive_termination()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("method", ["spawn"], indirect=True)
def test_spawned_workers_read_the_same_bits(dataset, method):
    assert_same(list(loader(dataset, workers=1)), list(loader(dataset, workers=0)))


def test_pinned_batches_are_the_same(dataset, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())  # which needs a GPU
    packed = EvaluationBatches(dataset, **OPTIONS)[0]
    assert_same([pin_memory(packed).unpack()], [packed.unpack()])


def test_a_mistake_of_ours_in_a_worker_keeps_its_traceback(dataset, monkeypatch):
    monkeypatch.setattr(dataset, "read", None)
    with pytest.raises(TypeError, match="Original Traceback"):
        list(loader(dataset))


def test_targets_are_arrays_until_a_batch_is_unpacked(dataset):
    packed = EvaluationBatches(dataset, **OPTIONS)[0]
    assert all(isinstance(array, np.ndarray) for targets in packed.batch.targets for array in targets)
    assert all(isinstance(tensor, torch.Tensor) for targets in packed.unpack().targets for tensor in targets)
