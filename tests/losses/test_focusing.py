import math

import pytest
import torch

from longshot import losses
from longshot.losses import adaptive_gamma, equal_gradient_gamma, flsd_gamma


def gradient_ratio(p: float, gamma: float) -> float:
    """g of Mukhoti et al. 2020, Proposition 1."""
    return (1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * math.log(p)


def bisected_gamma(p: float) -> float:
    """Root of g(p, gamma) = 1 other than 0: g rises above 1 and then falls below."""
    low, high = 1e-3, 1.0
    while gradient_ratio(p, high) > 1:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gradient_ratio(p, middle) > 1 else (low, middle)
    return low


def test_flsd_gamma_is_five_below_a_fifth_and_three_from_there():
    p = torch.tensor([0.0, 0.1999, 0.2, 0.4, 1.0], dtype=torch.float64)
    assert flsd_gamma(p).tolist() == [5, 5, 3, 3, 3]


def test_equal_gradient_gamma_is_the_bisected_root_of_the_gradient_ratio():
    probabilities = [0.003, 0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.45, 0.49, 0.499]
    roots = equal_gradient_gamma(torch.tensor(probabilities, dtype=torch.float64))
    assert roots.tolist() == pytest.approx([bisected_gamma(p) for p in probabilities], rel=1e-11)


def test_equal_gradient_gamma_has_the_values_of_the_closed_form_in_many_digits():
    # With W of branch -1 in 700 digits. A W of its rounded argument would lose half the digits near p = 1/2.
    expected = {
        1e-302: 8.7089791529286782e302,
        1e-50: 6.6405587039409447e50,
        0.49999: 5.1095238703970921e-5,
    }
    p = torch.tensor(list(expected), dtype=torch.float64)
    assert equal_gradient_gamma(p).tolist() == pytest.approx(list(expected.values()), rel=1e-11)


def test_one_more_step_of_newton_changes_nothing(monkeypatch):
    p = torch.linspace(0.001, 0.3, 1000, dtype=torch.float64)
    roots = equal_gradient_gamma(p)
    monkeypatch.setattr(losses.focusing, "NEWTON_STEPS", losses.focusing.NEWTON_STEPS + 1)
    torch.testing.assert_close(equal_gradient_gamma(p), roots, rtol=1e-14, atol=0)


def test_no_exponent_above_zero_keeps_the_gradient_beyond_one_half():
    assert gradient_ratio(0.51, 1e-3) < 1
    p = torch.tensor([0.5, 0.50001, 0.7, 1.0], dtype=torch.float64)
    assert equal_gradient_gamma(p).tolist() == [0, 0, 0, 0]


def test_equal_gradient_gamma_falls_from_infinity_to_zero():
    p = torch.linspace(0, 0.5, 10001, dtype=torch.float64)
    gamma = equal_gradient_gamma(p)
    assert gamma[0] == math.inf
    assert (gamma.diff() < 0).all()
    assert gamma[-1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gamma", [flsd_gamma, adaptive_gamma, equal_gradient_gamma])
def test_exponents_have_the_type_of_p_and_only_their_rounding(dtype, gamma):
    p = torch.linspace(0.01, 1, 50, dtype=dtype)
    assert gamma(p).dtype == dtype
    assert torch.equal(gamma(p), gamma(p.double()).to(dtype))


@pytest.mark.parametrize("gamma", [flsd_gamma, adaptive_gamma, equal_gradient_gamma])
def test_exponents_are_constants_in_backward(gamma):
    assert not gamma(torch.tensor([0.1, 0.22, 0.3], requires_grad=True)).requires_grad


def test_adaptive_gamma_joins_the_two_exponents_of_flsd_without_a_jump():
    p = torch.linspace(0, 1, 10001, dtype=torch.float64)
    gamma = adaptive_gamma(p)
    assert (gamma[p < 0.196] == 5).all()
    assert (gamma[p > 0.253] == 3).all()
    between = (p > 0.197) & (p < 0.2525)
    assert torch.equal(gamma[between], equal_gradient_gamma(p[between]))
    assert gamma.diff().abs().max() < 0.01


def test_adaptive_gamma_keeps_to_the_bounds_it_is_given():
    gamma = adaptive_gamma(torch.tensor([0.0, 0.1, 0.9]), lowest=1.0, highest=20.0)
    assert gamma.tolist() == pytest.approx([20, bisected_gamma(0.1), 1])
