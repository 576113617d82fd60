"""Made-up data of the kind of LVIS, of any size: federated annotation, a long tail, and a detector's many detections."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from longshot.detector.evaluation.ground_truth import LVIS, GroundTruth
from longshot.detector.results.columns import DetectionColumns
from longshot.detector.results.files import write_results

TRUTH, ANNOTATIONS, FOUND = "truth.npz", "annotations.json", "found"  # files of `save`; FOUND with .npz and .json

OBJECTS_PER_IMAGE = 12.7  # of LVIS v1 train
_CLASSES_PER_IMAGE = 4  # that its objects are drawn from
_ABSENT_PER_IMAGE = 10
_NOT_EXHAUSTIVE = 0.05  # part of the (image, class) pairs with objects
_WIDTH, _HEIGHT = 640, 480

# Parts of the detections: near an object; of an object's class, anywhere; of a class known to be absent. The rest is of
# any class, which the image was hardly ever checked for: 54 % can count.
_NEAR, _ELSEWHERE, _ABSENT = 0.30, 0.12, 0.12


class Objects(NamedTuple):
    """A dataset. Ids are indices + 1."""

    num_images: int
    num_classes: int
    image_index: NDArray[np.int64]  # (G,) rising
    labels: NDArray[np.int64]  # (G,)
    boxes_xywh: NDArray[np.float64]  # (G, 4) pixels
    negative_cells: NDArray[np.int64]  # image_index * num_classes + label
    not_exhaustive_cells: NDArray[np.int64]

    @property
    def ids(self) -> dict[str, NDArray | list[str]]:
        """What files of detections want to know of the annotations."""
        category_ids = np.arange(1, self.num_classes + 1)
        names = [f"class {category_id}" for category_id in category_ids]
        return {"image_ids": np.arange(1, self.num_images + 1), "category_ids": category_ids, "class_names": names}

    @property
    def ground_truth(self) -> GroundTruth:
        """What the detections are compared with, by the rules of LVIS."""
        nothing = np.zeros(len(self.labels), bool)
        return GroundTruth.from_arrays(
            LVIS, num_images=self.num_images, num_classes=self.num_classes,
            image_index=self.image_index, labels=self.labels, boxes_xywh=self.boxes_xywh,
            areas=self.boxes_xywh[:, 2] * self.boxes_xywh[:, 3], crowd=nothing, ignore=nothing,
            negative_cells=self.negative_cells, not_exhaustive_cells=self.not_exhaustive_cells,
        )  # fmt: skip


def synthetic(
    num_images: int, *, num_classes: int, detections_per_image: int, seed: int = 0
) -> tuple[Objects, DetectionColumns]:
    """A dataset and detections by image and falling score; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(10, num_classes + 10) ** 1.2
    weights /= weights.sum()
    present = rng.choice(num_classes, (num_images, _CLASSES_PER_IMAGE), p=weights)
    absent = rng.choice(num_classes, (num_images, _ABSENT_PER_IMAGE), p=weights)
    image = np.sort(rng.integers(0, num_images, round(num_images * OBJECTS_PER_IMAGE)))
    labels = present[image, rng.integers(0, _CLASSES_PER_IMAGE, len(image))]
    boxes, cells = _boxes(rng, len(image)), np.unique(image * num_classes + labels)
    negative = np.setdiff1d(np.arange(num_images)[:, None] * num_classes + absent, cells)
    not_exhaustive = cells[rng.random(len(cells)) < _NOT_EXHAUSTIVE]
    objects = Objects(num_images, num_classes, image, labels, boxes, negative, not_exhaustive)
    return objects, _detections(rng, objects, absent, detections_per_image)


def save(objects: Objects, detections: DetectionColumns, folder: Path, *, annotations: bool) -> None:
    """Write the dataset as arrays, and as an annotation file if asked; the detections as .npz and as JSON."""
    np.savez(folder / TRUTH, **objects._asdict())
    for suffix in (".npz", ".json"):
        write_results(folder / f"{FOUND}{suffix}", detections, **objects.ids)
    if annotations:
        (folder / ANNOTATIONS).write_text(json.dumps(as_lvis(objects)), encoding="utf-8")


def load_objects(folder: Path) -> Objects:
    """The dataset that `save` has written."""
    with np.load(folder / TRUTH) as arrays:
        num_images, num_classes, *columns = (arrays[name] for name in Objects._fields)
    return Objects(int(num_images), int(num_classes), *columns)


def as_lvis(data: Objects) -> dict:
    """The dataset as an annotation file holds it."""
    size, lists = {"width": _WIDTH, "height": _HEIGHT}, ("neg_category_ids", "not_exhaustive_category_ids")
    images = [
        {"id": i + 1, "file_name": f"{i + 1}.jpg", **size, **{key: [] for key in lists}} for i in range(data.num_images)
    ]
    for key, cells in zip(lists, (data.negative_cells, data.not_exhaustive_cells), strict=True):
        for image, label in zip(*np.divmod(cells, data.num_classes), strict=True):
            images[image][key].append(int(label) + 1)
    rows = zip(data.image_index.tolist(), data.labels.tolist(), data.boxes_xywh.tolist(), strict=True)
    return {
        "images": images,
        "categories": [
            {"id": k + 1, "name": name, "frequency": "fcr"[3 * k // data.num_classes]}
            for k, name in enumerate(data.ids["class_names"])
        ],
        "annotations": [
            {"id": i + 1, "image_id": image + 1, "category_id": k + 1, "bbox": box, "area": box[2] * box[3]}
            for i, (image, k, box) in enumerate(rows)
        ],
    }


def _boxes(rng: Generator, count: int) -> NDArray[np.float64]:
    """(count, 4) xywh, as many small ones as large ones."""
    sizes = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * [_WIDTH, _HEIGHT], sizes], axis=1)


def _detections(rng: Generator, objects: Objects, absent: NDArray, per_image: int) -> DetectionColumns:
    num_images, num_classes, object_image, labels, boxes, *_ = objects
    image, what = np.repeat(np.arange(num_images), per_image), rng.random(num_images * per_image)
    first, last = np.searchsorted(object_image, image), np.searchsorted(object_image, image, side="right")
    near, of_object = (what < limit for limit in (_NEAR, _NEAR + _ELSEWHERE))
    near, of_object = near & (first < last), of_object & (first < last)
    of_absent = ~of_object & (what < _NEAR + _ELSEWHERE + _ABSENT)
    chosen = first + (rng.random(len(image)) * (last - first)).astype(np.int64)
    found, found_boxes = rng.integers(0, num_classes, len(image)), _boxes(rng, len(image))
    found[of_object] = labels[chosen[of_object]]
    found[of_absent] = absent[image[of_absent], rng.integers(0, absent.shape[1], np.count_nonzero(of_absent))]
    noise = rng.normal(0, 0.15, (np.count_nonzero(near), 4))
    found_boxes[near] = boxes[chosen[near]] * (1 + noise * [0.2, 0.2, 1, 1])
    found_boxes[:, 2:] = np.abs(found_boxes[:, 2:])
    scores = (rng.random(len(image)) ** np.where(near, 2, 4)).astype(np.float32)
    order = np.lexsort((-scores, image))
    return DetectionColumns(image, found[order], found_boxes[order].astype(np.float32), scores[order])
