"""Which image is seen when: an endless stream of epochs, cut into full batches. N images, T objects, K classes."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_ORDER, _REPEATS, _WINDOW = 1, 2, 3  # set the random numbers of different uses apart
_WINDOW_BATCHES = 32


def repeat_factors(
    labels: NDArray, images: NDArray, *, num_images: int, threshold: float, power: float = 0.5
) -> NDArray[np.float64]:
    """How often each image should come in an epoch (Gupta et al. 2019, arXiv:1908.03195, section on repeat factors).

    r_c = max(1, (threshold / f_c) ** power), where f_c is the fraction of the images that hold class c; the paper has the
    square root. The factor of an image is the maximum over its classes; that of an image without objects is 1.

    Args:
        labels: (T,) class of each object.
        images: (T,) index of its image, in [0, num_images).
        threshold: classes in a smaller fraction of the images are repeated.
        power: 0 repeats nothing; 1 brings every class to the threshold, were there one class in an image.

    Returns:
        (N,) at least 1.
    """
    factors = np.ones(num_images)
    cell_labels, cell_images = occurrences(labels, images, num_images=num_images)
    image_counts = np.bincount(cell_labels)
    class_factors = (threshold / (image_counts.clip(min=1) / num_images)) ** power
    np.maximum.at(factors, cell_images, class_factors[cell_labels])
    return factors


def instance_factors(images: NDArray, *, num_images: int) -> NDArray[np.float64]:
    """Factors in proportion to each image's number of objects, 1 on average (Kang et al. 2020, arXiv:1910.09217, sec. 3).

    "Instance-balanced" as of detection: every object comes as often as any other. An image without objects never comes.

    Args:
        images: (T,) index of the image of each object, in [0, num_images).
    """
    return np.bincount(images, minlength=num_images) * (num_images / max(1, len(images)))


def occurrences(labels: NDArray, images: NDArray, *, num_images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) labels and (P,) images of the pairs of a class and an image that holds it, by rising label, then image.

    Args:
        labels, images: (T,) of each object.
    """
    return np.divmod(np.unique(np.asarray(labels, np.int64) * num_images + images), num_images)


