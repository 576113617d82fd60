"""The losses of EFL's improved baseline, and their gradients, as its official code computes them.

`e2e_improved_baseline_focal.npz` was made by United-Perception's post-processor (52aaeb9, on a CPU): two images, seven
classes, two anchors per cell, maps with the anchor outermost, labels 0 for background, boxes with inclusive corners.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from longshot.datasets.loading.dataset import Targets
from longshot.detector.matching.legacy import LegacyATSSMatcher
from longshot.detector.model.anchors import AnchorGenerator
from longshot.detector.model.head import HeadOutputs, flatten_level
from longshot.detector.training.criterion import Criterion
from longshot.losses import BACKGROUND, FocalLoss, GIoULoss

FIXTURE = Path(__file__).parents[2] / "fixtures" / "e2e_improved_baseline_focal.npz"
LEVELS, MAPS = range(5), {"logits": ("cls", 7), "deltas": ("loc", 4), "quality": ("iou", 1)}


@pytest.fixture(scope="module")
def official():
    with np.load(FIXTURE) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


@pytest.fixture(scope="module")
def anchors():
    return AnchorGenerator(strides=(8, 16, 32, 64, 128), base_size=1.0, ratios=[1.0], scales=[6.0, 8.0])((192, 256))


@pytest.fixture
def criterion():
    return Criterion(
        FocalLoss(7, alpha=0.25, gamma=2.0), GIoULoss(), LegacyATSSMatcher(candidates=18),
        quality="iou", box_weighting="quality",
    )  # fmt: skip


@pytest.fixture
def assignment(official, anchors, criterion):
    targets, sizes = [], []
    for i in range(2):
        boxes = official[f"gt_{i}"][:, :4] + torch.tensor([0, 0, 1, 1])
        targets.append(Targets(boxes, official[f"gt_{i}"][:, 4].long() - 1, torch.zeros(0, 4)))
        sizes.append(tuple(official[f"image_hw_{i}"].tolist()))
    return criterion.assign(anchors, targets, sizes)


def test_anchors_are_the_official_ones(official, anchors):
    for level in LEVELS:
        expected = official[f"anchors_l{level}"] + torch.tensor([0, 0, 1, 1])
        assert torch.equal(anchors[level], expected)


def test_assignment_is_the_official_one(official, assignment):
    assert torch.equal(assignment.labels, official["cls_target"] - 1)
    assert torch.equal(assignment.labels != BACKGROUND, official["pos_mask"])


def test_losses_and_their_gradients_are_the_official_ones(official, anchors, criterion, assignment):
    maps = {
        name: [official[f"raw_{theirs}_l{level}"].clone().requires_grad_() for level in LEVELS]
        for name, (theirs, _) in MAPS.items()
    }
    flat = {name: [flatten_level(level, MAPS[name][1]) for level in levels] for name, levels in maps.items()}
    flat["quality"] = [level.squeeze(-1) for level in flat["quality"]]
    losses = criterion(HeadOutputs(**flat), anchors, assignment, official["cls_normalizer"].float())
    for ours, theirs, name in [
        ("classification", "cls", "logits"),
        ("box", "loc", "deltas"),
        ("quality", "iou", "quality"),
    ]:
        assert losses[ours].item() == pytest.approx(official[f"{theirs}_loss"].item(), rel=1e-6)
        gradients = torch.autograd.grad(losses[ours], maps[name], retain_graph=True)
        for level, gradient in zip(LEVELS, gradients, strict=True):
            expected = official[f"grad_{theirs}_loss_l{level}_{theirs}"]
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
