"""Small hand-made folders of other formats."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longshot.datasets.annotations.annotations import read_annotations


@pytest.fixture
def picture() -> Callable[..., Path]:
    """(path, height, width, EXIF orientation) -> an image file."""

    def draw(path: Path, height: int, width: int, orientation: int = 1) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)
        return path

    return draw


@pytest.fixture
def write_text(tmp_path) -> Callable[[str, str], Path]:
    """(name, content) -> a file in the test's folder."""

    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.fixture
def boxes_of() -> Callable[[Path], list]:
    """file -> (file name, class, box, crowd, ignore) of each object, in order of the annotation ids."""

    def read(path: Path) -> list:
        known = read_annotations(path)
        rows = zip(
            known.annotation_ids.tolist(), known.object_images.tolist(), known.labels.tolist(),
            known.boxes_xywh.tolist(), known.crowd.tolist(), known.ignore.tolist(), strict=True,
        )  # fmt: skip
        return [
            (known.file_names[image], known.class_names[label], box, crowd, ignore)
            for _, image, label, box, crowd, ignore in sorted(rows)
        ]

    return read


@pytest.fixture
def absent_of() -> Callable[[Path], dict[str, list[int]]]:
    """file -> `neg_category_ids` of each file name."""
    return lambda path: {i["file_name"]: i["neg_category_ids"] for i in json.loads(path.read_text())["images"]}
