"""Small datasets with a federated annotation, and detections in them."""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from longshot.datasets.annotations.annotations import read_annotations
from longshot.datasets.classes import Classes
from longshot.detector.evaluation.ground_truth import COCO, LVIS, GroundTruth
from longshot.detector.report import ValidationSet
from longshot.detector.results.columns import DetectionColumns


@pytest.fixture
def make_validation(tmp_path) -> Callable[..., ValidationSet]:
    """objects -> ValidationSet; objects are (image, label, xywh). Classes 0, 1, … are rare, common, frequent, rare, …"""

    def make(
        objects: Sequence[tuple[int, int, Sequence[float]]],
        *,
        num_images: int = 2,
        num_classes: int = 3,
        absent: Sequence[tuple[int, int]] | None = None,  # (image, label); None: all that are not there
        incomplete: Sequence[tuple[int, int]] = (),
        crowds: Sequence[int] = (),  # places in `objects`
        federated: bool = True,
        frequencies: Sequence[str] | None = ("r", "c", "f"),
        names: Callable[[int], str] = "class {}".format,
    ) -> ValidationSet:
        present = {(image, label) for image, label, _ in objects}
        everything = [(i, k) for i in range(num_images) for k in range(num_classes)]
        absent = [cell for cell in everything if cell not in present] if absent is None else absent
        content = {
            "images": [
                {
                    "id": 10 + i, "width": 1000, "height": 1000, "file_name": f"{i}.png",
                    "neg_category_ids": [k + 1 for image, k in absent if image == i],
                    "not_exhaustive_category_ids": [k + 1 for image, k in incomplete if image == i],
                }
                for i in range(num_images)
            ],
            "annotations": [
                {
                    "id": 1 + g, "image_id": 10 + image, "category_id": 1 + label, "bbox": list(map(float, box)),
                    "area": float(box[2] * box[3]), "iscrowd": int(g in crowds),
                }
                for g, (image, label, box) in enumerate(objects)
            ],
            "categories": [{"id": k + 1, "name": names(k)} for k in range(num_classes)],
        }  # fmt: skip
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        annotations = read_annotations(path)
        groups = None if frequencies is None else [frequencies[k % len(frequencies)] for k in range(num_classes)]
        truth = GroundTruth.from_annotations(annotations, LVIS if federated else COCO)
        counts = None if groups is None else list(range(0, 5 * num_classes, 5))
        ids, names = annotations.category_ids.tolist(), list(annotations.class_names)
        return ValidationSet(annotations, truth, Classes(ids, names, groups, counts))

    return make


@pytest.fixture
def columns() -> Callable[..., DetectionColumns]:
    """((image, label, xywh, score), …) -> DetectionColumns"""

    def make(*rows: tuple[int, int, Sequence[float], float]) -> DetectionColumns:
        images, labels, boxes, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
        return DetectionColumns(
            np.array(images, np.int64),
            np.array(labels, np.int64),
            np.array(boxes, float).reshape(-1, 4),
            np.array(scores, float),
        )

    return make


@pytest.fixture
def random_case(make_validation, columns) -> Callable[[int], tuple[ValidationSet, DetectionColumns]]:
    """seed -> a federated dataset of 12 images and 6 classes, the last one empty, and detections with tied scores."""

    def make(seed: int) -> tuple[ValidationSet, DetectionColumns]:
        rng = np.random.default_rng(seed)
        objects = [
            (i, int(rng.integers(5)), rng.integers([0, 0, 60, 60], [300, 300, 140, 140]).tolist())
            for i in range(12)
            for _ in range(0 if i == 3 else rng.integers(3, 8))
        ]
        present = {(i, k) for i, k, _ in objects}
        others = [(i, k) for i in range(12) for k in range(6) if (i, k) not in present]
        validation = make_validation(
            objects,
            num_images=12,
            num_classes=6,
            absent=[cell for cell in others if rng.random() < 0.6],
            incomplete=[cell for cell in present if rng.random() < 0.2],
        )
        rows = []
        for image, label, box in objects:
            for _ in range(rng.integers(0, 5)):
                moved = np.array(box) + np.append(rng.integers(-25, 26, 2), rng.integers(-10, 11, 2))
                seen = label if rng.random() < 0.6 else int(rng.integers(6))
                rows.append((image, seen, moved.tolist(), float(rng.integers(1, 20)) / 20))
        for _ in range(30):
            box = rng.integers([0, 0, 20, 20], [300, 300, 140, 140]).tolist()
            rows.append((int(rng.integers(12)), int(rng.integers(6)), box, float(rng.integers(1, 20)) / 20))
        rng.shuffle(rows)
        return validation, columns(*rows)

    return make
