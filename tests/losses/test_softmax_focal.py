import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longshot.losses import (
    InverseFocalLoss,
    SoftmaxFocalLoss,
    adaptive_gamma,
    equal_gradient_gamma,
    flsd_gamma,
    inverse_focal_loss,
    softmax_focal_loss,
)

IGNORED = -100
BOTH = pytest.mark.parametrize("loss_function", [softmax_focal_loss, inverse_focal_loss])


def random_case(rows: int = 40, classes: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, dtype=dtype, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator)


def true_class_probabilities(logits: Tensor, target: Tensor) -> list[float]:
    """Softmax, one sample at a time."""
    return [
        math.exp(row[label]) / sum(math.exp(z) for z in row)
        for row, label in zip(logits.tolist(), target.tolist(), strict=True)
    ]


def loss_and_gradient(loss_function, logits: Tensor, target: Tensor, **options) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    loss = loss_function(logits, target, **options)
    loss.sum().backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_losses_are_the_papers_formulae(gamma):
    logits, target = random_case()
    p = true_class_probabilities(logits, target)
    focal = softmax_focal_loss(logits, target, gamma=gamma, reduction="none")
    assert focal.tolist() == pytest.approx([-((1 - x) ** gamma) * math.log(x) for x in p], rel=1e-10)
    inverse = inverse_focal_loss(logits, target, gamma=gamma, reduction="none")
    assert inverse.tolist() == pytest.approx([-((1 + x) ** gamma) * math.log(x) for x in p], rel=1e-10)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gamma_zero_is_cross_entropy_with_its_gradient(loss_function, reduction):
    logits, target = random_case(60)
    logits, target = logits.view(5, 4, 3, 5).movedim(3, 1), target.view(5, 4, 3)
    target[:, ::2, 1] = IGNORED
    loss, gradient = loss_and_gradient(loss_function, logits, target, gamma=0.0, reduction=reduction)
    expected, expected_gradient = loss_and_gradient(F.cross_entropy, logits, target, reduction=reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-13, atol=1e-15)


def test_numbers_worked_out_by_hand():
    # p = 1/4 of four equal classes; p = 2/3 of logits log 2 and 0.
    assert softmax_focal_loss(torch.zeros(1, 4), torch.tensor([2]), gamma=2.0).item() == pytest.approx(
        9 / 16 * math.log(4)
    )
    logits = torch.tensor([[math.log(2), 0]])
    assert softmax_focal_loss(logits, torch.tensor([0]), gamma=3.0).item() == pytest.approx(math.log(1.5) / 27)
    assert inverse_focal_loss(logits, torch.tensor([0]), gamma=2.0).item() == pytest.approx(25 / 9 * math.log(1.5))


@BOTH
@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0, 5.0])
def test_gradient_is_the_derivative_of_the_loss(loss_function, gamma):
    logits, target = random_case(8)
    logits, target = logits.view(2, 4, 5).movedim(2, 1).requires_grad_(), target.view(2, 4)
    target[1, 2] = IGNORED
    assert torch.autograd.gradcheck(lambda z: loss_function(z, target, gamma=gamma), logits)


@BOTH
def test_segmentation_equals_classification_of_its_pixels(loss_function):
    # N=2, K=5, H=3, W=4: no two sizes equal
    logits, target = random_case(24)
    maps, labels = logits.view(2, 3, 4, 5).movedim(3, 1), target.view(2, 3, 4)
    losses, gradient = loss_and_gradient(loss_function, maps, labels, gamma=2.0, reduction="none")
    expected, expected_gradient = loss_and_gradient(loss_function, logits, target, gamma=2.0, reduction="none")
    assert torch.equal(losses, expected.view(2, 3, 4))
    torch.testing.assert_close(gradient.movedim(1, 3).reshape(24, 5), expected_gradient, rtol=1e-13, atol=0)


@BOTH
def test_mean_is_over_what_is_not_ignored(loss_function):
    logits, target = random_case()
    target[:15] = IGNORED
    each = loss_function(logits, target, gamma=2.0, reduction="none")
    kept = loss_function(logits[15:], target[15:], gamma=2.0, reduction="none")
    assert torch.equal(each, torch.cat([torch.zeros(15), kept]))
    total = sum(kept.tolist())
    assert loss_function(logits, target, gamma=2.0, reduction="sum").item() == pytest.approx(total)
    assert loss_function(logits, target, gamma=2.0).item() == pytest.approx(total / 25)


