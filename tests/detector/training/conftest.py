"""Runs that have taken no step yet, steps that they take, and what Equalized Focal Loss should collect in them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from datasets.loader import Batch
from detector.build import build_data, build_run, build_training_loader
from detector.training.engine import Run, optimize
from losses import IGNORE

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
