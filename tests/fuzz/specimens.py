"""Small valid files, from which all the bad ones are made: three images, four classes, five objects."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = {3: (64, 48), 11: (48, 64), 7: (40, 40)}  # height, width by image id
CATEGORIES = [
    {"id": 90, "name": "blue bar", "frequency": "r"},
    {"id": 3, "name": "red square", "frequency": "f"},
    {"id": 12, "name": "gelbe Tür", "frequency": "c"},
    {"id": 7, "name": "ring", "frequency": "f"},
]
_OBJECTS = [  # image, category, box
    (3, 90, [4.0, 5.5, 20.25, 30.0]), (3, 7, [10, 10, 12, 12]), (11, 3, [0, 0, 64, 48]), (7, 12, [30, 30, 15, 4]),
    (7, 90, [1, 2, 8, 9]),
]  # fmt: skip


def plain_json(content: bytes) -> Any:
    """What Python's own parser finds; raises AssertionError for what is not JSON."""
    try:
        try:
            return json.loads(content, parse_int=_integer)
        except UnicodeDecodeError:  # in what nobody reads; what is read is compared
            return json.loads(content.decode(errors="replace"), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise AssertionError(f"a file that is not JSON: {error}") from error


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 4000 else math.inf  # Python converts no longer ones


def draw_images(folder: Path) -> None:
    """The images as PNG, in noise."""
    rng = np.random.default_rng(0)
    for image_id, (height, width) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{image_id}.png")


def annotations() -> dict[str, Any]:
    """What an LVIS file says."""
    absent = {3: [3, 12], 11: [], 7: [3, 7]}
    images = [
        {
            "id": i, "height": height, "width": width, "file_name": f"{i}.png", "neg_category_ids": absent[i],
            "not_exhaustive_category_ids": [90] if i == 3 else [],
        }
        for i, (height, width) in SIZES.items()
    ]  # fmt: skip
    objects = [
        {
            "id": 5 * n + 1, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3] - 1,
            "iscrowd": int(n == 3), "segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]]],
        }
        for n, (image, category, box) in enumerate(_OBJECTS)
    ]  # fmt: skip
    return {
        "info": {"year": 2026, "a": [1, {"b": "c"}]},
        "images": images,
        "annotations": objects,
        "categories": CATEGORIES,
    }


def write_dataset(folder: Path) -> Path:
    """Draw the images and write the annotations; where those are."""
    draw_images(folder)
    path = folder / "annotations.json"
    path.write_text(json.dumps(annotations()), encoding="utf-8")
    return path


def settings(folder: Path) -> dict[str, Any]:
    """A configuration for the dataset in `folder`: the thin trunk, P3 to P5 of 8 channels, six steps."""
    data = {"annotations": str(folder / "annotations.json"), "images": str(folder)}
    return {
        "output": str(folder / "run"),
        "seed": 0,
        "device": "cpu",
        "data": {
            "train": dict(data), "val": dict(data), "short_sides": [32, 48], "test_short_side": 48, "long_side": 64,
            "workers": 0, "sampler": {"name": "repeat_factor", "threshold": 0.5},
        },
        "model": {
            "backbone": {"name": "thin", "norm": "gn"}, "fpn": {"channels": 8, "levels": 3},
            "head": {"num_convs": 1, "width": 8, "norm": "gn", "prior": 0.05},
            "anchors": {"base_size": 3.0, "ratios": [1.0], "scales": [1.0]},
        },
        "matching": {"matcher": {"name": "atss", "candidates": 9}},
        "loss": {"classification": {"name": "equalized_focal", "scale": 8.0}, "box": {"name": "giou", "weight": 2.0}},
        "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.0001, "clip_norm": 10.0},
        "schedule": {"unit": "steps", "name": "cosine", "length": 6, "milestones": [], "warmup_steps": 2},
        "train": {"batch_size": 2, "log_every": 1, "checkpoint_every": 2, "ema_decay": 0.9},
        "test": {"score_threshold": 0.0, "candidates_per_level": 100, "detections_per_image": 10},
        "eval": {"every": None, "batch_size": 3, "pictures": 0},
    }  # fmt: skip
