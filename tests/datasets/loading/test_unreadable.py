"""Images that cannot be read."""

import zlib
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from longshot.datasets import DataError, read_annotations
from longshot.datasets.errors import UnreadableImage
from longshot.datasets.images.augmentation import Augmentation
from longshot.datasets.images.transforms import View
from longshot.datasets.loading.batches import BatchLoader, EvaluationBatches, TrainingBatches, share_of_step
from longshot.datasets.loading.dataset import DetectionDataset
from longshot.datasets.loading.samplers import TrainingStream
from longshot.datasets.loading.scenes import draw_scenes, others_nearby
from longshot.datasets.loading.unreadable import MOST_TRIED, ShowingOthers, fitting

VIEW = {"short_sides": (24, 32), "long_side": 48, "flip": 0.5, "seed": 3}
EVALUATION = {"short_side": 32, "long_side": 48, "pad_multiple": 16, "batch_size": 3}
DAMAGED = 2  # index of the image that is made unreadable


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


def training_loader(dataset, *, steps=6, replace=False, rank=0, world_size=1, workers=0):
    stream = stream_of(dataset)
    draw = partial(draw_scenes, stream, size_of=dataset.size, augmentation=Augmentation(), **VIEW)
    share = share_of_step(4, 4 // world_size, rank, world_size)
    batches = TrainingBatches(dataset, stream, draw, share=share, pad_multiple=16, seed=3 if replace else None)
    return BatchLoader(batches, range(steps), workers=workers)


def evaluation_loader(dataset, *, replace=False, workers=0):
    batches = EvaluationBatches(dataset, **EVALUATION, replace=replace)
    return BatchLoader(batches, range(len(batches)), workers=workers)


def train(dataset, **options):
    return list(training_loader(dataset, **options))


@pytest.mark.parametrize("kind", SPOILED)
def test_an_unreadable_image_is_an_error_with_path_id_and_reason(dataset, kind):
    spoil, reason = SPOILED[kind]
    spoil(dataset.path(DAMAGED))
    told = f"{dataset.path(DAMAGED)}: .*{reason}.*image {dataset.annotations.image_ids[DAMAGED]} of .*data.on_unreadable=replace"
    for batches in (
        training_loader(dataset, steps=3),
        evaluation_loader(dataset, workers=1),
    ):
        with pytest.raises(DataError, match=told):
            list(batches)


@pytest.mark.parametrize("kind", SPOILED)
def test_training_shows_another_image_in_its_place_and_counts_it(dataset, kind):
    expected = train(dataset)
    spoil, reason = SPOILED[kind]
    spoil(dataset.path(DAMAGED))
    batches = train(dataset, replace=True)
    met = 0
    for batch, before in zip(batches, expected, strict=True):
        assert [image.shape for image in batch.images] == [image.shape for image in before.images]
        assert batch.padded_sizes == before.padded_sizes
        damaged = [i for i, index in enumerate(before.image_indices) if index == DAMAGED]
        assert batch.unreadable == (DAMAGED,) * len(damaged)
        assert len(batch.warnings) == bool(damaged)
        assert all(reason in w and w.endswith("another image is shown in its place") for w in batch.warnings)
        assert DAMAGED not in batch.image_indices
        met += len(damaged)
        for i, image in enumerate(batch.images):
            assert torch.equal(image, before.images[i]) == (i not in damaged)
            boxes, (height, width) = batch.targets[i].boxes, image.shape[1:]
            assert (boxes >= 0).all()
            assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert met > 1


def test_what_is_shown_depends_neither_on_workers_nor_on_processes(dataset):
    cut_off(dataset.path(DAMAGED))
    alone = train(dataset, replace=True)
    for other in (train(dataset, replace=True, workers=w) for w in (1, 2)):
        for a, b in zip(alone, other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
            assert (a.image_ids, a.unreadable, a.warnings) == (b.image_ids, b.unreadable, b.warnings)
    ranks = [train(dataset, replace=True, rank=r, world_size=2) for r in (0, 1)]
    for a, *parts in zip(alone, *ranks, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.images, [i for p in parts for i in p.images], strict=True))
        assert sum(len(part.unreadable) for part in parts) == len(a.unreadable)


def test_the_other_image_keeps_its_shape_and_its_boxes(dataset):
    def read(index, view):
        if index == DAMAGED:
            raise UnreadableImage("gone")
        return dataset.read(index, view)

    other = next(i for i in range(len(dataset)) if i != DAMAGED and dataset.size(i) == (96, 64))
    reader = ShowingOthers(read, iter([DAMAGED, other]), dataset.size)
    image, targets = reader(DAMAGED, View((32, 48), flip=False))
    assert image.shape == (3, 32, 48)
    alone, own = dataset.read(other, View((32, 21), flip=False))
    assert torch.equal(image[:, :, :21], alone)
    assert image[:, :, 21:].float().std(dim=(1, 2)).max() == 0
    np.testing.assert_allclose(targets.boxes, own.boxes, rtol=1e-6)
    assert (reader.unreadable, reader.shown, len(reader.warnings)) == ([DAMAGED], [other], 2)


def test_many_unreadable_images_in_a_row_are_an_error():
    def read(index, view):
        raise UnreadableImage(f"{index}: gone")

    reader = ShowingOthers(read, iter(range(1000)), lambda index: (64, 64))
    with pytest.raises(DataError, match=rf"^{MOST_TRIED - 1}: gone; nor can {MOST_TRIED} in a row be read"):
        reader(DAMAGED, View((32, 48), flip=False))


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
    cut_off(dataset.path(DAMAGED))
    batches = list(evaluation_loader(dataset, workers=workers, replace=True))
    assert sorted(i for batch in batches for i in batch.image_indices) == list(range(len(dataset)))
    (damaged,) = (batch for batch in batches if batch.unreadable)
    assert damaged.unreadable == (DAMAGED,)
    (warning,) = damaged.warnings
    assert warning.endswith("it is scored as an image in which nothing was detected")
    image, targets = ((c[damaged.image_indices.index(DAMAGED)]) for c in (damaged.images, damaged.targets))
    assert image.float().std(dim=(1, 2)).max() == 0
    assert len(targets.boxes) == 0


def test_each_warning_is_logged_once_an_iteration(dataset, caplog):
    cut_off(dataset.path(DAMAGED))
    loader = training_loader(dataset, replace=True)
    for iterations in (1, 2):
        batches = list(loader)
        assert sum(len(batch.warnings) for batch in batches) > 1
        messages = [record.getMessage() for record in caplog.records if record.name.startswith("longshot.datasets")]
        assert len(messages) == iterations
        assert set(messages) == {warning for batch in batches for warning in batch.warnings}
