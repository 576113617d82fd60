"""The official evaluators as oracles, and random datasets full of corners to compare with them."""

import copy
from typing import NamedTuple

import numpy as np
import pytest

from longshot.datasets.classes import Classes
from longshot.detector.evaluation.columnar import ColumnarEvaluator
from longshot.detector.evaluation.ground_truth import GroundTruth
from longshot.detector.evaluation.metrics import summarize
from longshot.tools.checks.official import score_with_lvis, score_with_pycocotools


class Case(NamedTuple):
    """A dataset and detections, as a user's JSON files would hold them."""

    dataset: dict
    results: list


class Scored(NamedTuple):
    evaluator: ColumnarEvaluator
    curves: object
    result: dict


@pytest.fixture(scope="session")
def lvis_oracle():
    """(case, options) -> Official of the LVIS package."""
    return lambda case, **options: score_with_lvis(*copy.deepcopy(case), **options)  # it writes into what it is given


@pytest.fixture(scope="session")
def coco_oracle():
    """case -> Official of pycocotools."""
    return lambda case: score_with_pycocotools(*copy.deepcopy(case))


@pytest.fixture(scope="session")
def ground_truth_of():
    """(dataset, protocol) -> GroundTruth, read by plain loops."""

    def build(dataset, protocol):
        images = sorted(dataset["images"], key=lambda image: image["id"])
        image_index = {image["id"]: i for i, image in enumerate(images)}
        label = {c: i for i, c in enumerate(sorted(category["id"] for category in dataset["categories"]))}
        annotations = dataset["annotations"]

        def listed(key):
            return [
                image_index[image["id"]] * len(label) + label[category]
                for image in images
                for category in image.get(key, [])
            ]

        return GroundTruth.from_arrays(
            protocol,
            num_images=len(images),
            num_classes=len(label),
            image_index=[image_index[a["image_id"]] for a in annotations],
            labels=[label[a["category_id"]] for a in annotations],
            boxes_xywh=[a["bbox"] for a in annotations],
            areas=[a["area"] for a in annotations],
            crowd=[a.get("iscrowd", 0) for a in annotations],
            ignore=[a.get("ignore", 0) for a in annotations],
            negative_cells=listed("neg_category_ids"),
            not_exhaustive_cells=listed("not_exhaustive_category_ids"),
        )

    return build


@pytest.fixture(scope="session")
def columns_of():
    """case -> arguments of `ColumnarEvaluator.add`, in the order of the results; unknown categories have label -1."""

    def build(case):
        image_index = {c: i for i, c in enumerate(sorted(image["id"] for image in case.dataset["images"]))}
        label = {c: i for i, c in enumerate(sorted(category["id"] for category in case.dataset["categories"]))}
        return (
            np.array([image_index[r["image_id"]] for r in case.results], np.int64),
            np.array([label.get(r["category_id"], -1) for r in case.results], np.int64),
            np.array([r["bbox"] for r in case.results], np.float64).reshape(-1, 4),
            np.array([r["score"] for r in case.results], np.float64),
        )

    return build


@pytest.fixture(scope="session")
def score(ground_truth_of, columns_of):
    """(case, protocol) -> Scored, by our evaluator."""

    def run(case, protocol):
        evaluator = ColumnarEvaluator(ground_truth_of(case.dataset, protocol))
        evaluator.add(*columns_of(case))
        curves = evaluator.accumulate()
        categories = sorted(case.dataset["categories"], key=lambda category: category["id"])
        result = summarize(
            curves,
            evaluator.ground_truth,
            Classes(*([category[key] for category in categories] for key in ("id", "name", "frequency")), None),
        )
        return Scored(evaluator, curves, result)

    return run


@pytest.fixture(scope="session")
def random_case():
    """seed, sizes -> Case in which everything ties: whole-number boxes, few score values, repeated objects."""
    return _random_case


@pytest.fixture(scope="session")
def tiny_case():
    """seed -> Case of at most 4 images and 3 classes, with crowds, and at least one detection."""

    def make(seed):
        rng = np.random.default_rng(1000 + seed)
        sizes = {"images": (1, 5), "classes": (2, 4), "objects": (1, 5), "detections": (1, 9)}
        sizes = {name: int(rng.integers(*bounds)) for name, bounds in sizes.items()}
        return _random_case(2000 + seed, **sizes, crowd=True, corners=bool(rng.random() < 0.7))

    return make


def _random_case(seed, *, images=8, classes=6, objects=6, detections=30, crowd=False, corners=True):
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(1000, images, replace=False).tolist()  # in no order
    category_ids = (3 + rng.choice(90, classes, replace=False)).tolist()
    annotations = []
    for image in rng.permutation(np.repeat(image_ids, rng.integers(0, objects + 1, images))).tolist():
        annotation = {
            "id": len(annotations) + 1,  # not 0: both official packages take object 0 for "unmatched"
            "image_id": image,
            "category_id": int(rng.choice(category_ids[1:])),  # the first class has no object
            "bbox": _box(rng),
            "iscrowd": int(crowd and rng.random() < 0.25),
        }
        if annotations and rng.random() < 0.3:  # a neighbor: a detection halfway overlaps both alike; which is taken?
            annotation |= {key: annotations[-1][key] for key in ("image_id", "category_id")}
            x, *others = annotations[-1]["bbox"]
            annotation["bbox"] = [x + float(rng.choice([0, 2, 4])), *others]
        area = annotation["bbox"][2] * annotation["bbox"][3]
        annotation["area"] = float(rng.choice([area, area * 0.6, 1024, 9216]))
        if corners:
            annotation["ignore"] = int(rng.random() < 0.15)
            annotation["area"] *= rng.random() > 0.1  # some without area
        annotations.append(annotation)
    results = [_detection(rng, annotations, image_ids, category_ids, corners) for _ in range(images * detections)]

    def some(share):
        return [c for c in category_ids if rng.random() < share]

    dataset = {
        "images": [
            {"id": i, "neg_category_ids": some(0.4), "not_exhaustive_category_ids": some(0.2)} for i in image_ids
        ],
        "categories": [
            {"id": c, "name": f"class {c}", "frequency": str(rng.choice(list("rcf")))} for c in category_ids
        ],
        "annotations": annotations,
    }
    return Case(dataset, results)


def _box(rng):
    side = rng.choice([8, 32, 96, 128])
    return [float(v) for v in (*rng.integers(0, 60, 2), *(side + rng.integers(-4, 5, 2)))]


def _detection(rng, annotations, image_ids, category_ids, corners):
    detection = {"score": round(float(rng.random()), 1), "bbox": _box(rng)}
    if annotations and rng.random() < 0.7:
        near = annotations[rng.integers(len(annotations))]
        detection |= {"image_id": near["image_id"], "category_id": near["category_id"]}
        x, y, width, height = near["bbox"]
        dx, dy, dw, dh = rng.integers(-3, 4, 4).tolist() if rng.random() < 0.8 else (0, 0, 0, 0)
        # Half the width or height, with nothing moved, is an IoU of exactly 0.5.
        shrink = float(rng.choice([1, 1, 0.5, 0.75]))
        detection["bbox"] = [x + dx, y + dy, max(1.0, width * shrink + dw), max(1.0, height + dh)]
    else:
        detection |= {"image_id": int(rng.choice(image_ids)), "category_id": int(rng.choice(category_ids))}
    if corners and rng.random() < 0.1:
        detection["category_id"] = 7777  # no such category
    if corners and rng.random() < 0.1:
        detection["bbox"][int(rng.integers(2, 4))] = 0.0
    return detection
