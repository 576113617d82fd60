"""Runs that have taken no step yet, steps that they take, and what Equalized Focal Loss should collect in them.

Also heads, and outputs of heads, for the losses.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from longshot.datasets.loading.batches import Batch
from longshot.detector.build import build_run
from longshot.detector.build_data import build_data, build_training_loader
from longshot.detector.model.head import HeadOutputs
from longshot.detector.training.criterion import Assignment
from longshot.detector.training.state import Run
from longshot.detector.training.step import optimize
from longshot.losses import BACKGROUND, IGNORE

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


def _squares(size: int, stride: int, side: float) -> Tensor:
    """(H * W, 4) squares at the middles of the cells of a size x size image."""
    y, x = torch.meshgrid(*[torch.arange(stride / 2, size, stride)] * 2, indexing="ij")
    return torch.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], dim=-1).view(-1, 4)


@pytest.fixture(scope="session")
def scene() -> Callable[[int], Scene]:
    """Depth of the box outputs -> a scene with random outputs, five positives on both levels, and two ignored anchors.

    The first object of the second image lies beside the center of its anchor.
    """

    def draw(depth: int) -> Scene:
        generator = torch.Generator().manual_seed(0)
        anchors = [_squares(32, 8, 64.0), _squares(32, 16, 128.0)]

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
