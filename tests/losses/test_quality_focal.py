import math

import pytest
import torch
from torch import Tensor

from longshot.losses import BACKGROUND, IGNORE, QualityFocalLoss, quality_focal_loss, sigmoid_focal_loss


def random_case(rows: int = 40, classes: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, dtype=dtype, generator=generator)
    labels = torch.randint(IGNORE, classes, (rows,), generator=generator)
    return logits, labels, torch.rand(rows, dtype=dtype, generator=generator)


def slow_quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, gamma: float) -> float:
    """Equation 3 of the paper, one entry at a time."""
    total = 0.0
    for row, label, y in zip(logits.tolist(), labels.tolist(), quality.tolist(), strict=True):
        for k, z in enumerate(row if label != IGNORE else []):
            p, target = 1 / (1 + math.exp(-z)), y if k == label else 0.0
            total -= abs(target - p) ** gamma * ((1 - target) * math.log(1 - p) + target * math.log(p))
    return total


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_loss_is_the_papers_formula(gamma):
    logits, labels, quality = random_case()
    expected = slow_quality_focal_loss(logits, labels, quality, gamma)
    assert quality_focal_loss(logits, labels, quality, gamma=gamma).item() == pytest.approx(expected, rel=1e-12)


def test_numbers_worked_out_by_hand():
    even = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)  # p = 1/2, BCE = log 2 for any target
    loss = quality_focal_loss(even, torch.tensor([0]), torch.tensor([0.75]), gamma=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) / 16)
    # d/dz = 2 (p - q) p (1 - p) BCE + (p - q)^2 (p - q), with p - q = -1/4
    assert even.grad.item() == pytest.approx(-math.log(2) / 8 - 1 / 64)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 7.3])
def test_gradient_is_the_derivative_of_the_loss(gamma):
    logits, labels, quality = random_case(rows=9)
    assert torch.autograd.gradcheck(
        lambda z: quality_focal_loss(z, labels, quality, gamma=gamma), logits.requires_grad_()
    )


def test_quality_one_is_focal_loss_without_alpha():
    logits, labels, quality = random_case()
    loss = quality_focal_loss(logits, labels, torch.ones_like(quality), gamma=2.0)
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits, labels, alpha=None, gamma=2.0))


def test_score_that_equals_the_quality_costs_nothing():
    logits = torch.tensor([[math.log(3.0)]], dtype=torch.float64, requires_grad=True)  # p = 3/4
    loss = quality_focal_loss(logits, torch.tensor([0]), torch.tensor([0.75]), gamma=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-30)
    assert logits.grad.item() == pytest.approx(0, abs=1e-15)


def test_quality_of_rows_that_are_not_positive_changes_nothing():
    logits, labels, quality = random_case()
    other = torch.where(labels >= 0, quality, math.nan)
    assert quality_focal_loss(logits, labels, other, gamma=2.0) == quality_focal_loss(
        logits, labels, quality, gamma=2.0
    )


def test_quality_is_a_constant_in_backward():
    logits, labels, quality = random_case()
    quality_focal_loss(logits.requires_grad_(), labels, quality.requires_grad_(), gamma=2.0).backward()
    assert quality.grad is None


@pytest.mark.parametrize("quality", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_saturated_logits_are_finite_in_float32(quality, gamma):
    logits = torch.linspace(-200, 200, 401)[:, None].requires_grad_()
    labels, quality = torch.zeros(401, dtype=torch.int64), torch.full((401,), quality)
    loss = quality_focal_loss(logits, labels, quality, gamma=gamma)
    loss.backward()
    exact = quality_focal_loss(logits.detach().double(), labels, quality.double(), gamma=gamma)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert logits.grad.isfinite().all()


def test_module_sums_over_levels_times_its_weight():
    logits, labels, quality = random_case()
    levels = [[t[:24].view(2, 12, *t.shape[1:]), t[24:].view(2, 8, *t.shape[1:])] for t in (logits, labels, quality)]
    loss = QualityFocalLoss(7, gamma=1.5, weight=3.0)(*levels)
    assert loss.item() == pytest.approx(3 * slow_quality_focal_loss(logits, labels, quality, 1.5), rel=1e-12)


def test_quality_of_another_shape_is_refused():
    logits, labels, quality = random_case()
    with pytest.raises(ValueError, match=r"logits have shape \(40, 7\) and quality \(1,\); expected"):
        quality_focal_loss(logits, labels, quality[:1], gamma=2.0)


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_quality_of_a_positive_outside_its_range_is_refused(value):
    logits, labels, quality = random_case()
    quality[(labels >= 0).nonzero()[3]] = value
    with pytest.raises(ValueError, match=rf"quality of a positive is {value}; expected a value in \[0, 1\]"):
        quality_focal_loss(logits, labels, quality, gamma=2.0)


def test_a_quality_that_is_nan_makes_the_loss_nan():
    logits, labels, quality = random_case()
    quality[(labels >= 0).nonzero()[3]] = math.nan
    assert quality_focal_loss(logits, labels, quality, gamma=2.0).isnan()


def test_background_alone_is_focal_loss():
    logits, _, quality = random_case()
    labels = torch.full((40,), BACKGROUND)
    loss = quality_focal_loss(logits, labels, quality, gamma=2.0)
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits, labels, alpha=None, gamma=2.0))
