"""Images as the model sees them, augmented and padded, with their objects."""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...datasets.loading.batches import Batch
from ...datasets.loading.scenes import MEAN_COLOR
from ...losses import IGNORE
from .drawing import draw_boxes, sheet, titled


def batch_sheet(batches: Iterable[Batch], class_names: Sequence[str], *, count: int, columns: int = 4) -> NDArray:
    """(H, W, 3) uint8: the first `count` images of the batches as the model sees them, padding included.

    Objects have boxes in the color of their class, ignore regions are hatched, and a line marks the image in its padding.
    """
    seen = ((number, batch, i) for number, batch in enumerate(batches) for i in range(len(batch.images)))
    return sheet([_seen_by_model(*each, class_names) for each in islice(seen, count)], columns)


def _seen_by_model(number: int, batch: Batch, i: int, class_names: Sequence[str]) -> NDArray:
    """Image `i` of batch `number`."""
    (height, width), targets = batch.images[i].shape[-2:], batch.targets[i]
    padded = np.full((*batch.padded_sizes[i], 3), MEAN_COLOR, np.uint8)  # 0 after normalization, as padding is
    padded[:height, :width] = _hatched(batch.images[i].permute(1, 2, 0).numpy(), targets.ignore_boxes.numpy())
    padded = _outlined(padded, (height, width))
    labels, ignored = targets.labels.tolist(), len(targets.ignore_boxes)
    drawn = draw_boxes(
        padded,
        np.concatenate([targets.ignore_boxes.numpy(), targets.boxes.numpy()]),
        [IGNORE] * ignored + labels,
        ["ignore"] * ignored + [class_names[label] for label in labels],
        max_side=720,
    )
    return titled(drawn, f"batch {number}, image {batch.image_ids[i]}: {width} x {height}")


def _hatched(image: NDArray, boxes: NDArray) -> NDArray:
    """A copy of the (H, W, 3) image with diagonal stripes over the (M, 4) boxes."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    stripes = (x + y) // 3 % 2 == 0
    inside = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in boxes:
        inside |= (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    return np.where((inside & stripes)[:, :, None], image // 4 + 160, image).astype(np.uint8)


def _outlined(padded: NDArray, size: tuple[int, int]) -> NDArray:
    """The padded image with a white line just outside of its first `size` pixels."""
    picture = Image.fromarray(padded)
    ImageDraw.Draw(picture).line([(size[1], 0), (size[1], size[0]), (0, size[0])], fill="white")
    return np.asarray(picture)
