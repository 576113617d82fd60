"""Images with their targets, read one by one. N images; G objects and M ignore regions of an image; T objects of all."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..annotations.annotations import Annotations
from ..classes import Classes
from ..errors import DataError, UnreadableImage
from ..images.reading import check_images, clipped_boxes, read_image, usable_objects
from ..images.transforms import View, apply_view, visible_fraction
from .samplers import TrainingStream

# An object of which less than this fraction of its box is left in the crop can no longer be recognized: it is ignored.
MIN_CROPPED_FRACTION = 0.25
MIN_CROPPED_SIDE = 1.0  # pixels of the view: what a crop leaves of a box is dropped if a side is shorter


class Targets(NamedTuple):
    """What is to be found in an image; boxes are xyxy, pixels of the image as it is seen.

    NumPy arrays where an image is read; tensors are made of them once, for a Batch.
    """

    boxes: Tensor  # (G, 4) float32
    labels: Tensor  # (G,) int64 in [0, K)
    ignore_boxes: Tensor  # (M, 4) float32: crowd, ignore, and what a crop has left of an object, if it is little


class DetectionDataset:
    """The images of an annotation file, and how to read one of them.

    Index i means image `image_indices[i]` of the annotations. `report` says which boxes are left out.

    Args:
        images: the folder which the file names are relative to.
        keep_empty: False leaves out images without objects (not counting crowd and ignore).
        antialias: see `apply_view`.
        allow_missing: less than half of the images may be missing: reading those is an error.

    Raises:
        DataError: images are missing, or there is not one usable box.
    """

    last_pixel = 0  # see `apply_view`

    def __init__(
        self,
        annotations: Annotations,
        images: Path | str,
        *,
        keep_empty: bool = True,
        antialias: bool = True,
        allow_missing: bool = False,
    ):
        check_images(annotations, images, allow_missing=allow_missing)
        self.annotations = annotations
        self.images = Path(images)
        self._usable, self.report = usable_objects(annotations)
        self._learned = self._usable & ~annotations.crowd & ~annotations.ignore
        self._antialias = antialias
        self.image_indices = np.arange(len(annotations.image_ids)) if keep_empty else self._not_empty()

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(N, 2) height and width of each image, by the annotations."""
        return self.annotations.image_sizes[self.image_indices]

    def __len__(self) -> int:
        return len(self.image_indices)

    def learned_objects(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Labels (T,) and indices of the images (T,) of all objects that are learned, as `repeat_factors` wants them."""
        here = self._learned & np.isin(self.annotations.object_images, self.image_indices)
        owners = self.annotations.object_images[here]
        return self.annotations.labels[here], np.searchsorted(self.image_indices, owners)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, by the annotations."""
        height, width = self.annotations.image_sizes[self.image_indices[index]].tolist()
        return height, width

    def path(self, index: int) -> Path:
        """Where an image lies."""
        return self.images / str(self.annotations.file_names[self.image_indices[index]])

    def called(self, index: int) -> str:
        """The id of an image and whose it is, for messages."""
        return f"image {self.annotations.image_ids[self.image_indices[index]]} of {self.annotations.path}"

    def read(self, index: int, view: View) -> tuple[Tensor, Targets]:
        """An image, (3, h, w) uint8, and its targets, NumPy arrays, as `view` shows them.

        Where the view crops, an object counts if at least a quarter of its box is left; less than that is ignored. Boxes of
        which less than a pixel is left in height or width are dropped.

        Raises:
            UnreadableImage: the file is missing, damaged, or not of the size that the annotations give.
        """
        image = int(self.image_indices[index])
        try:
            pixels = read_image(self.path(index), self.size(index))
        except DataError as error:
            raise UnreadableImage(f"{error} ({self.called(index)})") from error
        objects = self.annotations.objects(image)
        usable = self._usable[objects]
        labels, learned = self.annotations.labels[objects][usable], self._learned[objects][usable]
        whole = clipped_boxes(self.annotations.boxes_xywh[objects][usable], self.annotations.image_sizes[image])
        tensor, boxes = apply_view(pixels, whole, view, antialias=self._antialias, last_pixel=self.last_pixel)
        if view.crop:
            learned &= visible_fraction(whole, view.crop) >= MIN_CROPPED_FRACTION
            large = (boxes[:, 2:] - boxes[:, :2] >= MIN_CROPPED_SIDE).all(axis=1)
            boxes, labels, learned = boxes[large], labels[large], learned[large]
        return tensor, Targets(boxes[learned], labels[learned].astype(np.int64), boxes[~learned])

    def _not_empty(self) -> NDArray[np.int64]:
        """Indices of the images to learn from; see the class."""
        return np.unique(self.annotations.object_images[self._learned])


class Splits(NamedTuple):
    """Both splits of a dataset, their classes, and the order of training images."""

    train: DetectionDataset
    val: DetectionDataset
    classes: Classes
    stream: TrainingStream
