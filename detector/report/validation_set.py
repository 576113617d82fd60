"""What detections are judged against, and what is known of its classes. K classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.annotations.annotations import Annotations
from ..evaluation import GroundTruth, summarize
from ..evaluation.columnar import Curves

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}


@dataclass(frozen=True)
class Subject:
    """A validation set under a protocol."""

    annotations: Annotations
    ground_truth: GroundTruth
    frequencies: Sequence[str] | None  # "r", "c" or "f" per class
    train_images: Sequence[int] | None  # training images per class

    @property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """The (K,) members of each group of classes: all, and r, c, f where the frequencies are known."""
        every = {"all": np.ones(self.ground_truth.num_classes, bool)}
        if self.frequencies is None:
            return every
        return every | {group: np.array(self.frequencies) == group for group in GROUPS}

    def summarize(self, curves: Curves, score_threshold: float | None = None) -> dict:
        """`evaluation.summarize` with what is known here."""
        return summarize(
            curves,
            self.ground_truth,
            category_ids=self.annotations.category_ids.tolist(),
            class_names=self.annotations.class_names,
            frequencies=self.frequencies,
            train_image_counts=self.train_images,
            score_threshold=score_threshold,
        )

    @property
    def description(self) -> str:
        """The annotations in a line."""
        known = self.annotations
        sizes = f"{len(known.image_ids)} images, {len(known.labels)} objects, {len(known.category_ids)} classes"
        return f"{known.path}: {sizes}"

    def path(self, image: int) -> str:
        """The file of an image, relative to the folder of images."""
        return str(self.annotations.file_names[image])


def mean_of(values: NDArray[np.float64], members: NDArray[np.bool_]) -> float | None:
    """The mean of the (K,) values of a group that are numbers; None without any."""
    known = values[members & ~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def plain(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)
