"""Images that cannot be read, and workers that die."""

import os
import signal
import zlib
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from longshot.datasets import DataError, read_annotations
from longshot.datasets.errors import UnreadableImage
from longshot.datasets.images.transforms import View
from longshot.datasets.loading.casualties import MOST_IN_A_ROW, Casualties
from longshot.datasets.loading.dataset import DetectionDataset
from longshot.datasets.loading.loader import evaluation_loader, training_loader
from longshot.datasets.loading.samplers import TrainingStream
from longshot.datasets.loading.scenes import others_nearby
from longshot.datasets.loading.unreadable import MOST_TRIED, ShowingOthers, fitting
from longshot.datasets.loading.workers import Death, Watch, compute_ahead

TRAINING = {"short_sides": (24, 32), "long_side": 48, "flip": 0.5, "pad_multiple": 16, "seed": 3}
EVALUATION = {"short_side": 32, "long_side": 48, "pad_multiple": 16, "batch_size": 3}
SICK = 2  # index of the image that is made unreadable


@pytest.fixture
def folder(shapes, tmp_path):
    """The validation images of the shapes, which may be spoiled."""
    for path in shapes.folder.glob("val_*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def dataset(shapes, folder):
    return DetectionDataset(read_annotations(shapes.val), folder)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:200])


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def claim_gigabytes(path):
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in a PNG's header, which a checksum follows
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


SPOILED = {
    "vanished": (lambda path: path.unlink(), "no such image"),
    "cut off": (cut_off, "cannot be decoded as an image: "),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "a text": (lambda path: path.write_text("an image, honestly"), "its content is that of no image format"),
    "a folder": (replace_by_folder, "cannot be opened: Is a directory"),
    "of another size": (
        lambda path: Image.new("RGB", (5, 7)).save(path),
        "has height 7 and width 5, but its annotations",
    ),
    "a bomb": (claim_gigabytes, "could be decompression bomb"),
}


def stream_of(dataset):
    return TrainingStream(len(dataset), batch_size=4, seed=0)


def train(dataset, steps=6, **options):
    return list(training_loader(dataset, stream_of(dataset), **TRAINING, start_step=0, num_steps=steps, **options))


@pytest.mark.parametrize("kind", SPOILED)
def test_an_unreadable_image_is_an_error_with_path_id_and_reason(dataset, kind):
    spoil, reason = SPOILED[kind]
    spoil(dataset.path(SICK))
    told = (
        f"{dataset.path(SICK)}: .*{reason}.*image {dataset.annotations.image_ids[SICK]} of .*data.on_unreadable=replace"
    )
    for batches in (
        training_loader(dataset, stream_of(dataset), **TRAINING, start_step=0, num_steps=3),
        evaluation_loader(dataset, **EVALUATION, workers=1),
    ):
        with pytest.raises(DataError, match=told):
            list(batches)


@pytest.mark.parametrize("kind", SPOILED)
def test_training_shows_another_image_in_its_place_and_counts_it(dataset, kind):
    expected = train(dataset)
    spoil, reason = SPOILED[kind]
    spoil(dataset.path(SICK))
    batches = train(dataset, on_unreadable="replace")
    met = 0
    for batch, before in zip(batches, expected, strict=True):
        assert [image.shape for image in batch.images] == [image.shape for image in before.images]
        assert batch.padded_sizes == before.padded_sizes
        sick = [i for i, index in enumerate(before.image_indices) if index == SICK]
        assert batch.unreadable == (SICK,) * len(sick)
        assert len(batch.warnings) == bool(sick)
        assert all(reason in w and w.endswith("another image is shown in its place") for w in batch.warnings)
        assert SICK not in batch.image_indices
        met += len(sick)
        for i, image in enumerate(batch.images):
            assert torch.equal(image, before.images[i]) == (i not in sick)
            boxes, (height, width) = batch.targets[i].boxes, image.shape[1:]
            assert (boxes >= 0).all()
            assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert met > 1


def test_what_is_shown_depends_neither_on_workers_nor_on_processes(dataset):
    cut_off(dataset.path(SICK))
    alone = train(dataset, on_unreadable="replace")
    for other in (train(dataset, on_unreadable="replace", workers=w) for w in (1, 2)):
        for a, b in zip(alone, other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
            assert (a.image_ids, a.unreadable, a.warnings) == (b.image_ids, b.unreadable, b.warnings)
    ranks = [train(dataset, on_unreadable="replace", rank=r, world_size=2) for r in (0, 1)]
    for a, *parts in zip(alone, *ranks, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.images, [i for p in parts for i in p.images], strict=True))
        assert sum(len(part.unreadable) for part in parts) == len(a.unreadable)


def test_the_other_image_keeps_its_shape_and_its_boxes(dataset):
    def read(index, view):
        if index == SICK:
            raise UnreadableImage("gone")
        return dataset.read(index, view)

    other = next(i for i in range(len(dataset)) if i != SICK and dataset.size(i) == (96, 64))
    reader = ShowingOthers(read, iter([SICK, other]), dataset.size)
    image, targets = reader(SICK, View((32, 48), flip=False))
    assert image.shape == (3, 32, 48)
    alone, own = dataset.read(other, View((32, 21), flip=False))
    assert torch.equal(image[:, :, :21], alone)
    assert image[:, :, 21:].float().std(dim=(1, 2)).max() == 0
    torch.testing.assert_close(targets.boxes, own.boxes)
    assert (reader.unreadable, reader.shown, len(reader.warnings)) == ([SICK], [other], 2)


