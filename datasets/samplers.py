"""Which image is seen when: an endless stream of epochs, cut into full batches. N images, T objects, K classes."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_ORDER, _REPEATS, _WINDOW = 1, 2, 3  # set the random numbers of different uses apart
_WINDOW_BATCHES = 32


def repeat_factors(labels: NDArray, images: NDArray, *, num_images: int, threshold: float) -> NDArray[np.float64]:
    """How often each image should come in an epoch (Gupta et al. 2019, arXiv:1908.03195, section on repeat factors).

    r_c = max(1, sqrt(threshold / f_c)), where f_c is the fraction of the images that hold class c. The factor of an image
    is the maximum over its classes; that of an image without objects is 1.

    Args:
        labels: (T,) class of each object.
        images: (T,) index of its image, in [0, num_images).
        threshold: classes in a smaller fraction of the images are repeated.

    Returns:
        (N,) at least 1.
    """
    factors = np.ones(num_images)
    if len(labels) == 0:
        return factors
    cells = np.unique(np.stack([images, labels]).astype(np.int64), axis=1)
    image_counts = np.bincount(cells[1])
    class_factors = np.sqrt(threshold / (image_counts.clip(min=1) / num_images)).clip(min=1)
    np.maximum.at(factors, cells[0], class_factors[cells[1]])
    return factors


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
        wide: NDArray[np.bool_] | None = None,
    ):
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"expected at least one image and a batch of one, found {num_images} and {batch_size}")
        if any(array is not None and len(array) != num_images for array in (factors, wide)):
            raise ValueError(f"factors and wide must have one value for each of the {num_images} images")
        self.batch_size = batch_size
        self.seed = seed
        self._rounding = rounding
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
        """The images of an epoch in order: each as often as its rounded repeat factor says."""
        if self._latest_epoch is None or self._latest_epoch[0] != epoch:
            images = np.repeat(np.arange(len(self._factors)), self._repeats(epoch))
            order = np.random.default_rng((_ORDER, self.seed, epoch)).permutation(len(images))
            self._latest_epoch = (epoch, images[order])
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
