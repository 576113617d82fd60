import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longshot.losses import distribution_focal_loss, expected_value


def random_case(rows: int = 40, bins: int = 17, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, bins, dtype=dtype, generator=generator)
    return logits, (bins - 1) * torch.rand(rows, dtype=dtype, generator=generator)


def test_loss_is_the_papers_formula():
    logits, target = random_case()
    expected = []
    for row, t in zip(logits.tolist(), target.tolist(), strict=True):
        log_total = math.log(sum(math.exp(z) for z in row))
        left = int(t)
        expected.append((left + 1 - t) * (log_total - row[left]) + (t - left) * (log_total - row[left + 1]))
    assert distribution_focal_loss(logits, target).tolist() == pytest.approx(expected, rel=1e-12)


def test_numbers_worked_out_by_hand():
    # Bins of probability 1/6, 1/3, 1/2; a quarter of the way from bin 1 to bin 2.
    logits = torch.tensor([[1.0, 2, 3]], dtype=torch.float64).log()
    loss = distribution_focal_loss(logits, torch.tensor([1.25]))
    assert loss.item() == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(2))
    assert expected_value(logits).item() == pytest.approx(1 / 3 + 2 / 2)


def test_integers_are_cross_entropy_with_their_bin_the_last_included():
    logits, _ = random_case(17)
    bins = torch.arange(17)
    expected = F.cross_entropy(logits, bins, reduction="none")
    assert torch.equal(distribution_focal_loss(logits, bins.double()), expected)


def test_loss_is_least_at_the_shares_of_the_two_neighbors():
    shares = torch.tensor([[1e-30, 0.7, 0.3, 1e-30]], dtype=torch.float64)
    logits = shares.log().requires_grad_()
    distribution_focal_loss(logits, torch.tensor([1.3], dtype=torch.float64)).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 4, dtype=torch.float64), rtol=0, atol=1e-15)
    assert expected_value(logits).item() == pytest.approx(1.3)


def test_gradients_are_the_derivatives():
    logits, target = random_case(6, bins=5)
    target[0], target[1] = 4, 2
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: distribution_focal_loss(z, target), logits)
    assert torch.autograd.gradcheck(expected_value, logits)


def test_four_sides_in_one_call():
    logits, target = random_case()
    sides = distribution_focal_loss(logits.view(10, 4, 17), target.view(10, 4))
    assert torch.equal(sides, distribution_focal_loss(logits, target).view(10, 4))
    assert torch.equal(expected_value(logits.view(10, 4, 17)), expected_value(logits).view(10, 4))


def test_target_is_a_constant_in_backward():
    logits, target = random_case()
    assert not distribution_focal_loss(logits, target.requires_grad_()).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32_under_autocast_too(dtype):
    logits, target = random_case(dtype=torch.float32)
    logits = logits.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss, value = distribution_focal_loss(logits, target), expected_value(logits)
    assert loss.dtype == value.dtype == torch.float32
    assert torch.equal(loss, distribution_focal_loss(logits.float(), target))
    assert torch.equal(value, expected_value(logits.float()))


def test_extreme_logits_are_finite_with_their_gradient():
    logits = torch.tensor([[200.0, -200, -200], [-200, -200, 200]], requires_grad=True)
    loss = distribution_focal_loss(logits, torch.tensor([2.0, 1.5]))
    loss.sum().backward()
    assert loss.tolist() == [400, 200]
    assert logits.grad.isfinite().all()


def test_no_positives_give_no_losses_and_a_graph():
    logits = torch.zeros(0, 17, requires_grad=True)
    loss = distribution_focal_loss(logits, torch.zeros(0))
    loss.sum().backward()
    assert loss.shape == (0,)
    assert logits.grad.shape == (0, 17)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([0.5, 4.5], r"target lies in \[0\.5, 4\.5\]; expected \[0, 4\]"),
        ([-0.1, 3], r"target lies in \[-0\.1, 3\]"),
        ([math.nan, 3], r"target lies in \[nan"),
        ([1.0], r"shape \(2, 5\) and target \(1,\)"),
    ],
)
def test_targets_that_cannot_be_are_refused(target, message):
    with pytest.raises(ValueError, match=message):
        distribution_focal_loss(torch.zeros(2, 5), torch.tensor(target))
