import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from longshot import losses
from longshot.losses import (
    BACKGROUND,
    IGNORE,
    CrossEntropyLoss,
    FocalLoss,
    sigmoid_cross_entropy_loss,
    sigmoid_focal_loss,
)

OPTIONS = {"alpha": 0.25, "gamma": 2.0}


def random_case(rows: int = 40, classes: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, dtype=dtype, generator=generator)
    return logits, torch.randint(IGNORE, classes, (rows,), generator=generator)


def slow_focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> float:
    """Equation 5 of the paper, one entry at a time."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for k, z in enumerate(row):
            if label != IGNORE:
                p = 1 / (1 + math.exp(-z))
                p_t, alpha_t = (p, alpha) if k == label else (1 - p, 1 - alpha)
                total += -alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    return total


def gradient(logits: Tensor, labels: Tensor, **options: float) -> Tensor:
    logits = logits.clone().requires_grad_()
    sigmoid_focal_loss(logits, labels, **options).backward()
    return logits.grad


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_loss_is_the_papers_formula(gamma):
    logits, labels = random_case()
    loss = sigmoid_focal_loss(logits, labels, alpha=0.3, gamma=gamma)
    assert loss.item() == pytest.approx(slow_focal_loss(logits, labels, 0.3, gamma), rel=1e-12)


def test_loss_and_gradient_equal_torchvision():
    logits, labels = random_case()
    one_hot = torch.zeros_like(logits)
    one_hot[labels >= 0, labels[labels >= 0]] = 1
    expected = logits.clone().requires_grad_()
    loss = torchvision_focal_loss(expected, one_hot, alpha=0.25, gamma=2.0)[labels != IGNORE].sum()
    loss.backward()
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels, **OPTIONS), loss.detach())
    torch.testing.assert_close(gradient(logits, labels, **OPTIONS), expected.grad)


def test_numbers_worked_out_by_hand():
    even = torch.zeros(1, 1, dtype=torch.float64)  # p = 1/2
    assert sigmoid_focal_loss(even, torch.tensor([0]), **OPTIONS).item() == pytest.approx(0.25 * 0.25 * math.log(2))
    assert sigmoid_focal_loss(even, torch.tensor([-1]), **OPTIONS).item() == pytest.approx(0.75 * 0.25 * math.log(2))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 7.3])
def test_gradient_is_the_derivative_of_the_loss(gamma):
    logits, labels = random_case(rows=9)
    assert torch.autograd.gradcheck(
        lambda z: sigmoid_focal_loss(z, labels, alpha=0.25, gamma=gamma), logits.requires_grad_()
    )


def test_chunks_change_nothing(monkeypatch):
    logits, labels = random_case()
    loss, whole = sigmoid_focal_loss(logits, labels, **OPTIONS), gradient(logits, labels, **OPTIONS)
    monkeypatch.setattr(losses.kernel, "CHUNK", 3 * 10 * 8)  # three rows at a time; 40 rows leave a short last chunk
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels, **OPTIONS), loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient(logits, labels, **OPTIONS), whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize("label", [0, BACKGROUND])
@pytest.mark.parametrize("gamma", [1.0, 2.0, 10.0])
def test_extreme_logits_keep_the_precision_of_float32(label, gamma):
    logits = torch.linspace(-200, 200, 4001)[:, None]
    labels = torch.full((4001,), label)
    loss = sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=gamma)
    exact = sigmoid_focal_loss(logits.double(), labels, alpha=0.25, gamma=gamma)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    # Entries below 1e-37 are denormal in float32 or zero: only their size is compared.
    torch.testing.assert_close(
        gradient(logits, labels, alpha=0.25, gamma=gamma).double(),
        gradient(logits.double(), labels, alpha=0.25, gamma=gamma),
        rtol=1e-5, atol=1e-37,
    )  # fmt: skip


def test_ignored_rows_contribute_nothing_whatever_they_hold():
    logits, labels = random_case()
    labels[0] = IGNORE
    logits[0] = torch.tensor([math.nan, math.inf, -math.inf, 1e30, 0, 0, 0])
    loss = sigmoid_focal_loss(logits, labels, **OPTIONS)
    assert loss.item() == pytest.approx(slow_focal_loss(logits[1:], labels[1:], **OPTIONS), rel=1e-12)
    assert torch.equal(gradient(logits, labels, **OPTIONS)[0], torch.zeros(7, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(dtype):
    logits, labels = random_case(dtype=torch.float32)
    logits = logits.to(dtype)
    loss = sigmoid_focal_loss(logits, labels, **OPTIONS)
    assert loss.dtype == torch.float32
    assert loss == sigmoid_focal_loss(logits.float(), labels, **OPTIONS)
    assert torch.equal(gradient(logits, labels, **OPTIONS), gradient(logits.float(), labels, **OPTIONS).to(dtype))


def test_loss_scale_saves_the_small_gradients_of_float16():
    # 2e-9 at a prior of 0.001 is zero in float16; the scale must be applied before rounding.
    logits = torch.full((1, 1), -7.0, dtype=torch.float16, requires_grad=True)
    (2**16 * sigmoid_focal_loss(logits, torch.tensor([BACKGROUND]), **OPTIONS)).backward()
    exact = gradient(logits.detach().double(), torch.tensor([BACKGROUND]), **OPTIONS)
    assert logits.grad.item() == pytest.approx(2**16 * exact.item(), rel=1e-3)


def test_gradient_is_the_same_in_a_second_backward():
    logits, labels = random_case()
    logits.requires_grad_()
    loss = sigmoid_focal_loss(logits, labels, **OPTIONS)
    (first,) = torch.autograd.grad(3 * loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, logits)
    torch.testing.assert_close(second, first, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((6, 7), torch.zeros(1).long(), r"logits have shape \(6, 7\) and labels \(1,\); expected"),
        ((2, 6, 7), torch.zeros(3, 4).long(), r"logits have shape \(2, 6, 7\) and labels \(3, 4\); expected"),
        (
            (2, 7),
            torch.tensor([0, -100]),
            r"labels hold -100; expected a class in \[0, 7\), BACKGROUND \(-1\) or IGNORE",
        ),
        ((2, 7), torch.tensor([0, 7]), r"labels hold 7; expected a class in \[0, 7\)"),
    ],
)
def test_labels_that_do_not_belong_to_the_logits_are_refused(shape, labels, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_focal_loss(torch.zeros(shape), labels, **OPTIONS)


def test_second_derivative_is_refused():
    logits, labels = random_case()
    logits.requires_grad_()
    (first,) = torch.autograd.grad(sigmoid_focal_loss(logits, labels, **OPTIONS), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


def test_second_derivative_through_a_function_of_the_loss_is_refused():
    logits, labels = random_case()
    logits.requires_grad_()
    (first,) = torch.autograd.grad(sigmoid_focal_loss(logits, labels, **OPTIONS) ** 2, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_module_is_left_out_of_compiled_code():
    logits, labels = random_case()
    with pytest.raises(Exception, match=r"torch\.compiler\.disable"):
        torch.compile(FocalLoss(7), backend="eager", fullgraph=True)([logits], [labels])


def test_gradient_of_forward_is_handed_over_without_a_copy():
    logits, labels = random_case()
    logits.requires_grad_()
    loss = sigmoid_focal_loss(logits, labels, **OPTIONS)
    made_in_forward = loss.grad_fn.gradient.data_ptr()
    loss.backward()
    assert logits.grad.data_ptr() == made_in_forward
    assert loss.grad_fn is None or loss.grad_fn.gradient is None


def test_half_logits_keep_no_gradient_between_forward_and_backward():
    logits, labels = random_case(dtype=torch.float32)
    assert sigmoid_focal_loss(logits.bfloat16().requires_grad_(), labels, **OPTIONS).grad_fn.gradient is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_around_the_loss_changes_nothing(dtype):
    logits, labels = random_case(dtype=torch.float32)
    logits = logits.to(dtype).requires_grad_()
    plain = sigmoid_focal_loss(logits, labels, **OPTIONS)
    expected = gradient(logits.detach(), labels, **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sigmoid_focal_loss(logits, labels, **OPTIONS)
        loss.backward()
    assert torch.equal(loss, plain)
    assert torch.equal(logits.grad, expected)


def test_loss_without_gradient_is_the_same():
    logits, labels = random_case()
    loss = sigmoid_focal_loss(logits.clone().requires_grad_(), labels, **OPTIONS)
    assert loss.requires_grad
    with torch.no_grad():
        assert sigmoid_focal_loss(logits.requires_grad_(), labels, **OPTIONS) == loss
    assert not sigmoid_focal_loss(logits.detach(), labels, **OPTIONS).requires_grad


def test_level_without_anchors_gives_zero_with_a_graph():
    logits = torch.zeros(2, 0, 7, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.zeros(2, 0, dtype=torch.int64), **OPTIONS)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (2, 0, 7)


def test_module_sums_over_levels_times_its_weight():
    logits, labels = random_case()
    levels = [logits[:24].view(2, 12, 7), logits[24:].view(2, 8, 7)]
    loss = FocalLoss(7, **OPTIONS, weight=3.0)(levels, [labels[:24].view(2, 12), labels[24:].view(2, 8)])
    assert loss.item() == pytest.approx(3 * slow_focal_loss(logits, labels, **OPTIONS), rel=1e-12)


def test_cross_entropy_is_focal_loss_at_gamma_zero():
    logits, labels = random_case()
    expected = slow_focal_loss(logits, labels, alpha=0.3, gamma=0.0)
    assert sigmoid_cross_entropy_loss(logits, labels, alpha=0.3).item() == pytest.approx(expected, rel=1e-12)
    assert CrossEntropyLoss(7, alpha=0.3, weight=2.0)([logits], [labels]).item() == pytest.approx(
        2 * expected, rel=1e-12
    )


def test_module_refuses_logits_of_another_number_of_classes():
    levels = [torch.zeros(2, 5, 7), torch.zeros(2, 5, 8)]
    labels = [torch.zeros(2, 5, dtype=torch.int64)] * 2
    with pytest.raises(ValueError, match=r"level 1 have shape \(2, 5, 8\).* built for 7 classes"):
        FocalLoss(7)(levels, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": 5.0}, "alpha is 5.0"), ({"gamma": -1.0}, "gamma is -1.0"), ({"weight": 0.0}, "weight is 0.0")],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FocalLoss(3, **options)
