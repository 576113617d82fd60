"""A tiny dataset on disk: five random images of different shapes with known boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZES = {11: (40, 60), 5: (60, 40), 7: (48, 48), 90: (30, 80), 2: (80, 30)}  # image id: height, width; not in order


def coco_content() -> dict:
    """Category ids 3, 7, 90; image 7 has no objects; annotation 104 is crowd; 105 sticks out of its image."""
    return {
        "annotations": [  # before the images, as some files have them
            {"id": 101, "image_id": 90, "category_id": 90, "bbox": [10, 5, 20, 10]},
            {"id": 100, "image_id": 11, "category_id": 3, "bbox": [0, 0, 30, 20], "area": 500.0},
            {"id": 103, "image_id": 90, "category_id": 7, "bbox": [0, 0, 8, 8]},
            {"id": 102, "image_id": 5, "category_id": 3, "bbox": [4, 6, 10, 12]},
            {"id": 104, "image_id": 5, "category_id": 3, "bbox": [20, 30, 20, 30], "iscrowd": 1},
            {"id": 105, "image_id": 2, "category_id": 7, "bbox": [-5, 70, 20, 30]},
        ],
        "images": [{"id": i, "height": h, "width": w, "file_name": f"{i}.png"} for i, (h, w) in SIZES.items()],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}],
    }


@pytest.fixture
def content() -> dict:
    return coco_content()


@pytest.fixture
def write(tmp_path):
    """Writes a content as JSON, and its path comes back."""

    def write_json(content: object, name: str = "train.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write_json


@pytest.fixture
def image_folder(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for image_id, (height, width) in SIZES.items():
        pixels = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{image_id}.png")
    return folder
