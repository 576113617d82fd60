"""Boxes that cannot be learned from, or hardly mean what they say. T objects."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..images.transforms import MIN_SIDE, clipped_boxes
from .findings import Finding, found
from .records import Records

_SLACK = 1.0  # pixels that boxes may stick out: they were rounded, or count pixels from 1
_ROUNDING = 1e-3  # pixels: corners were float32 once


def check_boxes(records: Records) -> list[Finding]:
    """Boxes that are not finite, empty, outside of their images, repeated; areas; images without objects."""
    objects = records.content.objects
    boxes, four = objects.boxes_xywh
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(boxes).all(axis=1)
        has_area = finite & (boxes[:, 2:] >= MIN_SIDE).all(axis=1)
        out, beyond = _outside(records, has_area)
        small = has_area & (boxes >= 0).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] <= 1).all(axis=1)
    describe = _describe(records)
    bad = [
        ("error", "boxes with NaN or infinite numbers", four & ~finite),
        ("error", f"boxes without area (a side below {MIN_SIDE} pixels)", finite & ~has_area),
        ("error", "boxes outside their image", out),
        ("warning", f"boxes that leave their image by more than {_SLACK:g} pixel", ~out & (beyond > _SLACK)),
        ("note", f"boxes that leave their image by {_SLACK:g} pixel or less", ~out & (beyond > 0) & (beyond <= _SLACK)),
        ("warning", "boxes that repeat one of the same image and class", _repeats(records, finite)),
    ]
    findings = [f for severity, what, mask in bad for f in records.rows(severity, what, mask, describe)]
    if has_area.any() and small[has_area].all():
        findings += records.rows(
            "error", "boxes as fractions of the image, not pixels: all are within 0..1", small, describe
        )
    no_area = objects.areas.usable & (objects.areas.values <= 0)
    findings += records.rows("warning", "annotations with an area of 0 or less, which LVIS does not score", no_area,
                             lambda i: f"{records.annotation(i)} (area {objects.areas.values[i]:g})")  # fmt: skip
    return findings + _check_objects(records, has_area & ~out)


def _check_objects(records: Records, usable: NDArray[np.bool_]) -> list[Finding]:
    """Crowd and ignore, images without objects; `usable` (T,) says which boxes can be learned from."""
    objects, num_images = records.content.objects, len(records.content.images)
    special = objects.crowd.values | objects.ignore.values
    learned = usable & ~special & (records.owners >= 0) & (records.labels >= 0)
    findings = records.rows("note", "crowd annotations", objects.crowd.values, records.annotation)
    findings += records.rows("note", "annotations to ignore", objects.ignore.values, records.annotation)
    if num_images and records.content.categories and not learned.any():
        return findings + found(
            records.split, "error", "not one object to learn from", [f"0 of {len(learned)} annotations"]
        )
    empty = np.bincount(records.owners[learned], minlength=num_images) == 0
    return findings + records.rows("note", "images without objects", empty, records.image)


def _outside(records: Records, boxes_with_area: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """(T,) True for boxes of which nothing is left in their image; and how many pixels each leaves it by, at most."""
    boxes = records.content.objects.boxes_xywh.values
    out, beyond = np.zeros(len(boxes), bool), np.zeros(len(boxes))
    sized = records.heights.usable & records.widths.usable
    known = np.flatnonzero(boxes_with_area & (records.owners >= 0))
    known = known[sized[records.owners[known]]]
    sizes = np.stack([records.heights.values, records.widths.values], axis=1)[records.owners[known]]
    clipped = clipped_boxes(boxes[known], sizes)
    out[known] = (clipped[:, 2:] - clipped[:, :2] < MIN_SIDE).any(axis=1)
    corners = np.concatenate([boxes[known, :2], boxes[known, :2] + boxes[known, 2:]], axis=1)
    beyond[known] = np.abs(corners - clipped).max(axis=1, initial=0)
    return out, np.where(beyond < _ROUNDING, 0, beyond)


def _repeats(records: Records, finite: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(T,) True for all but the first of equal boxes of the same image and class."""
    chosen = np.flatnonzero(finite & (records.owners >= 0) & (records.labels >= 0))
    keys = np.column_stack(
        [records.owners[chosen], records.labels[chosen], records.content.objects.boxes_xywh.values[chosen]]
    )
    order = np.lexsort(keys.T)  # stable: the first in the file stays the first
    equal = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    repeats = np.zeros(len(finite), bool)
    repeats[chosen[order[1:][equal]]] = True
    return repeats


def _describe(records: Records) -> Callable[[int], str]:
    def describe(i: int) -> str:
        owner = records.owners[i]
        numbers = ", ".join(f"{x:g}" for x in records.content.objects.boxes_xywh.values[i])
        width, height = records.widths.values[owner], records.heights.values[owner]
        where = f", {records.image(owner)} of {width} x {height}" if owner >= 0 else ""
        return f"{records.annotation(i)} [{numbers}]{where}"

    return describe
