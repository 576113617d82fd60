import math

import pytest
import torch
from torch import Tensor

from longshot.losses import (
    BACKGROUND,
    IGNORE,
    EqualizationLoss,
    EqualizationLossV2,
    FocalLoss,
    equalization_loss,
    equalization_loss_v2,
)

# Three levels of 2 images, A = 2 anchors per location, K = 5 classes: R_l = 12, 4, 2.
ANCHORS, CLASSES = (12, 4, 2), 5
PAPER = {"alpha": None, "gamma": 0.0}  # cross entropy
V2 = {"slope": 12.0, "threshold": 0.8, "boost": 4.0}
RARE = torch.tensor([False, True, False, True, True])


def draw_step(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and labels of one step. Class 4 never occurs; IGNORE and BACKGROUND do."""
    generator = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(2, rows, CLASSES, dtype=dtype, generator=generator) - 1 for rows in ANCHORS]
    return logits, [torch.randint(IGNORE, CLASSES - 1, (2, rows), generator=generator) for rows in ANCHORS]


def entries(logits: list[Tensor], labels: list[Tensor]):
    """(score, class, label) of each entry that is not ignored."""
    for level_logits, level_labels in zip(logits, labels, strict=True):
        rows = level_logits.flatten(0, 1).tolist()
        for row, label in zip(rows, level_labels.flatten().tolist(), strict=True):
            yield from ((1 / (1 + math.exp(-z)), k, label) for k, z in enumerate(row) if label != IGNORE)


# ------------------------------------------------------------------------------------------------- Equalization Loss


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 0.0)])
def test_loss_is_the_papers_formula_times_focal(alpha, gamma):
    # Classes 1 and 4 are in less than 0.02 of 500 images; class 3 is in exactly as many.
    loss = EqualizationLoss([400, 9, 60, 10, 0], 500, threshold=0.02, alpha=alpha, gamma=gamma, weight=3.0)
    logits, labels = draw_step(0)
    expected = 0.0
    for p, k, label in entries(logits, labels):
        y, is_object, is_rare = float(k == label), float(label >= 0), float(k in (1, 4))
        p_t, alpha_t = (p, alpha) if y else (1 - p, 1 - alpha)
        expected -= 3 * (1 - is_object * is_rare * (1 - y)) * alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)


def test_rare_class_keeps_its_positives_and_background_but_not_other_objects():
    even = torch.zeros(1, 2, dtype=torch.float64)  # p = 1/2: every entry costs log 2
    costs = [
        equalization_loss(even, torch.tensor([label]), rare=torch.tensor([False, True]), **PAPER).item()
        for label in (0, 1, BACKGROUND, IGNORE)
    ]
    assert costs == pytest.approx([math.log(2), 2 * math.log(2), 2 * math.log(2), 0])


def test_threshold_zero_is_focal():
    loss = EqualizationLoss([0, 1, 2, 3, 4], 4, threshold=0.0)
    assert loss(*draw_step(0)) == FocalLoss(CLASSES)(*draw_step(0))


def test_gradient_of_equalization_is_the_derivative_of_the_loss():
    logits, labels = draw_step(0)
    assert torch.autograd.gradcheck(
        lambda z: equalization_loss(z, labels[0], rare=RARE, alpha=0.25, gamma=2.0), logits[0].requires_grad_()
    )


def test_rare_classes_follow_the_module_and_are_no_state():
    loss = EqualizationLoss([400, 9], 500, threshold=0.02)
    assert loss.rare.tolist() == [False, True]
    assert loss.num_classes == 2
    assert not loss.state_dict()
    assert loss.to("meta").rare.device.type == "meta"


@pytest.mark.parametrize(
    ("counts", "num_images", "options", "message"),
    [
        ([3, 11], 10, {}, "class 1 is in 11 images, but num_images is 10"),
        ([-1], 10, {}, "class 0 is in -1 images"),
        ([0], 0, {}, "num_images is 0; expected the number of training images"),
        ([3], 10, {"threshold": 1.5}, "threshold is 1.5; expected a fraction"),
        ([3], 10, {"gamma": -1.0}, "gamma is -1.0"),
    ],
)
def test_counts_and_options_without_meaning_are_refused(counts, num_images, options, message):
    with pytest.raises(ValueError, match=message):
        EqualizationLoss(counts, num_images, **options)


# ----------------------------------------------------------------------------------------------------------- version 2


class SlowEqualizationV2:
    """The paper's weights times focal loss and its analytic gradients, one entry at a time, in float64."""

    def __init__(self, alpha: float, gamma: float, slope: float, threshold: float, boost: float):
        self.alpha, self.gamma, self.slope, self.threshold, self.boost = alpha, gamma, slope, threshold, boost
        self.positive, self.negative, self.ratio = [0.0] * CLASSES, [0.0] * CLASSES, [100.0] * CLASSES

    def step(self, logits: list[Tensor], labels: list[Tensor], normalizer: float) -> float:
        h = [1 / (1 + math.exp(-self.slope * (ratio - self.threshold))) for ratio in self.ratio]
        total, a = 0.0, self.gamma
        for p, k, label in entries(logits, labels):
            if k == label:
                weight = self.alpha * (1 + self.boost * (1 - h[k])) / normalizer
                total -= weight * (1 - p) ** a * math.log(p)
                self.positive[k] += weight * abs((1 - p) ** a * (a * p * math.log(p) - (1 - p)))
            else:
                weight = (1 - self.alpha) * h[k] / normalizer
                total -= weight * p**a * math.log(1 - p)
                self.negative[k] += weight * abs(p**a * (p - a * (1 - p) * math.log(1 - p)))
        pairs = zip(self.positive, self.negative, strict=True)
        self.ratio = [positive / (negative + 1e-10) for positive, negative in pairs]
        return total


@pytest.mark.parametrize(
    ("alpha", "gamma", "slope", "threshold", "boost"), [(0.25, 2.0, 12.0, 0.8, 4.0), (0.4, 1.5, 3.0, 0.3, 2.0)]
)
def test_three_steps_equal_the_slow_loss(run_step, alpha, gamma, slope, threshold, boost):
    loss = EqualizationLossV2(CLASSES, alpha=alpha, gamma=gamma, slope=slope, threshold=threshold, boost=boost)
    slow = SlowEqualizationV2(alpha, gamma, slope, threshold, boost)
    for step, normalizer in enumerate((7.0, 3.0, 11.0)):
        expected = slow.step(*draw_step(step), normalizer)
        assert run_step(loss, *draw_step(step), normalizer) == pytest.approx(expected, rel=1e-12)
        assert loss.positive_gradient.tolist() == pytest.approx(slow.positive, rel=1e-12)
        assert loss.negative_gradient.tolist() == pytest.approx(slow.negative, rel=1e-12)
        assert loss.gradient_ratio.tolist() == pytest.approx(slow.ratio, rel=1e-12)
    assert len(set(slow.ratio)) == CLASSES  # the comparison sees classes mixed up
    assert slow.ratio[4] == 0


def test_weights_are_those_of_the_authors_code():
    # Ratios after a step of the authors' code, and the weights that it used in the next one.
    ratio = torch.tensor([0.5270513, 0.09922393, 4.191554])
    positive, negative = [4.8542986, 4.9991093, 1.0], [3.6425378e-02, 2.2273319e-04, 1.0]
    even = torch.zeros(1, 3)  # p = 1/2: every entry costs log 2 times its weight
    options = {"gradient_ratio": ratio, **PAPER, **V2}
    background = equalization_loss_v2(even, torch.tensor([BACKGROUND]), **options).item()
    assert background == pytest.approx(math.log(2) * sum(negative), rel=1e-6)
    for k in range(3):
        cost = equalization_loss_v2(even, torch.tensor([k]), **options).item() - background
        assert cost == pytest.approx(math.log(2) * (positive[k] - negative[k]), rel=1e-5)


def test_first_step_is_focal():
    loss = EqualizationLossV2(CLASSES)
    assert loss.gradient_ratio.tolist() == [100] * CLASSES
    assert loss(*draw_step(0)) == FocalLoss(CLASSES)(*draw_step(0))


def test_without_positives_a_class_is_hardly_a_negative(run_step):
    loss = EqualizationLossV2(1)
    nothing = [torch.zeros(1, 1, 1, dtype=torch.float64)], [torch.tensor([[BACKGROUND]])]
    first = run_step(loss, *nothing)
    assert run_step(loss, *nothing) == pytest.approx(first / (1 + math.exp(12 * 0.8)), rel=1e-12)


def test_ratio_may_exceed_one(run_step):
    loss = EqualizationLossV2(1)
    run_step(loss, [torch.tensor([[[-2.0], [-2.0]]])], [torch.tensor([[0, BACKGROUND]])])
    assert loss.gradient_ratio.item() > 10


def test_gradient_of_version_2_is_the_derivative_of_the_loss():
    logits, labels = draw_step(0)
    options = {"gradient_ratio": torch.tensor([0, 0.7, 0.8, 1.0, 100.0]), "alpha": 0.25, "gamma": 2.0, **V2}
    assert torch.autograd.gradcheck(lambda z: equalization_loss_v2(z, labels[0], **options), logits[0].requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(run_step, dtype):
    logits, labels = draw_step(0, torch.float32)
    half = [level.to(dtype) for level in logits]
    both = []
    for levels in (half, [level.float() for level in half]):
        loss = EqualizationLossV2(CLASSES)
        both.append(([run_step(loss, levels, labels) for _ in range(2)], loss.gradient_ratio.tolist()))
        z = levels[0].clone().requires_grad_()
        equalization_loss(z, labels[0], rare=RARE, alpha=0.25, gamma=2.0).backward()
        both[-1] += (z.grad.to(dtype),)
    (half_values, half_ratio, half_gradient), (values, ratio, gradient) = both
    assert half_values == values
    assert half_ratio == pytest.approx(ratio, rel=1e-6)
    assert torch.equal(half_gradient, gradient)


@pytest.mark.parametrize("options", [{"slope": 0.0}, {"boost": -1.0}])
def test_weights_without_meaning_are_refused(options):
    with pytest.raises(ValueError, match="expected slope above 0 and boost at least 0"):
        EqualizationLossV2(3, **options)