def test_many_unreadable_images_in_a_row_are_an_error():
    def read(index, view):
        raise UnreadableImage(f"{index}: gone")

    reader = ShowingOthers(read, iter(range(1000)), lambda index: (64, 64))
    with pytest.raises(DataError, match=rf"^{MOST_TRIED - 1}: gone; nor can {MOST_TRIED} in a row be read"):
        reader(SICK, View((32, 48), flip=False))


def test_the_others_are_those_of_the_position(dataset):
    first, again, second, seeded = (
        list(islice(others_nearby(stream_of(dataset), position, seed), 12))
        for position, seed in ((5, 3), (5, 3), (6, 3), (5, 4))
    )
    assert first == again
    assert first not in (second, seeded)


def test_a_frame_holds_the_largest_picture_of_a_shape():
    assert fitting((96, 64), (32, 48)) == (32, 21)
    assert fitting((10, 20), (100, 100)) == (50, 100)
    assert fitting((1, 9000), (64, 64)) == (1, 64)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_nothing_in_its_place(dataset, workers):
    cut_off(dataset.path(SICK))
    batches = list(evaluation_loader(dataset, **EVALUATION, workers=workers, on_unreadable="replace"))
    assert sorted(i for batch in batches for i in batch.image_indices) == list(range(len(dataset)))
    (sick,) = (batch for batch in batches if batch.unreadable)
    assert sick.unreadable == (SICK,)
    (warning,) = sick.warnings
    assert warning.endswith("it is scored as an image in which nothing was detected")
    image, targets = ((c[sick.image_indices.index(SICK)]) for c in (sick.images, sick.targets))
    assert image.float().std(dim=(1, 2)).max() == 0
    assert len(targets.boxes) == 0


# Workers that die. `compute` is what a worker does; the first time (or each time) it meets a number it kills itself.


def killing(number, watch, *, sick, proof=None, with_signal=signal.SIGKILL):
    watch.busy_with(10 * number)
    if number in sick and (proof is None or not proof.exists()) and 10 * number not in watch.deadly:
        if proof:
            proof.touch()
        os.kill(os.getpid(), with_signal)
    watch.busy_with(Watch.NOTHING)
    return torch.full((3,), number)


def test_what_a_worker_has_died_of_is_given_to_another(tmp_path):
    deaths = []

    def on_death(death):
        deaths.append(death)
        return frozenset()

    compute = partial(killing, sick=[4], proof=tmp_path / "died")
    found = compute_ahead(compute, range(3, 12), workers=2, on_death=on_death)
    assert [tensor.tolist() for tensor in found] == [[n] * 3 for n in range(3, 12)]
    assert [(death.exit_code, death.number, death.item) for death in deaths] == [(-signal.SIGKILL, 4, 40)]


def test_an_image_that_kills_twice_is_deadly(dataset):
    casualties = Casualties(dataset, tolerant=True)
    death = Death(pid=7, exit_code=-signal.SIGSEGV, number=5, item=SICK)
    assert casualties(death) == frozenset()
    assert casualties(death) == {SICK}
    told = casualties.since_the_last_batch()
    assert len(told) == 2
    assert told[0].startswith("process 7, which reads images, was ended by SIGSEGV in batch 5, reading ")
    assert f"{dataset.path(SICK)} (image {dataset.annotations.image_ids[SICK]} of" in told[0]
    assert casualties.since_the_last_batch() == []


def test_more_deaths_in_a_row_than_accidents_are_an_error(dataset):
    casualties = Casualties(dataset, tolerant=True)
    deaths = [Death(7, -signal.SIGKILL, 5, Watch.NOTHING)] * MOST_IN_A_ROW
    for death in deaths:
        casualties(death)
    casualties.since_the_last_batch()
    for death in deaths:
        casualties(death)
    with pytest.raises(
        DataError, match="the death number 4 in a row without a batch; most likely there was too little"
    ):
        casualties(deaths[0])


def test_a_dead_worker_is_an_error_with_signal_path_and_advice(dataset):
    casualties = Casualties(dataset, tolerant=False)
    with pytest.raises(DataError, match=r"SIGBUS in batch 5, reading no image; most likely /dev/shm is full.*replace"):
        casualties(Death(7, -signal.SIGBUS, 5, Watch.NOTHING))
    with pytest.raises(RuntimeError, match="exit code 1"):
        casualties(Death(7, 1, 5, Watch.NOTHING))


class Deadly(DetectionDataset):
    """Reading one image kills the process."""

    def read(self, index, view):
        if index == SICK:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, view)


@pytest.mark.parametrize("load", ["training", "evaluation"])
def test_an_image_that_kills_its_reader_is_got_over(shapes, folder, dataset, load):
    deadly = Deadly(dataset.annotations, folder)
    cut_off(folder / dataset.path(SICK).name)  # for the comparison: unreadable, too, but harmless

    def batches(source, **options):
        if load == "training":
            return train(source, workers=2, **options)
        return list(evaluation_loader(source, **EVALUATION, workers=2, **options))

    with pytest.raises(DataError, match=rf"was ended by SIGKILL in batch \d+, reading {dataset.path(SICK)} \(image"):
        batches(deadly)
    found, expected = (batches(source, on_unreadable="replace") for source in (deadly, dataset))
    for a, b in zip(found, expected, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
        assert (a.image_ids, a.unreadable) == (b.image_ids, b.unreadable)
    told = [w for batch in found for w in batch.warnings]
    assert sum("another goes on from there" in w for w in told) in (2, 3)  # 3: both workers were at it when one died
    assert any("reading it has killed two processes" in w for w in told)
