import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from longshot.losses import BinaryFocalLoss, adaptive_gamma, binary_focal_loss, flsd_gamma, softmax_focal_loss


def random_case(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, dtype=dtype, generator=generator)
    return logits, torch.randint(2, shape, generator=generator)


def loss_and_gradient(logits: Tensor, target: Tensor, **options) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    loss = binary_focal_loss(logits, target, **options)
    loss.sum().backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_and_gradient_equal_torchvision(alpha, reduction):
    logits, target = random_case(3, 4, 5)
    expected = logits.clone().requires_grad_()
    expected_loss = torchvision_focal_loss(
        expected, target.double(), alpha=-1 if alpha is None else alpha, gamma=2.0, reduction=reduction
    )
    expected_loss.sum().backward()
    loss, gradient = loss_and_gradient(logits, target, alpha=alpha, gamma=2.0, reduction=reduction)
    # torchvision subtracts p from 1, which costs it digits.
    torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, expected.grad, rtol=1e-10, atol=0)


def test_gamma_zero_is_binary_cross_entropy():
    logits, target = random_case(40)
    loss, gradient = loss_and_gradient(logits, target, gamma=0.0)
    expected = logits.clone().requires_grad_()
    expected_loss = F.binary_cross_entropy_with_logits(expected, target.double())
    expected_loss.backward()
    torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, expected.grad, rtol=1e-13, atol=1e-16)


def test_numbers_worked_out_by_hand():
    # p = 3/4: a positive has p_t = 3/4, a negative 1/4.
    logits = torch.full((2,), math.log(3), dtype=torch.float64)
    losses = binary_focal_loss(logits, torch.tensor([1, 0]), alpha=0.25, gamma=2.0, reduction="none")
    assert losses.tolist() == pytest.approx([0.25 * math.log(4 / 3) / 16, 0.75 * math.log(4) * 9 / 16])


@pytest.mark.parametrize("gamma", [2.0, flsd_gamma, adaptive_gamma])
def test_it_is_the_softmax_loss_of_the_logit_and_zero(gamma):
    logits, target = random_case(2, 3, 4)
    two = torch.stack([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(
        binary_focal_loss(logits, target, gamma=gamma), softmax_focal_loss(two, target, gamma=gamma), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_gradient_is_the_derivative_of_the_loss(gamma):
    logits, target = random_case(3, 4)
    target[1, 2] = -100
    assert torch.autograd.gradcheck(
        lambda z: binary_focal_loss(z, target, alpha=0.3, gamma=gamma), logits.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32])
def test_target_may_have_any_type(dtype):
    logits, target = random_case(40)
    loss = binary_focal_loss(logits, target.to(dtype), gamma=2.0)
    assert loss == binary_focal_loss(logits, target, gamma=2.0)


def test_ignored_entries_contribute_nothing_whatever_they_hold():
    logits, target = random_case(40)
    expected, _ = loss_and_gradient(logits[2:], target[2:], alpha=0.3, gamma=2.0)
    logits[:2], target[:2] = torch.tensor([math.nan, -math.inf]), 255
    loss, gradient = loss_and_gradient(logits, target, alpha=0.3, gamma=2.0, ignore_index=255)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    assert gradient[:2].tolist() == [0, 0]
    assert gradient.isfinite().all()


def test_all_ignored_gives_zero_with_a_zero_gradient():
    loss, gradient = loss_and_gradient(torch.ones(3), torch.full((3,), -100), gamma=2.0)
    assert loss.item() == 0
    assert gradient.tolist() == [0, 0, 0]


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_keep_the_precision_of_float32(positive, gamma):
    logits, target = torch.linspace(-200, 200, 4001), torch.full((4001,), positive)
    loss, gradient = loss_and_gradient(logits, target, gamma=gamma, reduction="none")
    exact, exact_gradient = loss_and_gradient(logits.double(), target, gamma=gamma, reduction="none")
    # Entries below 1e-37 are denormal in float32 or zero.
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-37)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(dtype):
    logits, target = random_case(40, dtype=torch.float32)
    logits = logits.to(dtype)
    loss, gradient = loss_and_gradient(logits, target, gamma=2.0)
    expected, expected_gradient = loss_and_gradient(logits.float(), target, gamma=2.0)
    assert loss.dtype == torch.float32
    assert loss == expected
    assert torch.equal(gradient, expected_gradient.to(dtype))


def test_module_passes_its_options_on():
    logits, target = random_case(40)
    target[0] = 7
    options = {"gamma": flsd_gamma, "alpha": 0.3, "ignore_index": 7, "reduction": "sum"}
    assert BinaryFocalLoss(**options)(logits, target) == binary_focal_loss(logits, target, **options)


@pytest.mark.parametrize(
    ("options", "message"), [({"gamma": -1.0}, r"gamma is -1\.0"), ({"alpha": 2.0}, r"alpha is 2\.0")]
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BinaryFocalLoss(**options)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0, 255]), "target holds 255; expected 0, 1 or ignore_index -100"),
        (torch.tensor([0.5, 1]), r"target holds 0\.5"),
        (torch.tensor([[0, 1]]), r"logits have shape \(2,\), target \(1, 2\); expected the same"),
    ],
)
def test_targets_that_cannot_be_are_refused(target, message):
    with pytest.raises(ValueError, match=message):
        binary_focal_loss(torch.zeros(2), target, gamma=2.0)


def test_target_that_cannot_be_makes_the_loss_nan_where_nothing_checks(monkeypatch):
    monkeypatch.setattr("longshot.losses.binary_focal.check_target", lambda *_: None)  # as on another device
    assert binary_focal_loss(torch.zeros(2), torch.tensor([0, 255]), gamma=2.0).isnan()
