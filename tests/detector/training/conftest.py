"""Runs that have taken no step yet, steps that they take, and what Equalized Focal Loss should collect in them.

Also anchors, boxes and official assignments for the matchers; heads, and outputs of heads, for the losses.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.loader import Batch
from detector.build import build_run
from detector.build_data import build_data, build_training_loader
from detector.model.head import HeadOutputs
from detector.training.criterion import Assignment
from detector.training.engine import Run, optimize
from losses import BACKGROUND, IGNORE

FP32 = {"images_per_pass": 4, "precision": "fp32", "clip_norm": None}


@pytest.fixture(scope="session")
def start(make_config, cpu) -> Callable[..., tuple[Run, list[Batch]]]:
    """differences of the configuration -> (Run at step 0, list of its first 4 batches)."""

    def build(**differences):
        config = make_config(differences=differences)
        torch.manual_seed(config.seed)
        data = build_data(config, cpu)
        loader = build_training_loader(config, data, cpu, first=0, total=4)
        return build_run(config, data.classes, cpu, num_images=len(data.train)), list(loader)

    return build


@pytest.fixture(scope="session")
def steps(cpu) -> Callable[..., list[dict]]:
    """Optimizer steps on batches; returns their numbers."""

    def take(run, batches, **options):
        run.network.train()
        return [optimize(run, run.network, batch, cpu, **{**FP32, **options}) for batch in batches]

    return take


@pytest.fixture(scope="session")
def labels_of() -> Callable[[Run, Batch], Tensor]:
    """What the anchors of a batch are to learn, (N, R)."""

    def assign(run, batch):
        sizes = [tuple(image.shape[-2:]) for image in batch.images]
        return run.criterion.assign(run.network.anchors(batch.padded_size), batch.targets, sizes).labels

    return assign


@pytest.fixture(scope="session")
def analytic() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(logits (N, R, K) of a step, labels (N, R), sums (2, K) of the steps before) -> what the step adds to them.

    |d loss / d logit| of positive and negative entries (arXiv:2201.02593, eq. 6, by hand), in float64.
    """

    def added(logits, labels, sums):
        ratio = (sums[0] / (sums[1] + 1e-10)).clamp(0, 1) if sums.any() else torch.ones(logits.shape[-1])
        gamma = 2 + 8 * (1 - ratio)
        p = logits.double().sigmoid()
        positive = 0.25 * gamma / 2 * (1 - p) ** gamma * (1 - p - gamma * p * p.log())
        negative = 0.75 * gamma / 2 * p**gamma * (p - gamma * (1 - p) * (1 - p).log())
        is_positive = labels[..., None] == torch.arange(logits.shape[-1])
        is_negative = ~is_positive & (labels != IGNORE)[..., None]
        by_class = torch.stack([(positive * is_positive).sum((0, 1)), (negative * is_negative).sum((0, 1))])
        return by_class / (labels >= 0).sum().clamp(min=1)

    return added


def square_anchors(size: int, stride: int, sides: tuple[float, ...]) -> Tensor:
    """(H * W * A, 4) square anchors of the given sides at the middles of the cells of a size x size image."""
    centers = torch.arange(stride / 2, size, stride)
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    half = torch.tensor(sides) / 2
    x, y = x.reshape(-1, 1), y.reshape(-1, 1)
    return torch.stack([x - half, y - half, x + half, y + half], dim=-1).view(-1, 4)


@pytest.fixture(scope="session")
def grid() -> Callable[[int, int, tuple[float, ...]], Tensor]:
    """See `square_anchors`."""
    return square_anchors


@pytest.fixture
def pyramid() -> list[Tensor]:
    """Three levels of a 128 x 128 image, A = 2; the coarsest has 32 anchors."""
    return [square_anchors(128, stride, (4.0 * stride, 6.0 * stride)) for stride in (8, 16, 32)]


@pytest.fixture(scope="session")
def random_boxes() -> Callable[..., Tensor]:
    """(count, seed, size of the image) -> (count, 4) boxes with sides of 10 to 80."""

    def draw(count: int, seed: int = 0, size: int = 128) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        sides = 10 + 70 * torch.rand(count, 2, generator=generator)
        corner = torch.rand(count, 2, generator=generator) * (size - sides)
        return torch.cat([corner, corner + sides], dim=1)

    return draw


