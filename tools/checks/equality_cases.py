"""What `equality` trains: small detectors, on images of which whole steps or the share of a process have no object."""

import json
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from longshot.datasets.annotations.annotations import read_annotations
from longshot.datasets.images.augmentation import Augmentation
from longshot.datasets.loading.batches import BatchLoader, TrainingBatches, share_of_step
from longshot.datasets.loading.dataset import DetectionDataset
from longshot.datasets.loading.samplers import TrainingStream
from longshot.datasets.loading.scenes import draw_scenes
from longshot.detector.config.schema import Config, parse_config
from longshot.detector.config.yaml_files import merge
from longshot.detector.model.backbone import resnet
from longshot.detector.system.distributed import Process

Precision = Literal["float64", "float32"]

NUM_CLASSES = 6
_IMAGE_SIZES = [(64, 64), (48, 80), (96, 64), (64, 56)]  # height, width

_FROZEN = {"model": {"backbone": {"norm": "frozen_bn"}}}
_FOCAL = {"loss": {"classification": {"name": "focal"}}}
_RECOMPUTED = {"model": {"head": {"recompute": True}}}
_BASELINE = {
    "model": {
        "fpn": {"levels": 4, "p6_from": "c5_lateral"},
        "head": {"quality": "iou"},
        "anchors": {"base_size": 1.0, "scales": [2.5, 3.5]},
    },
    "matching": {"matcher": {"candidates": 18}},
    "loss": {"box": {"weight": 1.0}, "box_weighting": "quality"},
}
_GENERALIZED = {
    "model": {"head": {"box": "distribution", "bins": 9, "level_scales": True}},
    "loss": {"classification": {"name": "equalized_quality_focal"}, "box_weighting": "score"},
}
CASES: dict[str, dict] = {  # what to change in the configuration
    "focal, gn": _FOCAL,
    "focal, frozen_bn": merge(_FOCAL, _FROZEN),
    "equalized_focal, gn": _RECOMPUTED,
    "equalized_focal, frozen_bn": _FROZEN,
    "improved baseline, gn": _BASELINE,
    "improved baseline, frozen_bn": merge(_BASELINE, _FROZEN),
    "generalized focal, gn": _GENERALIZED,
}

# In float32, larger steps would blow up what rounding does, see TOLERANCES.
_LEARNING_RATES: dict[Precision, float] = {"float64": 0.01, "float32": 0.0001}


class Data(NamedTuple):
    """Where there is something to train on."""

    dataset: DetectionDataset
    stream: TrainingStream
    steps: int
    trunk: Path  # weights for it, with the statistics that frozen BatchNorm needs

    def loader(self, process: Process, images_per_pass: int) -> BatchLoader:
        """The share of this process."""
        draw = partial(
            draw_scenes, self.stream, size_of=self.dataset.size, augmentation=Augmentation(), seed=0,
            short_sides=[48, 64], long_side=96, flip=0.5,
        )  # fmt: skip
        share = share_of_step(self.stream.batch_size, images_per_pass, process.rank, process.world_size)
        return BatchLoader(
            TrainingBatches(self.dataset, self.stream, draw, share=share, pad_multiple=32), range(self.steps)
        )


def make_data(folder: Path, *, steps: int, batch_size: int) -> Data:
    """Write the same images of noise anywhere: objects from a few pixels to the whole image, a long tail of classes."""
    stream = TrainingStream(steps * batch_size, batch_size=batch_size, seed=0)
    random = np.random.default_rng(0)
    images, annotations = [], []
    for step in range(steps):
        for position, (index, _) in enumerate(stream.step(step)):
            height, width = _IMAGE_SIZES[index % len(_IMAGE_SIZES)]
            image = {"id": index + 1, "height": height, "width": width, "file_name": f"{index}.png"}
            images.append(image)
            pixels = random.integers(256, size=(height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])
            for box in _boxes(height, width, random) if _has_objects(step, position, batch_size) else ():
                label = min(NUM_CLASSES, int(random.zipf(1.6)))
                entry = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label, "bbox": box}
                annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0})
    images.sort(key=lambda image: image["id"])
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, NUM_CLASSES + 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return Data(DetectionDataset(read_annotations(path), folder), stream, steps, _make_trunk(folder / "trunk.pt"))


def _has_objects(step: int, position: int, batch_size: int) -> bool:
    """Whether an image has objects: all of a step, the first, none, and two ways to leave out one process of four."""
    return (True, position == 0, False, position >= batch_size // 4, position % 4 > 0)[step % 5]


def _boxes(height: int, width: int, random: np.random.Generator) -> list[list[float]]:
    """One to four boxes as [x, y, width, height]."""
    sides = np.array([(width, height), (0.5 * width, 0.4 * height), (20, 16), (6, 2.5), (3, 4)])
    sides = random.permutation(sides)[: random.integers(1, 5)]
    corners = random.uniform(0, (width, height) - sides)
    return np.concatenate([corners, sides], axis=1).tolist()


def _make_trunk(path: Path) -> Path:
    torch.manual_seed(0)
    trunk = resnet("thin", norm="bn")
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of what it sees now
    trunk(torch.randn(4, 3, 64, 64))
    torch.save(trunk.state_dict(), path)
    return path


def case_config(case: str, data: Data, precision: Precision) -> Config:
    """The configuration of one of CASES."""
    values = {
        "model": {
            "backbone": {"name": "thin", "weights": str(data.trunk), "norm": "gn"},
            "fpn": {"channels": 16, "levels": 3},
            # So high a prior that negatives outweigh positives in some classes: EFL's g then differs between classes.
            "head": {"num_convs": 1, "width": 16, "norm": "gn", "prior": 0.1},
            "anchors": {"base_size": 3.0, "ratios": [1.0], "scales": [1.0]},
        },
        "matching": {"matcher": {"name": "atss"}},
        "loss": {"classification": {"name": "equalized_focal"}, "box": {"name": "giou", "weight": 2.0}},
        "optimizer": {"lr": _LEARNING_RATES[precision], "clip_norm": 10.0},
        "train": {"batch_size": data.stream.batch_size},
    }
    return parse_config(merge(values, CASES[case]), where=f"equality: {case}")
