"""Batches of images and targets, read by worker processes.

A batch is a function of the dataset, the seed and its number alone: any number of workers gives the same bits.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .augmentation import Augmentation
from .dataset import DetectionDataset, Targets
from .errors import DataError
from .samplers import TrainingStream
from .scenes import Scene, draw_scenes, read_scene, single
from .transforms import View, resized_size


class Batch(NamedTuple):
    """The images of one process in one step, or of one evaluation batch."""

    images: list[Tensor]  # (3, h, w) uint8 RGB, not padded, channels last in memory
    targets: list[Targets]
    image_indices: list[int]  # into the annotations; of a mosaic or MixUp, its first image
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]  # height, width before resizing
    padded_sizes: list[tuple[int, int]]  # height, width that each image is to be padded to

    @property
    def padded_size(self) -> tuple[int, int]:
        """What all images are padded to. Raises ValueError where `pad_together` makes that several sizes."""
        (size,) = set(self.padded_sizes)
        return size


class BatchLoader:
    """Batches by their numbers, in order, read ahead by worker processes. Can be iterated again and again.

    Iterating raises DataError for an image that cannot be read.
    """

    def __init__(self, batches: Dataset, numbers: Sequence[int], workers: int):
        self._loader = DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_outlive_termination,
            generator=torch.Generator(),  # else each iteration would draw from torch's global random numbers
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for packed in self._loader:
            if isinstance(packed, DataError):
                raise packed
            yield packed.unpack()


def training_loader(
    dataset: DetectionDataset,
    stream: TrainingStream,
    *,
    short_sides: Sequence[int],
    long_side: int,
    flip: float,
    pad_multiple: int,
    seed: int,
    start_step: int,
    num_steps: int,
    augmentation: Augmentation | None = None,
    images_per_pass: int | None = None,
    pad_together: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> BatchLoader:
    """This process's share of the batches of steps start_step, …, start_step + num_steps - 1.

    A step's images are dealt pass by pass, and within a pass rank by rank: pass p of rank r has the images
    [(p * world_size + r) * images_per_pass, … + images_per_pass) of the step. A Batch lists its passes in order.

    Args:
        stream: of indices of `dataset`.
        short_sides, long_side, flip: of the random views, see `draw_view`.
        augmentation: beyond resizing and flipping; none by default.
        pad_multiple: both sides of padded sizes are multiples of it.
        images_per_pass: None for all of a process's images at once.
        pad_together: so many consecutive images of a step are padded to the size of the largest of them; None for all.
            Padding leaks into results, so that it must not depend on processes and passes.
        workers: processes that read images; 0 reads in this one.

    Raises:
        ValueError: the batch cannot be dealt evenly, or a pass would hold images of several padded sizes.
    """
    per_pass = images_per_pass or stream.batch_size // world_size
    if per_pass == 0 or stream.batch_size % (per_pass * world_size):
        raise ValueError(
            f"batch_size {stream.batch_size} is not divisible by {world_size} processes times {per_pass} images per pass"
        )
    if pad_together and pad_together % per_pass:
        raise ValueError(
            f"pad_together {pad_together} is not a multiple of {per_pass} images per pass, which are computed in one size"
        )
    share = [i for i in range(stream.batch_size) if i // per_pass % world_size == rank]
    draw = partial(
        draw_scenes, stream, size_of=dataset.size, augmentation=augmentation or Augmentation(), seed=seed,
        short_sides=tuple(short_sides), long_side=long_side, flip=flip,
    )  # fmt: skip
    batches = _TrainingBatches(dataset, draw, pad_multiple, pad_together or stream.batch_size, share)
    return BatchLoader(batches, range(start_step, start_step + num_steps), workers)


def evaluation_loader(
    dataset: DetectionDataset,
    *,
    short_side: int,
    long_side: int,
    pad_multiple: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> BatchLoader:
    """This process's share of batches that together hold every image once; can be iterated again and again.

    Images of similar shape come together. The list of batches depends on the data and `batch_size` alone, and processes
    take whole batches from it, so that an image is padded alike whatever the number of processes. The last may be short.
    """
    order = np.argsort(dataset.sizes[:, 0] / dataset.sizes[:, 1], kind="stable")
    view = partial(_test_view, short_side=short_side, long_side=long_side)
    batches = _EvaluationBatches(dataset, order, batch_size, view, pad_multiple)
    return BatchLoader(batches, range(rank, -(-len(dataset) // batch_size), world_size), workers)


def padded_size(sizes: Sequence[tuple[int, int]], multiple: int) -> tuple[int, int]:
    """The smallest (height, width) of multiples of `multiple` that holds images of all these sizes."""
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    return height, width


class _TrainingBatches(Dataset):
    """One process's share of a training step, by the number of the step."""

    def __init__(
        self, dataset: DetectionDataset, draw: Callable, pad_multiple: int, pad_together: int, share: list[int]
    ):
        self.dataset, self.draw, self.share = dataset, draw, share
        self.pad_multiple, self.pad_together = pad_multiple, pad_together

    def __getitem__(self, step: int) -> "_Packed | DataError":
        scenes = self.draw(step)
        together = [scenes[i : i + self.pad_together] for i in range(0, len(scenes), self.pad_together)]
        # Also those of other processes and passes.
        padded = [padded_size([scene.size for scene in group], self.pad_multiple) for group in together]
        sizes = [padded[i // self.pad_together] for i in self.share]
        return _read(self.dataset, [scenes[i] for i in self.share], sizes)


class _EvaluationBatches(Dataset):
    """Consecutive images of `order`, by the number of the batch."""

    def __init__(self, dataset: DetectionDataset, order: NDArray, batch_size: int, view: Callable, pad_multiple: int):
        self.dataset, self.order, self.batch_size = dataset, order, batch_size
        self.view, self.pad_multiple = view, pad_multiple

    def __getitem__(self, number: int) -> "_Packed | DataError":
        indices = self.order[number * self.batch_size : (number + 1) * self.batch_size].tolist()
        scenes = [single(index, self.view(self.dataset.size(index))) for index in indices]
        padded = padded_size([scene.size for scene in scenes], self.pad_multiple)
        return _read(self.dataset, scenes, [padded] * len(scenes))


def _test_view(size: tuple[int, int], *, short_side: int, long_side: int) -> View:
    return View(resized_size(size, short_side, long_side), flip=False)


class _Packed(NamedTuple):
    """A Batch on its way from a worker: one tensor, since each tensor there takes an open file of the 1,024 or so."""

    pixels: Tensor  # of all images, one after the other, each (h, w, 3)
    sizes: list[tuple[int, int]]
    targets: list[tuple[NDArray, ...]]
    image_indices: list[int]
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]
    padded_sizes: list[tuple[int, int]]

    def unpack(self) -> Batch:
        parts = self.pixels.split([3 * height * width for height, width in self.sizes])
        return Batch(
            images=[part.view(*size, 3).permute(2, 0, 1) for part, size in zip(parts, self.sizes, strict=True)],
            targets=[Targets(*map(torch.from_numpy, arrays)) for arrays in self.targets],
            image_indices=self.image_indices,
            image_ids=self.image_ids,
            original_sizes=self.original_sizes,
            padded_sizes=self.padded_sizes,
        )


def _read(dataset: DetectionDataset, scenes: list[Scene], padded_sizes: list) -> _Packed | DataError:
    try:
        images, targets = zip(*(read_scene(dataset, scene) for scene in scenes), strict=True)
    except DataError as error:
        return error  # raised in a worker, it would reach the user wrapped in a traceback
    image_indices = [int(dataset.image_indices[scene.index]) for scene in scenes]
    return _Packed(
        pixels=torch.cat([image.permute(1, 2, 0).flatten() for image in images]),
        sizes=[scene.size for scene in scenes],
        targets=[tuple(tensor.numpy() for tensor in target) for target in targets],
        image_indices=image_indices,
        image_ids=dataset.annotations.image_ids[image_indices].tolist(),
        original_sizes=[dataset.size(scene.index) for scene in scenes],
        padded_sizes=padded_sizes,
    )


def _unchanged(batch: object) -> object:
    return batch


def _outlive_termination(_: int) -> None:
    # Batch systems send SIGTERM to all processes of a job. One that finishes its step and saves needs its workers until
    # then; they end when it does. A second SIGTERM is that of a parent that cannot wait for a stuck worker.
    def ignore_once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_once)
