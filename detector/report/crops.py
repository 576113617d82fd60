"""The worst mistakes as pictures: JPEG crops with boxes, and a line about each."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...datasets.images.reading import read_image
from ..evaluation.matching import overlap, pairs_of_equal
from ..pictures.drawing import draw_boxes
from .error_kinds import CLASSIFICATION, KINDS, LOCALIZATION, Errors
from .validation_set import ValidationSet
from .verdicts import IOU, Verdicts

COUNT = 24
_PLAIN = -1  # the label that is drawn in white


def worst_false_positives(
    validation: ValidationSet, verdicts: Verdicts, errors: Errors, images: Path, *, count: int = COUNT
) -> Iterator[tuple[bytes, str]]:
    """The false positives with the highest scores, at most one of an image, among the objects there (white)."""
    names, labels = validation.classes.names, _object_labels(validation)
    false = np.flatnonzero(verdicts.false_positive)
    false = false[np.argsort(-verdicts.score[false], kind="stable")]
    for d in _first_of_each_image(false, verdicts.image[false], count):
        name, kind = names[verdicts.label[d]], errors.kind[d]
        caption = f"{name} {verdicts.score[d]:.2f}: {KINDS[kind]}"
        if kind in (CLASSIFICATION, LOCALIZATION):
            caption += f", on {names[labels[errors.object_[d]]]}"
        image = int(verdicts.image[d])
        drawn = (verdicts.boxes_xywh[d], int(verdicts.label[d]), f"{name} {verdicts.score[d]:.2f}")
        yield (
            _crop(validation, image, images, drawn, _objects_of(validation, image)),
            f"{caption} ({validation.path(image)})",
        )


def worst_misses(
    validation: ValidationSet, verdicts: Verdicts, images: Path, *, count: int = COUNT
) -> Iterator[tuple[bytes, str]]:
    """The objects whose best detection of their class at IoU 0.5 scores lowest, those without any first and the largest
    first among them; at most one of an image. What else was detected there, at IoU 0.5, is drawn in white.
    """
    truth, names, labels = validation.ground_truth, validation.classes.names, _object_labels(validation)
    best = best_scores(verdicts, validation)
    objects = np.flatnonzero(verdicts.is_object)
    area = truth.boxes_xywh[objects, 2] * truth.boxes_xywh[objects, 3]
    objects = objects[np.lexsort((-area, best[objects]))]
    owner = truth.cell // truth.num_classes
    for g in _first_of_each_image(objects, owner[objects], count):
        name, image = names[labels[g]], int(owner[g])
        found = "not detected" if best[g] < 0 else f"best detection {best[g]:.3f}"
        other = _best_other(verdicts, image, int(labels[g]), truth.boxes_xywh[g])
        context = [(verdicts.boxes_xywh[d], f"{names[verdicts.label[d]]} {verdicts.score[d]:.2f}") for d in other]
        instead = f", seen as {context[0][1]}" if context else ""
        drawn = (truth.boxes_xywh[g], int(labels[g]), name)
        yield _crop(validation, image, images, drawn, context), f"{name}: {found}{instead} ({validation.path(image)})"


def best_scores(verdicts: Verdicts, validation: ValidationSet) -> NDArray[np.float64]:
    """(G,) the best score of a detection of its class that overlaps each object at IoU 0.5 or more; -1 without any."""
    truth = validation.ground_truth
    cell = verdicts.image * truth.num_classes + verdicts.label
    order = np.argsort(cell, kind="stable")
    detection, object_ = pairs_of_equal(cell[order], truth.cell)
    detection = order[detection]
    near = overlap(verdicts.boxes_xywh[detection], truth.boxes_xywh[object_], truth.crowd[object_]) >= IOU
    best = np.full(len(truth.cell), -1.0)
    np.maximum.at(best, object_[near], verdicts.score[detection[near]])
    return best


def _object_labels(validation: ValidationSet) -> NDArray[np.int64]:
    return validation.ground_truth.cell % validation.ground_truth.num_classes


def _first_of_each_image(ranked: NDArray, image: NDArray, count: int) -> list[int]:
    _, first = np.unique(image, return_index=True)
    return ranked[np.sort(first)[:count]].tolist()


def _objects_of(validation: ValidationSet, image: int) -> list[tuple[NDArray, str]]:
    """Boxes and names of what counts in an image."""
    truth, names = validation.ground_truth, validation.classes.names
    start, end = np.searchsorted(truth.cell, [image * truth.num_classes, (image + 1) * truth.num_classes])
    return [(truth.boxes_xywh[g], names[truth.cell[g] % truth.num_classes]) for g in range(start, end)]


def _best_other(verdicts: Verdicts, image: int, label: int, box: NDArray) -> list[int]:
    """The detection of another class with the highest score on the box; none or one."""
    there = np.flatnonzero((verdicts.image == image) & (verdicts.label != label))
    boxes = verdicts.boxes_xywh[there]
    iou = overlap(boxes, np.broadcast_to(box, boxes.shape), np.zeros(len(there), bool))
    near = there[iou >= IOU]
    return near[np.argsort(-verdicts.score[near])][:1].tolist()


def _crop(
    validation: ValidationSet,
    image: int,
    images: Path,
    drawn: tuple[NDArray, int, str],
    context: Sequence[tuple[NDArray, str]],
) -> bytes:
    """A box (xywh, label, caption) with its surroundings, on top of other boxes (xywh, caption) in white."""
    box, label, caption = drawn
    height, width = validation.annotations.image_sizes[image].tolist()
    pixels = read_image(images / validation.path(image), (height, width))
    margin = max(20.0, 0.6 * max(box[2:]))
    limit = np.array([width, height])
    # At least a pixel, even where a box lies beyond the image.
    left, top = np.clip(box[:2] - margin, 0, limit - 1).astype(int).tolist()
    right, bottom = np.clip(box[:2] + box[2:] + margin, [left + 1, top + 1], limit).astype(int).tolist()
    cut = pixels[top:bottom, left:right]
    boxes = np.array([*(b for b, _ in context), box]) - [left, top, 0, 0]
    boxes[:, 2:] += boxes[:, :2]
    captions = [*(text for _, text in context), caption]
    picture = draw_boxes(cut, boxes, [_PLAIN] * len(context) + [label], captions, min_side=300, max_side=480)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=85)
    return file.getvalue()
