"""Batches of images and targets, read ahead by worker processes: any number of them gives the same bits."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np

from ..errors import DataError, UnreadableImage
from ..images.augmentation import Augmentation
from ..images.transforms import View, resized_size
from .batches import Batch, EvaluationBatches, Packed, TrainingBatches
from .dataset import DetectionDataset
from .samplers import TrainingStream
from .scenes import SceneReader, draw_scenes
from .unreadable import ShowingNothing
from .workers import read_ahead

_log = logging.getLogger(__name__)

class BatchLoader:
    """Batches by their numbers, in order, read ahead by worker processes. Can be iterated again and again.

    Iterating raises DataError for a worker that dies, and for an image that cannot be read unless it is to be replaced.
    What a batch warns of is logged, each warning once.
    """

    def __init__(self, batches: TrainingBatches | EvaluationBatches, numbers: Sequence[int], workers: int):
        self._batches, self._numbers, self._workers = batches, numbers, workers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        logged: set[str] = set()
        for packed in self._packed():
            if isinstance(packed, UnreadableImage):
                raise UnreadableImage(
                    f"{packed}; mend it, take it out of the annotations, or set data.on_unreadable=replace"
                )
            if isinstance(packed, DataError):
                raise packed
            for warning in packed.rest["warnings"]:
                if warning not in logged:
                    logged.add(warning)
                    _log.warning(warning)
            yield packed.unpack()

    def _packed(self) -> Iterator[Packed | DataError]:
        if self._workers == 0:
            return (self._batches(number, self._batches.dataset.read) for number in self._numbers)
        return read_ahead(self._batches, self._numbers, self._workers)


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
    on_unreadable: Literal["stop", "replace"] = "stop",
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
        on_unreadable: "replace" shows another image in place of one that cannot be read (see `ShowingOthers`).

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
    batches = TrainingBatches(
        dataset, stream, draw, pad_multiple=pad_multiple, pad_together=pad_together or stream.batch_size, share=share,
        seed=seed if on_unreadable == "replace" else None,
    )  # fmt: skip
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
    on_unreadable: Literal["stop", "replace"] = "stop",
) -> BatchLoader:
    """This process's share of batches that together hold every image once; can be iterated again and again.

    Images of similar shape come together. The list of batches depends on the data and `batch_size` alone, and processes
    take whole batches from it, so that an image is padded alike whatever the number of processes. The last may be short.

    Args:
        on_unreadable: "replace" shows nothing where an image cannot be read (see `ShowingNothing`).
    """
    order = np.argsort(dataset.sizes[:, 0] / dataset.sizes[:, 1], kind="stable")
    view = partial(_test_view, short_side=short_side, long_side=long_side)
    batches = EvaluationBatches(
        dataset, order, view, batch_size=batch_size, pad_multiple=pad_multiple,
        reader=ShowingNothing if on_unreadable == "replace" else SceneReader,
    )  # fmt: skip
    return BatchLoader(batches, range(rank, -(-len(dataset) // batch_size), world_size), workers)


def _test_view(size: tuple[int, int], *, short_side: int, long_side: int) -> View:
    return View(resized_size(size, short_side, long_side), flip=False)
