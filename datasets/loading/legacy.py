"""Targets of models of the time when a box from x1 to x2 was x2 - x1 + 1 wide (`model.legacy_offset`)."""

import numpy as np
from numpy.typing import NDArray

from ..images.reading import clipped_boxes
from .dataset import DetectionDataset


class LegacyDataset(DetectionDataset):
    """As United-Perception reads: the first and the last pixel of boxes are scaled, not their edges, and objects at most 1
    pixel wide or high are no targets. An image with one such object and no other is left out where empty ones are."""

    last_pixel = 1

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        known = self.annotations
        boxes = clipped_boxes(known.boxes_xywh, known.image_sizes[known.object_images])
        self._usable = self._usable & (boxes[:, 2:] - boxes[:, :2] > 1).all(axis=1)

    def _not_empty(self) -> NDArray[np.int64]:
        known, images = self.annotations, super()._not_empty()
        owners = known.object_images[self._learned]
        _, image_of_object, counts = np.unique(owners, return_inverse=True, return_counts=True)
        thin = (known.boxes_xywh[self._learned, 2:] <= 1).any(axis=1)
        return np.setdiff1d(images, owners[thin & (counts[image_of_object] == 1)])