@BOTH
def test_ignored_samples_contribute_nothing_whatever_they_hold(loss_function):
    logits, target = random_case()
    expected, _ = loss_and_gradient(loss_function, logits[1:], target[1:], gamma=2.0)
    logits[0], target[0] = torch.tensor([math.nan, math.inf, -math.inf, 1e300, 0]), 255
    loss, gradient = loss_and_gradient(loss_function, logits, target, gamma=2.0, ignore_index=255)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    assert torch.equal(gradient[0], torch.zeros(5, dtype=torch.float64))
    assert gradient.isfinite().all()


@BOTH
@pytest.mark.parametrize("rows", [0, 6])
def test_nothing_to_average_gives_zero_with_a_zero_gradient(loss_function, rows):
    loss, gradient = loss_and_gradient(loss_function, torch.ones(rows, 5), torch.full((rows,), IGNORED), gamma=2.0)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros(rows, 5))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0, flsd_gamma, adaptive_gamma])
def test_extreme_logits_keep_the_precision_of_float32(gamma):
    # Log-odds from -400 to 400, and most of them where 1 - p would round to 0 or 1.
    z = torch.linspace(-200, 200, 4000)
    logits = torch.stack([z, -z, torch.full_like(z, -200)], dim=1)
    target = torch.zeros(4000, dtype=torch.int64)
    loss, gradient = loss_and_gradient(softmax_focal_loss, logits, target, gamma=gamma, reduction="none")
    exact, exact_gradient = loss_and_gradient(
        softmax_focal_loss, logits.double(), target, gamma=gamma, reduction="none"
    )
    # Entries below 1e-37 are denormal in float32 or zero.
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-37)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-37)


def test_gradient_of_sure_samples_is_not_lost_to_rounding():
    # 1 - p = 2 exp(-30) is 0 in float32; with an exponent of 0.1 it still matters.
    logits = torch.tensor([[30.0, 0, 0]])
    _, gradient = loss_and_gradient(softmax_focal_loss, logits, torch.tensor([0]), gamma=0.1)
    rest = 2 * math.exp(-30)
    assert gradient[0, 1].item() == pytest.approx(1.1 * rest**1.1 / 2, rel=1e-5)


@BOTH
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_single_class_costs_nothing(loss_function, gamma):
    loss, gradient = loss_and_gradient(loss_function, torch.tensor([[3.0], [-3]]), torch.zeros(2).long(), gamma=gamma)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros(2, 1))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(loss_function, dtype):
    logits, target = random_case(dtype=torch.float32)
    logits = logits.to(dtype)
    loss, gradient = loss_and_gradient(loss_function, logits, target, gamma=2.0)
    expected, expected_gradient = loss_and_gradient(loss_function, logits.float(), target, gamma=2.0)
    assert loss.dtype == torch.float32
    assert loss == expected
    assert torch.equal(gradient, expected_gradient.to(dtype))


def test_loss_scale_saves_the_small_gradients_of_float16():
    logits = torch.tensor([[10.0, 0]], dtype=torch.float16, requires_grad=True)
    (2**16 * softmax_focal_loss(logits, torch.tensor([0]), gamma=1.0)).backward()
    _, exact = loss_and_gradient(softmax_focal_loss, logits.double(), torch.tensor([0]), gamma=1.0)
    assert exact.half()[0, 1] == 0
    assert logits.grad[0, 1].item() == pytest.approx(2**16 * exact[0, 1].item(), rel=1e-3)


def test_flsd_focuses_each_sample_by_its_own_probability():
    # p = 1/10 and p = 1/4
    logits = torch.tensor([[0, math.log(9)], [0, math.log(3)]], dtype=torch.float64)
    loss = softmax_focal_loss(logits, torch.tensor([0, 0]), gamma=flsd_gamma, reduction="none")
    assert loss.tolist() == pytest.approx([0.9**5 * math.log(10), 0.75**3 * math.log(4)])


def test_exponents_of_the_samples_are_constants_in_backward():
    logits, target = random_case()
    with torch.no_grad():
        exponents = 1 + 3 * logits.softmax(1).gather(1, target[:, None]).squeeze(1)
    each = [
        loss_and_gradient(softmax_focal_loss, logits[i : i + 1], target[i : i + 1], gamma=exponents[i].item())[1]
        for i in range(40)
    ]
    _, gradient = loss_and_gradient(softmax_focal_loss, logits, target, gamma=lambda p: 1 + 3 * p, reduction="sum")
    torch.testing.assert_close(gradient, torch.cat(each), rtol=1e-12, atol=1e-15)


