"""What a batch holds, and how one is read. A batch is a function of the dataset, the seed and its number alone."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError, UnreadableImage
from ..images.transforms import View, resized_size
from .dataset import DetectionDataset, Targets
from .samplers import TrainingStream
from .scenes import Scene, others_nearby, read_scene, single
from .unreadable import SceneReader, ShowingNothing, ShowingOthers
from .workers import NOTHING, read_ahead

_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """The images of one process in one step, or of one evaluation batch."""

    images: list[Tensor]  # (3, h, w) uint8 RGB, not padded, channels last in memory
    targets: list[Targets]
    image_indices: list[int]  # into the annotations; of a mosaic or MixUp, its first image
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]  # height, width before resizing
    padded_sizes: list[tuple[int, int]]  # height, width that each image is to be padded to
    # Into the annotations: images that could not be read. In training others are shown; in evaluation, the mean color.
    unreadable: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()  # why not

    @property
    def padded_size(self) -> tuple[int, int]:
        """What all images are padded to. Raises ValueError where `pad_together` makes that several sizes."""
        (size,) = set(self.padded_sizes)
        return size


@dataclass(frozen=True)
class Packed:
    """A Batch on its way from a worker: one tensor, since each tensor there takes an open file of the 1,024 or so."""

    pixels: Tensor  # of all images, one after the other, each (h, w, 3)
    sizes: list[tuple[int, int]]
    batch: Batch  # without images, its targets as arrays

    def unpack(self) -> Batch:
        """The batch; its tensors are made here."""
        parts = self.pixels.split([3 * height * width for height, width in self.sizes])
        images = [part.view(*size, 3).permute(2, 0, 1) for part, size in zip(parts, self.sizes, strict=True)]
        targets = [Targets(*map(torch.from_numpy, arrays)) for arrays in self.batch.targets]
        return self.batch._replace(images=images, targets=targets)

    def pin_memory(self) -> "Packed":
        """Called by DataLoader, which would make lists of all tuples itself."""
        return replace(self, pixels=self.pixels.pin_memory())


class _Batches(Dataset):
    """What batches of training and of evaluation have in common: how images are read, in whichever process."""

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset
        self.reading = torch.full(
            (3,), NOTHING
        )  # its last two: batch and image; a worker's is shared, see `read_ahead`

    def _read(self, index: int, view: View) -> tuple[Tensor, Targets]:
        """As `DetectionDataset.read`; the main process learns of it, should this one crash."""
        self.reading[2] = index
        try:
            return self.dataset.read(index, view)
        finally:
            self.reading[2] = NOTHING

    def _packed(
        self, number: int, scenes: Sequence[Scene], padded_sizes: list, readers: Sequence[SceneReader]
    ) -> Packed | DataError:
        """The batch, or why there is none; without `readers` an image that cannot be read is a reason."""
        self.reading[1] = number
        try:
            images, targets = zip(*map(read_scene, readers or repeat(self._read), scenes), strict=True)
        except UnreadableImage as error:  # raised in a worker, it would reach the user with a traceback
            advice = "mend it, take it out of the annotations, or set data.on_unreadable=replace"
            return UnreadableImage(f"{error}; {advice}")
        except DataError as error:
            return error
        # What a scene stands for is its first image.
        shown = [scene.index for scene in scenes]
        if readers:
            shown = [(reader.shown or [index])[0] for reader, index in zip(readers, shown, strict=True)]
        unreadable = [index for reader in readers for index in reader.unreadable]
        image_indices = self.dataset.image_indices[shown].tolist()
        batch = Batch(
            images=[],
            targets=list(targets),
            image_indices=image_indices,
            image_ids=self.dataset.annotations.image_ids[image_indices].tolist(),
            original_sizes=[self.dataset.size(index) for index in shown],
            padded_sizes=padded_sizes,
            unreadable=tuple(self.dataset.image_indices[unreadable].tolist()) if unreadable else (),
            warnings=tuple(dict.fromkeys(warning for reader in readers for warning in reader.warnings)),
        )
        pixels = torch.cat([image.permute(1, 2, 0).flatten() for image in images])
        return Packed(pixels, [scene.size for scene in scenes], batch)


class TrainingBatches(_Batches):
    """One process's share of a training step, by the number of the step.

    Args:
        stream: of indices of `dataset`.
        draw: the scenes of a step of `stream`; see `draw_scenes`.
        share: which of them are this process's; see `share_of_step`.
        pad_multiple: both sides of padded sizes are multiples of it.
        pad_together: so many consecutive images of a step are padded to the size of the largest of them; None for all.
            Padding leaks into results, so that it must not depend on processes and passes.
        seed: of the images that are shown in place of unreadable ones (see `ShowingOthers`); None: those are an error.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        stream: TrainingStream,
        draw: Callable[[int], list[Scene]],
        *,
        share: list[int],
        pad_multiple: int,
        pad_together: int | None = None,
        seed: int | None = None,
    ):
        super().__init__(dataset)
        self._stream, self._draw, self._share, self._seed = stream, draw, share, seed
        self._pad_multiple, self._pad_together = pad_multiple, pad_together or stream.batch_size

    def __getitem__(self, step: int) -> Packed | DataError:
        """The batch, or why there is none."""
        scenes, together = self._draw(step), self._pad_together
        groups = [scenes[i : i + together] for i in range(0, len(scenes), together)]
        # Also those of other processes and passes.
        padded = [padded_size([scene.size for scene in group], self._pad_multiple) for group in groups]
        sizes = [padded[i // together] for i in self._share]
        readers = [] if self._seed is None else self._readers(step, self._seed)
        return self._packed(step, [scenes[i] for i in self._share], sizes, readers)

    def _readers(self, step: int, seed: int) -> list[SceneReader]:
        """One for each scene of this process's share."""
        positions = [position for _, position in self._stream.step(step)]
        others = [others_nearby(self._stream, positions[i], seed) for i in self._share]
        return [ShowingOthers(self._read, of_one, self.dataset.size) for of_one in others]


class EvaluationBatches(_Batches):
    """Batches that together hold every image once, by their numbers. The last may be short.

    Images of similar shape come together. The list of batches depends on the data and `batch_size` alone, and processes
    take whole batches from it, so that an image is padded alike whatever the number of processes.

    Args:
        replace: show nothing where an image cannot be read (see `ShowingNothing`); else that is an error.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        *,
        short_side: int,
        long_side: int,
        pad_multiple: int,
        batch_size: int,
        replace: bool = False,
    ):
        super().__init__(dataset)
        self._order = np.argsort(dataset.sizes[:, 0] / dataset.sizes[:, 1], kind="stable")
        self._resized = partial(resized_size, short_side=short_side, long_side=long_side)
        self._pad_multiple, self._batch_size, self._replace = pad_multiple, batch_size, replace

    def __len__(self) -> int:
        return -(-len(self.dataset) // self._batch_size)

    def __getitem__(self, number: int) -> Packed | DataError:
        """The batch, or why there is none."""
        indices = self._order[number * self._batch_size : (number + 1) * self._batch_size].tolist()
        scenes = [single(index, View(self._resized(self.dataset.size(index)), flip=False)) for index in indices]
        padded = padded_size([scene.size for scene in scenes], self._pad_multiple)
        readers = [ShowingNothing(self._read) for _ in scenes] if self._replace else []
        return self._packed(number, scenes, [padded] * len(scenes), readers)


class BatchLoader:
    """Batches by their numbers, in order; any number of workers gives the same bits. Can be iterated again and again.

    Iterating logs each warning of the batches once. It raises DataError for an image that cannot be read, if others are
    not shown instead, and for a worker that crashes.

    Args:
        workers: processes that read ahead; 0 reads in this one.
        pin_memory: for copies to a GPU; without workers there is nothing to gain.
    """

    def __init__(
        self,
        batches: TrainingBatches | EvaluationBatches,
        numbers: Sequence[int],
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ):
        self._batches, self._numbers, self._pin_memory = batches, numbers, pin_memory
        self._workers = min(workers, len(numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        logged: set[str] = set()
        # In no variable: the traceback of an error would keep the workers.
        for packed in self._ahead() if self._workers else map(self._batches.__getitem__, self._numbers):
            if isinstance(packed, DataError):
                raise packed
            batch = packed.unpack()
            for warning in batch.warnings:
                if warning not in logged:
                    _log.warning(warning)
            logged.update(batch.warnings)
            yield batch

    def _ahead(self) -> Iterator[Packed | DataError]:
        dataset = self._batches.dataset
        return read_ahead(
            self._batches, self._numbers, workers=self._workers, pin_memory=self._pin_memory,
            describe=lambda index: f"{dataset.path(index)} ({dataset.called(index)})",
        )  # fmt: skip


def share_of_step(batch_size: int, per_pass: int, rank: int, world_size: int) -> list[int]:
    """Which images of a step are those of process `rank`.

    They are dealt pass by pass, and within a pass rank by rank: pass p of rank r has the images
    [(p * world_size + r) * per_pass, … + per_pass) of the step. A Batch lists its passes in order.
    """
    return [i for i in range(batch_size) if i // per_pass % world_size == rank]


def padded_size(sizes: Sequence[tuple[int, int]], multiple: int) -> tuple[int, int]:
    """The smallest (height, width) of multiples of `multiple` that holds images of all these sizes."""
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    return height, width
