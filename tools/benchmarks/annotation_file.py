"""A made-up annotation file of the kind of LVIS, of any size, polygons included."""

import json
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.random import Generator

from longshot.detector.system.environment import progress_bar

LVIS_IMAGES, LVIS_ANNOTATIONS, LVIS_CLASSES = 100_170, 1_270_141, 1203  # of LVIS v1 train
_POLYGONS = 4096  # different ones
_ABSENT_PER_IMAGE = 9
_WIDTH, _HEIGHT = 640, 480


def write_annotations(path: Path, *, num_images: int) -> None:
    """Write a file with LVIS's number of objects per image, in random order, each with a polygon of 8 to 88 corners."""
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        file.write('{"info": {"description": "made up"}, "annotations": [')
        _write_objects(file, rng, num_images)
        file.write('], "images": [')
        _write_images(file, rng, num_images)
        categories = [{"id": k, "name": f"class {k}", "frequency": "f"} for k in range(1, LVIS_CLASSES + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def _write_objects(file: TextIO, rng: Generator, num_images: int) -> None:
    corners = rng.integers(8, 89, _POLYGONS)
    polygons = [json.dumps([rng.uniform(0, _HEIGHT, 2 * n).round(2).tolist()]) for n in corners.tolist()]
    count = round(num_images * LVIS_ANNOTATIONS / LVIS_IMAGES)
    boxes = np.concatenate([rng.uniform(0, 400, (count, 2)), rng.uniform(5, 80, (count, 2))], axis=1).round(2)
    images, polygon = rng.integers(1, num_images + 1, count), rng.integers(0, _POLYGONS, count)
    classes = rng.zipf(1.3, count) % LVIS_CLASSES + 1
    rows = zip(*(column.tolist() for column in (boxes, images, polygon, classes)), strict=True)
    for i, (box, image, shape, label) in enumerate(
        progress_bar(rows, total=count, desc=Path(file.name).name, unit="object")
    ):
        file.write(
            f'{", " if i else ""}{{"area": {0.7 * box[2] * box[3]:.2f}, "id": {i + 1}, "segmentation": {polygons[shape]}, '
            f'"image_id": {image}, "bbox": {box}, "category_id": {label}}}'
        )


def _write_images(file: TextIO, rng: Generator, num_images: int) -> None:
    absent = rng.integers(1, LVIS_CLASSES + 1, (num_images, _ABSENT_PER_IMAGE)).tolist()
    for i in range(num_images):
        image = {
            "date_captured": "2013-11-14 17:02:52",
            "neg_category_ids": absent[i],
            "license": 4,
            "height": _HEIGHT,
            "flickr_url": f"http://farm7.staticflickr.com/6116/{i:010d}_f0c5c3a6ac_z.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
            "width": _WIDTH,
            "not_exhaustive_category_ids": [],
            "id": i + 1,
        }
        file.write((", " if i else "") + json.dumps(image))
