"""What detections are judged against, and what is known of its classes. K classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.annotations.annotations import Annotations
from ...datasets.classes import Classes
from ..evaluation.ground_truth import GroundTruth

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}


@dataclass(frozen=True)
class ValidationSet:
    """A file of annotations under a protocol, with its classes as the training set has them, if that is known."""

    annotations: Annotations
    ground_truth: GroundTruth
    classes: Classes

    @property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """The (K,) members of each group of classes: all, and r, c, f where the frequencies are known."""
        every = {"all": np.ones(self.ground_truth.num_classes, bool)}
        if self.classes.frequencies is None:
            return every
        return every | {group: np.array(self.classes.frequencies) == group for group in GROUPS}

    @property
    def ids(self) -> dict[str, Any]:
        """What files of detections bear of it, by the names that `read_results` and `write_results` have for that."""
        return ids_of(self.annotations)

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


def ids_of(annotations: Annotations) -> dict[str, Any]:
    """What files of detections bear of a file of annotations: see `ValidationSet.ids`."""
    return {
        "image_ids": annotations.image_ids,
        "category_ids": annotations.category_ids,
        "class_names": annotations.class_names,
    }