class Official(NamedTuple):
    """An assignment of United-Perception, in our labels and boxes."""

    boxes: list[Tensor]  # per image, (G_i, 4)
    object_labels: list[Tensor]  # per image, (G_i,)
    ignore_boxes: list[Tensor]  # per image, (M_i, 4)
    labels: Tensor  # (N, R)
    arrays: dict[str, Tensor]

    def labels_of(self, matches: Tensor) -> Tensor:
        """(N, R) from matches (N, R)."""
        rows = zip(matches, self.object_labels, strict=True)
        return torch.stack([torch.cat([labels, torch.tensor([IGNORE, BACKGROUND])])[row] for row, labels in rows])


@pytest.fixture(scope="session")
def official() -> Callable[[str], Official]:
    """The assignment of a file in tests/fixtures, made by United-Perception (52aaeb9, on a CPU).

    Four images of 256 x 320: nine objects; 14 objects, two almost in one place, and an ignore region; an ignore region
    alone; four objects, the first 1 pixel wide. There, corners are inclusive, labels count from 1, 0 is background, and
    a row of zeros is none.
    """

    def read(name: str) -> Official:
        with np.load(Path(__file__).parents[2] / "fixtures" / f"{name}.npz") as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file}
        inclusive = torch.tensor([0.0, 0, 1, 1])
        objects = [arrays[f"gt_{i}"] for i in range(4)]
        objects = [rows[rows.any(dim=1)] for rows in objects]
        ignored = [arrays[f"ignore_{i}"] for i in range(4)]
        return Official(
            [rows[:, :4] + inclusive for rows in objects],
            [rows[:, 4].long() - 1 for rows in objects],
            [rows[rows.any(dim=1)] + inclusive for rows in ignored],
            arrays["cls_target"].long() - 1,
            arrays,
        )

    return read


@pytest.fixture(scope="session")
def heads() -> dict[str, dict]:
    """What to change in `values` for EFL's improved baseline, Generalized Focal Loss, and a point head with EFL."""
    return {
        "improved baseline": {
            "model": {
                "fpn": {"levels": 4, "p6_from": "c5_lateral"},
                "head": {"quality": "iou"},
                "anchors": {"base_size": 1.0, "scales": [2.5, 3.5]},
            },
            "matching": {"matcher": {"candidates": 18}},
            "loss": {"box": {"weight": 1.0}, "box_weighting": "quality"},
        },
        "gfl": {
            "model": {"head": {"box": "distribution", "bins": 9, "level_scales": True}},
            "loss": {"classification": {"name": "quality_focal"}, "box_weighting": "score"},
        },
        "points": {
            "model": {"head": {"box": "distances", "quality": "centerness", "level_scales": True}},
            "loss": {"box": {"weight": 1.0}, "box_weighting": "quality"},
        },
    }


class Scene(NamedTuple):
    """What a criterion is called with: two images, two levels, one square of 8 strides per location, K = 3."""

    outputs: HeadOutputs  # leaves
    anchors: list[Tensor]
    assignment: Assignment


@pytest.fixture(scope="session")
def scene() -> Callable[[int], Scene]:
    """Depth of the box outputs -> a scene with random outputs, five positives on both levels, and two ignored anchors.

    The first object of the second image lies beside the center of its anchor.
    """

    def draw(depth: int) -> Scene:
        generator = torch.Generator().manual_seed(0)
        anchors = [square_anchors(32, 8, (64.0,)), square_anchors(32, 16, (128.0,))]

        def maps(*tail: int, scale: float = 1.0) -> list[Tensor]:
            drawn = [scale * torch.randn(2, len(level), *tail, generator=generator) for level in anchors]
            return [level.requires_grad_() for level in drawn]

        labels = torch.full((2, 20), BACKGROUND)
        labels[0, [5, 6, 17]], labels[1, [0, 19]] = torch.tensor([2, 0, 1]), torch.tensor([0, 2])
        labels[[0, 1], [3, 18]] = IGNORE
        middle = torch.tensor([[12.0, 12], [20, 12], [24, 8], [4, 4], [24, 24]])
        reach = 15 + 25 * torch.rand(5, 4, generator=generator)
        reach[3, 0] = -1
        boxes = torch.cat([middle - reach[:, :2], middle + reach[:, 2:]], dim=1)
        return Scene(HeadOutputs(maps(3), maps(depth, scale=0.3), maps()), anchors, Assignment(labels, boxes))

    return draw


@pytest.fixture(scope="session")
def slow_overlap() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """IoU and GIoU of two boxes (4,)."""

    def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        return shared / union, shared / union - (hull - union) / hull

    return overlap