class TrainingStream:
    """An endless stream of images, epoch after epoch, and the batches that are cut from it.

    The content of a step is a function of the arguments and the step alone: a resumed run goes on as if it had never
    stopped. Batches are always full: one may hold the end of an epoch and the beginning of the next.

    Args:
        num_images: N.
        batch_size: images per optimizer step, over all processes.
        factors: (N,) how often each image should come in an epoch; None for once.
        rounding: of the factors. "ceil": up, as the EFL reference does; "stochastic": up with the probability of the
            fraction, drawn anew for each epoch, as the LVIS paper and detectron2 do.
        legacy_order: shuffle an epoch by RandomState(seed + epoch), as the EFL reference does with seed 0.
        wide: (N,) whether an image is wide rather than tall. If given, every 32 batches of the stream are dealt so that
            at most one of them mixes wide with tall images, which saves padding.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        seed: int,
        factors: NDArray[np.float64] | None = None,
        rounding: Literal["ceil", "stochastic"] = "ceil",
        legacy_order: bool = False,
        wide: NDArray[np.bool_] | None = None,
    ):
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"expected at least one image and a batch of one, found {num_images} and {batch_size}")
        if any(array is not None and len(array) != num_images for array in (factors, wide)):
            raise ValueError(f"factors and wide must have one value for each of the {num_images} images")
        self.batch_size = batch_size
        self.seed = seed
        self._rounding = rounding
        self._legacy_order = legacy_order
        factors = np.ones(num_images) if factors is None else factors
        self._factors = np.ceil(factors) if rounding == "ceil" else factors
        self._wide = wide
        self._starts = [0]  # position at which each epoch begins, as far as known
        self._latest_epoch: tuple[int, NDArray[np.int64]] | None = None
        self._latest_window: tuple[int, NDArray[np.int64]] | None = None

    @property
    def epoch_length(self) -> float:
        """Positions in an epoch; with stochastic rounding, on average."""
        return float(self._factors.sum())

    def sequence(self, epoch: int) -> NDArray[np.int64]:
        """The images of an epoch in order."""
        if self._latest_epoch is None or self._latest_epoch[0] != epoch:
            self._latest_epoch = (epoch, self._drawn(epoch))
        return self._latest_epoch[1]

    def indices(self, positions: Sequence[int] | NDArray) -> NDArray[np.int64]:
        """The image at each position of the stream."""
        positions = np.asarray(positions, np.int64)
        while self._starts[-1] <= positions.max():
            self._starts.append(self._starts[-1] + int(self._repeats(len(self._starts) - 1).sum()))
        epochs = np.searchsorted(self._starts, positions, side="right") - 1
        images = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            images[here] = self.sequence(epoch)[positions[here] - self._starts[epoch]]
        return images

    def step(self, step: int) -> list[tuple[int, int]]:
        """The (image, position in the stream) pairs of one batch; positions are unique over all steps."""
        if self._wide is None:
            positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        else:
            window, batch = divmod(step, _WINDOW_BATCHES)
            positions = self._window(window)[batch]
        return list(zip(self.indices(positions).tolist(), positions.tolist(), strict=True))

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        """Each image as often as its rounded factor says."""
        images = np.repeat(np.arange(len(self._factors)), self._repeats(epoch))
        if self._legacy_order:
            return np.random.RandomState(self.seed + epoch).permutation(images)
        return np.random.default_rng((_ORDER, self.seed, epoch)).permutation(images)

    def _repeats(self, epoch: int) -> NDArray[np.int64]:
        whole = np.floor(self._factors)
        if self._rounding == "stochastic":
            draws = np.random.default_rng((_REPEATS, self.seed, epoch)).random(len(whole))
            whole = whole + (draws < self._factors - whole)
        return whole.astype(np.int64)

    def _window(self, window: int) -> NDArray[np.int64]:
        """(32, batch_size) positions: those of a window with wide images first, in batches that are then shuffled."""
        if self._latest_window is None or self._latest_window[0] != window:
            length = _WINDOW_BATCHES * self.batch_size
            positions = np.arange(window * length, (window + 1) * length)
            wide_first = positions[np.argsort(~self._wide[self.indices(positions)], kind="stable")]
            batches = wide_first.reshape(_WINDOW_BATCHES, self.batch_size)
            order = np.random.default_rng((_WINDOW, self.seed, window)).permutation(_WINDOW_BATCHES)
            self._latest_window = (window, batches[order])
        return self._latest_window[1]


class ClassAwareStream(TrainingStream):
    """A stream in which every class has its turn equally often (Shen et al. 2016, arXiv:1512.05830, section 3.2).

    An epoch is as long as the dataset. It goes round after round through the classes that have objects, in an order drawn
    for each round, and a class's turn shows the next of its images, in an order drawn for each pass through them. An image
    without objects never comes.

    Args:
        labels, images: (T,) class and image of each object, as `repeat_factors` wants them.
        num_images, batch_size, seed, wide: as of TrainingStream.
    """

    def __init__(
        self,
        labels: NDArray,
        images: NDArray,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
        wide: NDArray[np.bool_] | None = None,
    ):
        super().__init__(num_images, batch_size=batch_size, seed=seed, wide=wide)
        if len(labels) == 0:
            raise ValueError("class-aware sampling needs objects, found none")
        cell_labels, self._images = occurrences(labels, images, num_images=num_images)
        _, self._first, self._counts = np.unique(cell_labels, return_index=True, return_counts=True)

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        random = np.random.default_rng((_ORDER, self.seed, epoch))
        num_images, num_classes = len(self._factors), len(self._first)
        rounds = -(-num_images // num_classes)
        turns = np.stack([self._turns(k, rounds, random) for k in range(num_classes)], axis=1)  # (rounds, classes)
        order = random.permuted(np.broadcast_to(np.arange(num_classes), turns.shape), axis=1)
        return np.take_along_axis(turns, order, axis=1).ravel()[:num_images]

    def _turns(self, k: int, rounds: int, random: np.random.Generator) -> NDArray[np.int64]:
        """The images of the k-th class of those with objects in each round."""
        images = self._images[self._first[k] : self._first[k] + self._counts[k]]
        passes = -(-rounds // len(images))
        return random.permuted(np.broadcast_to(images, (passes, len(images))), axis=1).ravel()[:rounds]
