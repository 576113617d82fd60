"""A tiny dataset of colored shapes, and a detector that takes milliseconds for a step on it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from longshot.detector.config.schema import Config, parse_config
from longshot.detector.config.yaml_files import merge
from longshot.detector.run.loop import train
from longshot.detector.system.distributed import Process

torch.set_num_threads(1)  # quicker for images as small as these

ROOT = Path(__file__).parents[1]
SIZES = [(64, 64), (64, 96), (96, 64), (72, 80)]  # height, width
CATEGORIES = [  # the file's order is not that of the ids, and the ids have gaps
    {"id": 90, "name": "blue bar", "frequency": "r"},
    {"id": 3, "name": "red square", "frequency": "f"},
    {"id": 12, "name": "yellow disc", "frequency": "c"},
    {"id": 7, "name": "green ring", "frequency": "f"},
]


class Shapes(NamedTuple):
    """Where the dataset lies."""

    folder: Path  # of the images
    train: Path
    val: Path


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory) -> Iterator[None]:
    """Caches of annotation files are not put into the user's folder, by subprocesses neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Shapes:
    """24 training images, with an empty one, a crowd and an ignored object among them; 7 validation images."""
    folder = tmp_path_factory.mktemp("shapes")
    train = draw_split(folder, "train", num_images=24, seed=1)
    train["annotations"][0]["iscrowd"] = 1
    train["annotations"][5]["ignore"] = 1
    val = draw_split(folder, "val", num_images=7, seed=2)
    for name, content in (("train", train), ("val", val)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Shapes(folder, folder / "train.json", folder / "val.json")


def draw_split(folder: Path, split: str, *, num_images: int, seed: int, empty: tuple[int, ...] = (2,)) -> dict:
    """The LVIS content of a split whose images are drawn into `folder`; `empty` are images without objects."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(num_images):
        height, width = SIZES[i % len(SIZES)]
        picture = Image.fromarray(rng.integers(90, 130, (height, width, 3), dtype=np.uint8))
        draw, present = ImageDraw.Draw(picture), set()
        image = {"id": 1000 - 7 * i, "height": height, "width": width, "file_name": f"{split}_{i}.png"}
        cells = [] if i in empty else rng.permutation([(x, y) for x in (0, 32) for y in (0, 32)])[: rng.integers(1, 4)]
        for x, y in cells:
            category = CATEGORIES[rng.choice(4, p=(0.15, 0.35, 0.2, 0.3))]
            box = draw_shape(draw, category["name"], left=int(x), top=int(y), rng=rng)
            present.add(category["id"])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category["id"],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        image |= {
            "neg_category_ids": [c["id"] for c in CATEGORIES if c["id"] not in present],
            "not_exhaustive_category_ids": [],
        }
        images.append(image)
        picture.save(folder / image["file_name"])
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def draw_shape(draw: ImageDraw.ImageDraw, name: str, *, left: int, top: int, rng: np.random.Generator) -> list[int]:
    """Draws a shape somewhere in the 32-pixel cell at (left, top); its box as [x, y, width, height]."""
    side = int(rng.integers(18, 27))
    width, height = (side, side // 2) if name == "blue bar" else (side, side)
    x, y = left + int(rng.integers(0, 32 - width)), top + int(rng.integers(0, 32 - height))
    corners = (x, y, x + width - 1, y + height - 1)
    if name == "red square":
        draw.rectangle(corners, fill=(220, 30, 30))
    elif name == "blue bar":
        draw.rectangle(corners, fill=(30, 30, 220))
    elif name == "yellow disc":
        draw.ellipse(corners, fill=(230, 220, 40))
    else:
        draw.ellipse(corners, outline=(40, 220, 40), width=5)
    return [x, y, width, height]


@pytest.fixture(scope="session")
def values(shapes) -> dict:
    """A configuration as plain values: the thin trunk, P3 to P5 of 16 channels, 6 steps, Equalized Focal Loss."""
    return {
        "output": "set by the test",
        "data": {
            "train": {"annotations": str(shapes.train), "images": str(shapes.folder)},
            "val": {"annotations": str(shapes.val), "images": str(shapes.folder)},
            "short_sides": [56, 64],
            "test_short_side": 64,
            "long_side": 96,
            "workers": 0,
        },
        "model": {
            "backbone": {"name": "thin", "norm": "gn"},
            "fpn": {"channels": 16, "levels": 3},
            "head": {"num_convs": 1, "width": 16, "norm": "gn", "prior": 0.05},
            "anchors": {"base_size": 3.0, "ratios": [1.0], "scales": [1.0]},
        },
        "matching": {"matcher": {"name": "atss"}},
        "loss": {"classification": {"name": "equalized_focal"}, "box": {"name": "giou", "weight": 2.0}},
        "optimizer": {"lr": 0.02, "clip_norm": 10.0},
        "schedule": {"unit": "steps", "name": "cosine", "length": 6, "milestones": [], "warmup_steps": 2},
        "train": {"batch_size": 4, "log_every": 1, "checkpoint_every": 2},
        "test": {"score_threshold": 0.0, "detections_per_image": 300},
        "eval": {"every": None, "batch_size": 3, "pictures": 0},
    }


@pytest.fixture(scope="session")
def make_config(values) -> Callable[..., Config]:
    """(run folder, differences) -> Config."""

    def make(output: Path | str = "nowhere", differences: Mapping = MappingProxyType({})) -> Config:
        return parse_config(merge(merge(values, differences), {"output": str(output)}))

    return make


@pytest.fixture(scope="session")
def cpu() -> Process:
    """The only process."""
    return Process(0, 1, torch.device("cpu"))


class Ended(NamedTuple):
    """How processes have ended, by rank."""

    codes: list[int]
    output: list[str]


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """-> a port of this machine that nobody listens to."""

    def find() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return free.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def run_processes(free_port, tmp_path_factory) -> Callable[..., Ended]:
    """(count, arguments of Python) -> how so many processes ended that were started as torchrun does, all here."""

    def run(count: int, *arguments: object, seconds: float = 240.0) -> Ended:
        shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1}
        logs, processes = tmp_path_factory.mktemp("logs"), []  # a pipe that nobody empties would stop a process
        try:
            for rank in range(count):
                variables = {"RANK": rank, "LOCAL_RANK": rank} | shared
                with open(logs / str(rank), "w") as log:
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, *map(str, arguments)], cwd=ROOT, stdout=log, stderr=log,
                            env=os.environ | {name: str(value) for name, value in variables.items()},
                        )
                    )  # fmt: skip
            end = time.monotonic() + seconds
            while any(process.poll() is None for process in processes) and time.monotonic() < end:
                time.sleep(0.02)
            running = [rank for rank, process in enumerate(processes) if process.poll() is None]
        finally:
            for process in processes:
                process.kill()
        output = [(logs / str(rank)).read_text() for rank in range(count)]
        assert not running, f"ranks {running} have not ended in {seconds:g} s: {output}"
        return Ended([process.wait() for process in processes], output)

    return run


@pytest.fixture(scope="session")
def long_enough() -> dict:
    """What to change in `values` for a run that learns the shapes, in about 8 seconds."""
    return {
        "optimizer": {"name": "adamw", "lr": 0.004},
        "schedule": {"length": 300, "warmup_steps": 10},
        "train": {"batch_size": 8, "log_every": 50, "checkpoint_every": 150},
        "eval": {"pictures": 3},
    }


@pytest.fixture(scope="session")
def learned(make_config, long_enough, cpu, tmp_path_factory) -> Path:
    """The folder of a run that has learned the shapes by Equalized Focal Loss."""
    folder = tmp_path_factory.mktemp("runs") / "learned"
    train(make_config(folder, long_enough), cpu)
    return folder