def test_unbounded_adaptive_gamma_has_the_gradient_of_cross_entropy():
    # Which is why adaptive_gamma has bounds.
    logits, target = random_case()
    _, gradient = loss_and_gradient(softmax_focal_loss, logits, target, gamma=equal_gradient_gamma)
    _, expected = loss_and_gradient(F.cross_entropy, logits, target)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-15)


def test_unbounded_adaptive_gamma_is_finite_for_every_float32():
    logits = torch.linspace(-200, 200, 4001)
    logits = torch.stack([logits, torch.zeros_like(logits)], dim=1)
    target = torch.zeros(4001, dtype=torch.int64)
    loss, gradient = loss_and_gradient(softmax_focal_loss, logits, target, gamma=equal_gradient_gamma, reduction="none")
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_adaptive_gamma_pulls_harder_below_its_range_and_softer_above():
    logits, target = random_case()
    logits.requires_grad_()
    p = logits.softmax(1).gather(1, target[:, None]).squeeze(1)
    focal = softmax_focal_loss(logits, target, gamma=adaptive_gamma, reduction="sum")
    size = torch.autograd.grad(focal, logits)[0].abs().sum(1)
    size_of_cross_entropy = (
        torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), logits)[0].abs().sum(1)
    )
    hard, easy = (p > 1e-3) & (p < 0.196), p > 0.253
    assert hard.any()
    assert easy.any()
    assert (size[hard] > size_of_cross_entropy[hard]).all()
    assert (size[easy] < size_of_cross_entropy[easy]).all()


def test_inverse_focal_rises_with_p_in_places_beyond_the_exponent_its_docstring_names():
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    logits, target = torch.stack([p.logit(), torch.zeros_like(p)], dim=1), torch.zeros(999, dtype=torch.int64)

    def rises(gamma: float) -> bool:
        losses = inverse_focal_loss(logits, target, gamma=gamma, reduction="none")
        return bool((losses.diff() > 0).any())

    assert not rises(3.58)
    assert rises(3.60)


def test_second_derivative_is_refused():
    logits, target = random_case()
    logits.requires_grad_()
    loss = softmax_focal_loss(logits, target, gamma=2.0)
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("module", "loss_function"), [(SoftmaxFocalLoss, softmax_focal_loss), (InverseFocalLoss, inverse_focal_loss)]
)
def test_modules_pass_their_options_on(module, loss_function):
    logits, target = random_case()
    target[3] = 7
    options = {"gamma": 1.5, "ignore_index": 7, "reduction": "sum"}
    assert module(**options)(logits, target) == loss_function(logits, target, **options)
    target[3] = IGNORED
    assert module()(logits, target) == loss_function(logits, target, gamma=2.0)


def test_module_takes_a_function_for_gamma():
    logits, target = random_case()
    gamma = partial(adaptive_gamma, lowest=1.0)
    assert SoftmaxFocalLoss(gamma=gamma)(logits, target) == softmax_focal_loss(logits, target, gamma=gamma)


@pytest.mark.parametrize("module", [SoftmaxFocalLoss, InverseFocalLoss])
def test_negative_gamma_is_refused(module):
    with pytest.raises(ValueError, match=r"gamma is -1\.0"):
        module(gamma=-1.0)


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.tensor([0, 255])}, r"target holds 255; expected a class in \[0, 5\) or ignore_index -100"),
        ({"target": torch.tensor([0, -1])}, r"target holds -1; expected a class in \[0, 5\)"),
        ({"target": torch.tensor([5, IGNORED])}, "target holds 5"),
        ({"target": torch.tensor([0])}, r"shape \(2, 5\) and target \(1,\); expected \(N, K, ...\)"),
        ({"logits": torch.zeros(2)}, r"shape \(2,\) and target \(2,\)"),
        ({"reduction": "average"}, "reduction is 'average'; expected 'mean', 'sum' or 'none'"),
    ],
)
def test_what_cannot_be_is_refused(loss_function, change, message):
    sound = {"logits": torch.zeros(2, 5), "target": torch.tensor([0, 4]), "reduction": "mean"}
    assert loss_function(**sound, gamma=2.0).isfinite()
    with pytest.raises(ValueError, match=message):
        loss_function(**{**sound, **change}, gamma=2.0)
