"""Detections by whole images, each image once: how every evaluator takes them. N images, D detections."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Bounds the memory of an evaluator's pairs and masks; more images at once are hardly faster.
IMAGES_PER_CHUNK = 256


class WholeImages:
    """Knows which of N images have come, and refuses those that come again."""

    def __init__(self, num_images: int) -> None:
        self._seen = np.zeros(num_images, bool)

    def chunks(
        self, image_index: ArrayLike, labels: ArrayLike, boxes_xywh: ArrayLike, scores: ArrayLike
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]:
        """The same columns, some whole images at a time; raises ValueError, before the first, if an image came before.

        Args:
            image_index: (D,) in [0, N), in any order; that of an image's detections is kept.
            labels: (D,).
            boxes_xywh: (D, 4).
            scores: (D,).
        """
        image_index, labels, scores = np.asarray(image_index, np.int64), np.asarray(labels), np.asarray(scores)
        boxes = np.asarray(boxes_xywh).reshape(-1, 4)
        order = np.argsort(image_index, kind="stable")
        images, starts = np.unique(image_index[order], return_index=True)
        self.register(images)
        for chunk in np.split(order, starts[IMAGES_PER_CHUNK::IMAGES_PER_CHUNK]):
            # Wider types by the chunk: all at once would double the memory of float32 detections.
            columns = labels[chunk].astype(np.int64), boxes[chunk].astype(float), scores[chunk].astype(float)
            yield image_index[chunk], *columns

    def register(self, images: NDArray[np.int64]) -> None:
        """Note that these images have come. Raises ValueError if one of them had come before."""
        again = images[self._seen[images]]
        if len(again):
            raise ValueError(
                f"{len(again)} images were evaluated twice, the first at index {again[0]}; add each image once"
            )
        self._seen[images] = True
