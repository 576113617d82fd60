"""What a batch holds, and how one is read. A batch is a function of the dataset, the seed and its number alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..images.transforms import View
from .dataset import DetectionDataset, Targets
from .samplers import TrainingStream
from .scenes import Read, Scene, SceneReader, others_nearby, read_scene, single
from .unreadable import ShowingOthers


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


class Packed(NamedTuple):
    """A Batch on its way from a worker: one tensor, since each tensor there takes an open file of the 1,024 or so."""

    pixels: Tensor  # of all images, one after the other, each (h, w, 3)
    sizes: list[tuple[int, int]]
    targets: list[tuple[NDArray, ...]]
    rest: dict[str, Any]  # the other fields of the Batch

    def pin_memory(self) -> "Packed":
        """The same with pixels that go to a GPU while the host goes on; DataLoader asks for it."""
        return self._replace(pixels=self.pixels.pin_memory())

    def unpack(self) -> Batch:
        """The batch."""
        parts = self.pixels.split([3 * height * width for height, width in self.sizes])
        images = [part.view(*size, 3).permute(2, 0, 1) for part, size in zip(parts, self.sizes, strict=True)]
        targets = [Targets(*map(torch.from_numpy, arrays)) for arrays in self.targets]
        return Batch(images=images, targets=targets, **self.rest)


class TrainingBatches:
    """One process's share of a training step, by the number of the step.

    Args:
        draw: gives the scenes of a step of `stream`.
        share: which of them are this process's.
        seed: of the images that are shown in place of unreadable ones; None: those are an error.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        stream: TrainingStream,
        draw: Callable[[int], list[Scene]],
        *,
        pad_multiple: int,
        pad_together: int,
        share: list[int],
        seed: int | None,
    ):
        self.dataset, self._stream, self._draw, self._share, self._seed = dataset, stream, draw, share, seed
        self._pad_multiple, self._pad_together = pad_multiple, pad_together

    def __call__(self, step: int, read: Read) -> Packed | DataError:
        """The batch, or why there is none; `read` is `DetectionDataset.read`, or what stands for it."""
        scenes = self._draw(step)
        together = [scenes[i : i + self._pad_together] for i in range(0, len(scenes), self._pad_together)]
        # Also those of other processes and passes.
        padded = [padded_size([scene.size for scene in group], self._pad_multiple) for group in together]
        sizes = [padded[i // self._pad_together] for i in self._share]
        return _read(self.dataset, [scenes[i] for i in self._share], self._readers(step, read), sizes)

    def _readers(self, step: int, read: Read) -> list[SceneReader]:
        """One for each scene of this process's share."""
        if self._seed is None:
            return [SceneReader(read) for _ in self._share]
        positions = [position for _, position in self._stream.step(step)]
        others = [others_nearby(self._stream, positions[i], self._seed) for i in self._share]
        return [ShowingOthers(read, of_one, self.dataset.size) for of_one in others]


class EvaluationBatches:
    """Consecutive images of `order`, by the number of the batch.

    Args:
        view: how an image of a (height, width) is seen.
        reader: of each image.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        order: NDArray,
        view: Callable[[tuple[int, int]], View],
        *,
        batch_size: int,
        pad_multiple: int,
        reader: type[SceneReader],
    ):
        self.dataset, self._order, self._view, self._reader = dataset, order, view, reader
        self._batch_size, self._pad_multiple = batch_size, pad_multiple

    def __call__(self, number: int, read: Read) -> Packed | DataError:
        """The batch, or why there is none."""
        indices = self._order[number * self._batch_size : (number + 1) * self._batch_size].tolist()
        scenes = [single(index, self._view(self.dataset.size(index))) for index in indices]
        readers = [self._reader(read) for _ in scenes]
        padded = padded_size([scene.size for scene in scenes], self._pad_multiple)
        return _read(self.dataset, scenes, readers, [padded] * len(scenes))


def padded_size(sizes: Sequence[tuple[int, int]], multiple: int) -> tuple[int, int]:
    """The smallest (height, width) of multiples of `multiple` that holds images of all these sizes."""
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    return height, width


def _read(
    dataset: DetectionDataset, scenes: Sequence[Scene], readers: Sequence[SceneReader], padded_sizes: list
) -> Packed | DataError:
    try:
        images, targets = zip(*map(read_scene, readers, scenes), strict=True)
    except DataError as error:
        return error  # raised in a worker, it would reach the user without what is known here
    # What a scene stands for is its first image.
    shown = [(reader.shown or [scene.index])[0] for reader, scene in zip(readers, scenes, strict=True)]
    unreadable = [index for reader in readers for index in reader.unreadable]
    image_indices = dataset.image_indices[shown].tolist()
    rest = {
        "image_indices": image_indices,
        "image_ids": dataset.annotations.image_ids[image_indices].tolist(),
        "original_sizes": [dataset.size(index) for index in shown],
        "padded_sizes": padded_sizes,
        "unreadable": tuple(dataset.image_indices[unreadable].tolist()) if unreadable else (),
        "warnings": tuple(dict.fromkeys(warning for reader in readers for warning in reader.warnings)),
    }
    pixels = torch.cat([image.permute(1, 2, 0).flatten() for image in images])
    arrays = [tuple(tensor.numpy() for tensor in target) for target in targets]
    return Packed(pixels, [scene.size for scene in scenes], arrays, rest)
