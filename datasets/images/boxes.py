"""Which annotated boxes can be learned from, and how they are cut to the image."""

import numpy as np
from numpy.typing import NDArray

from ..annotations.annotations import Annotations
from ..errors import DataError

# In float32 a thinner box can vanish after resizing, and the logarithm of its width would then be -inf.
MIN_SIDE = 0.01


def clipped_boxes(boxes_xywh: NDArray, sizes: NDArray) -> NDArray[np.float64]:
    """xyxy boxes, clipped to their images.

    Args:
        boxes_xywh: (T, 4), pixels.
        sizes: (T, 2) height and width of each box's image, or (2,) of all.
    """
    low, high = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    limit = np.broadcast_to(sizes[..., ::-1], low.shape)
    return np.concatenate([low.clip(0, limit), high.clip(0, limit)], axis=1).astype(np.float64)


def usable_objects(annotations: Annotations) -> tuple[NDArray[np.bool_], str]:
    """Which objects have a box to learn from, and a line about the others ("" if there are none).

    Returns:
        (T,) False where a coordinate is NaN or infinite, a side is below 0.01 pixels, or the box is outside its image;
        and the number and first annotation ids of each kind.

    Raises:
        DataError: no object is left that is neither crowd nor ignore.
    """
    boxes = annotations.boxes_xywh
    sizes = annotations.image_sizes[annotations.object_images]
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(boxes).all(axis=1)
        has_area = (boxes[:, 2:] >= MIN_SIDE).all(axis=1)
        clipped = clipped_boxes(boxes, sizes)
        inside = (clipped[:, 2:] - clipped[:, :2] >= MIN_SIDE).all(axis=1)
    bad = {
        "NaN or infinite": ~finite,
        "without area": finite & ~has_area,
        "outside the image": finite & has_area & ~inside,
    }
    usable = finite & has_area & inside
    kinds = [
        f"{mask.sum()} {kind} (annotations {_first(annotations, mask)})" for kind, mask in bad.items() if mask.any()
    ]
    report = (
        f"{annotations.path}: {(~usable).sum()} of {len(usable)} boxes left out: {', '.join(kinds)}" if kinds else ""
    )
    special = annotations.crowd | annotations.ignore
    if not (usable & ~special).any():
        raise DataError(
            f"{annotations.path}: not one object to learn from among {len(usable)} annotations; {special.sum()} are crowd or "
            f"ignore. {report}".rstrip()
        )
    return usable, report


def _first(annotations: Annotations, mask: NDArray) -> str:
    ids = annotations.annotation_ids[mask]
    return ", ".join(map(str, ids[:5])) + (", …" if len(ids) > 5 else "")
