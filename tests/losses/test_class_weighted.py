import math

import pytest
import torch
from torch import Tensor

from longshot.losses import (
    BACKGROUND,
    IGNORE,
    ClassWeightedFocalLoss,
    FocalLoss,
    class_weighted_focal_loss,
    class_weights,
    sigmoid_focal_loss,
)

INVERSE, EFFECTIVE = "inverse_frequency", "effective_number"
OPTIONS = {"alpha": 0.25, "gamma": 2.0}


def random_case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (40, 7), labels and class weights."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 7, dtype=dtype, generator=generator)
    return logits, torch.randint(IGNORE, 7, (40,), generator=generator), 3 * torch.rand(7, generator=generator).double()


def slow_class_weighted_focal(logits: Tensor, labels: Tensor, weights: Tensor, alpha: float, gamma: float) -> float:
    """Focal loss, row by row, times the weight of the row's class."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        row_weight = weights[label].item() if label >= 0 else 1.0
        for k, z in enumerate(row if label != IGNORE else []):
            p = 1 / (1 + math.exp(-z))
            p_t, alpha_t = (p, alpha) if k == label else (1 - p, 1 - alpha)
            total -= row_weight * alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    return total


def test_weights_worked_out_by_hand():
    # 1/n: 1 and 1/3, sum over the 4 samples 2. Effective number, beta 1/2: 1 and 2/3, sum over the 3 samples 7/3.
    assert class_weights(torch.tensor([1, 3]), weighting=INVERSE).tolist() == pytest.approx([2, 2 / 3])
    effective = class_weights(torch.tensor([1, 2]), weighting=EFFECTIVE, beta=0.5)
    assert effective.tolist() == pytest.approx([9 / 7, 6 / 7])


@pytest.mark.parametrize("weighting", [INVERSE, EFFECTIVE])
def test_mean_weight_of_the_samples_is_one_and_rarer_classes_weigh_more(weighting):
    counts = torch.tensor([12000, 3000, 400, 71, 9, 2])
    weights = class_weights(counts, weighting=weighting)
    assert ((weights * counts).sum() / counts.sum()).item() == pytest.approx(1, rel=1e-12)
    assert (weights.diff() > 0).all()


def test_weighting_ranges_from_equal_weights_to_inverse_frequency():
    counts = torch.tensor([12000, 3000, 400, 71, 9, 2])
    assert class_weights(counts, weighting=EFFECTIVE, beta=0.0).tolist() == pytest.approx([1] * 6)
    torch.testing.assert_close(
        class_weights(counts, weighting=EFFECTIVE, beta=1 - 1e-12), class_weights(counts, weighting=INVERSE)
    )


@pytest.mark.parametrize("weighting", [INVERSE, EFFECTIVE])
def test_class_without_samples_weighs_as_one_with_a_single_sample(weighting):
    weights = class_weights(torch.tensor([0, 5]), weighting=weighting)
    assert torch.equal(weights, class_weights(torch.tensor([1, 5]), weighting=weighting))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_loss_is_the_papers_formula(gamma):
    logits, labels, weights = random_case()
    loss = class_weighted_focal_loss(logits, labels, class_weight=weights, alpha=0.3, gamma=gamma)
    assert loss.item() == pytest.approx(slow_class_weighted_focal(logits, labels, weights, 0.3, gamma), rel=1e-12)


def test_all_entries_of_a_row_have_the_weight_of_its_class_and_background_has_one():
    even, weights = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0.5, 2.0, 7.0])
    costs = [  # p = 1/2: every entry costs log 2
        class_weighted_focal_loss(even, torch.tensor([label]), class_weight=weights, alpha=None, gamma=0.0).item()
        for label in (0, 1, BACKGROUND, IGNORE)
    ]
    assert costs == pytest.approx([1.5 * math.log(2), 6 * math.log(2), 3 * math.log(2), 0])


def test_gradient_is_the_derivative_of_the_loss():
    logits, labels, weights = random_case()
    assert torch.autograd.gradcheck(
        lambda z: class_weighted_focal_loss(z, labels, class_weight=weights, **OPTIONS), logits.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(dtype):
    logits, labels, weights = random_case(torch.float32)
    half, full = logits.to(dtype).requires_grad_(), logits.to(dtype).float().requires_grad_()
    losses = [class_weighted_focal_loss(z, labels, class_weight=weights, **OPTIONS) for z in (half, full)]
    for loss in losses:
        loss.backward()
    assert losses[0].dtype == torch.float32
    assert torch.equal(*losses)
    assert torch.equal(half.grad, full.grad.to(dtype))


def test_equal_counts_are_focal():
    logits, labels, _ = random_case()
    loss, focal = (loss([logits[None]], [labels[None]]) for loss in (ClassWeightedFocalLoss([5] * 7, 9), FocalLoss(7)))
    assert loss.item() == pytest.approx(focal.item(), rel=1e-12)
    assert class_weighted_focal_loss(logits, labels, class_weight=torch.ones(7), **OPTIONS) == sigmoid_focal_loss(
        logits, labels, **OPTIONS
    )


@pytest.mark.parametrize("weighting", [INVERSE, EFFECTIVE])
def test_module_hands_its_options_on(weighting):
    logits, labels, _ = random_case()
    counts = [90, 50, 20, 7, 3, 1, 0]
    loss = ClassWeightedFocalLoss(counts, 100, weighting=weighting, beta=0.9, alpha=0.4, gamma=1.5, weight=3.0)
    weights = class_weights(torch.tensor(counts), weighting=weighting, beta=0.9)
    expected = 3 * slow_class_weighted_focal(logits, labels, weights, 0.4, 1.5)
    assert loss([logits[None]], [labels[None]]).item() == pytest.approx(expected, rel=1e-12)


def test_class_weights_follow_the_module_and_are_no_state():
    loss = ClassWeightedFocalLoss([3, 1], 3)
    assert loss.num_classes == 2
    assert not loss.state_dict()
    assert loss.to("meta").class_weight.device.type == "meta"


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([11], {}, "class 0 is in 11 images, but num_images is 10"),
        ([3], {"beta": 1.0}, "beta is 1.0; expected at least 0 and below 1"),
        ([3], {"alpha": 1.0}, "alpha is 1.0"),
    ],
)
def test_counts_and_options_without_meaning_are_refused(counts, options, message):
    with pytest.raises(ValueError, match=message):
        ClassWeightedFocalLoss(counts, 10, **options)
