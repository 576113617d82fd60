import math

import pytest
import torch
from torch import Tensor

from longshot.losses import BACKGROUND, IGNORE, EqualizedFocalLoss, FocalLoss, equalized_focal_loss, sigmoid_focal_loss

# Three levels of 2 images, A = 2 anchors per location, K = 5 classes: R_l = 12, 4, 2.
ANCHORS, CLASSES = (12, 4, 2), 5


def draw_step(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and labels of one step. Class 4 never occurs; IGNORE and BACKGROUND do."""
    generator = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(2, rows, CLASSES, dtype=dtype, generator=generator) - 1 for rows in ANCHORS]
    return logits, [torch.randint(IGNORE, CLASSES - 1, (2, rows), generator=generator) for rows in ANCHORS]


class SlowEqualizedFocal:
    """The paper's loss and its analytic gradients, one entry at a time, in float64."""

    def __init__(self, alpha: float, gamma: float, scale: float):
        self.alpha, self.gamma, self.scale = alpha, gamma, scale
        self.positive, self.negative = [0.0] * CLASSES, [0.0] * CLASSES
        self.ratio = [1.0] * CLASSES

    def step(self, logits: list[Tensor], labels: list[Tensor], normalizer: float) -> float:
        total = 0.0
        for level_logits, level_labels in zip(logits, labels, strict=True):
            rows = level_logits.flatten(0, 1).tolist()
            for row, label in zip(rows, level_labels.flatten().tolist(), strict=True):
                for k, z in enumerate(row if label != IGNORE else []):
                    total += self._entry(z, k, is_positive=k == label, normalizer=normalizer)
        pairs = zip(self.positive, self.negative, strict=True)
        self.ratio = [min(1.0, max(0.0, positive / (negative + 1e-10))) for positive, negative in pairs]
        return total

    def _entry(self, z: float, k: int, *, is_positive: bool, normalizer: float) -> float:
        p = 1 / (1 + math.exp(-z))
        exponent = self.gamma + self.scale * (1 - self.ratio[k])
        weight = exponent / self.gamma / normalizer
        if is_positive:
            gradient = (1 - p) ** exponent * (exponent * p * math.log(p) - (1 - p))
            self.positive[k] += abs(self.alpha * weight * gradient)
            return self.alpha * weight * (1 - p) ** exponent * -math.log(p)
        gradient = p**exponent * (p - exponent * (1 - p) * math.log(1 - p))
        self.negative[k] += abs((1 - self.alpha) * weight * gradient)
        return (1 - self.alpha) * weight * p**exponent * -math.log(1 - p)


@pytest.mark.parametrize(("alpha", "gamma", "scale"), [(0.25, 2.0, 8.0), (0.4, 1.5, 4.0)])
def test_three_steps_equal_the_slow_loss(run_step, alpha, gamma, scale):
    loss = EqualizedFocalLoss(CLASSES, alpha=alpha, gamma=gamma, scale=scale)
    slow = SlowEqualizedFocal(alpha, gamma, scale)
    ratios = [loss.gradient_ratio.tolist()]
    for step, normalizer in enumerate((7.0, 3.0, 11.0)):
        logits, labels = draw_step(step)
        expected = slow.step(logits, labels, normalizer)
        assert run_step(loss, logits, labels, normalizer) == pytest.approx(expected, rel=1e-12)
        assert loss.positive_gradient.tolist() == pytest.approx(slow.positive, rel=1e-12)
        assert loss.negative_gradient.tolist() == pytest.approx(slow.negative, rel=1e-12)
        assert loss.gradient_ratio.tolist() == pytest.approx(slow.ratio, rel=1e-12)
        ratios.append(loss.gradient_ratio.tolist())
    assert ratios[0] == [1] * CLASSES
    assert ratios[1][4] == 0  # without a positive, a class has no positive gradient
    assert len(set(ratios[3])) == CLASSES  # the comparison sees classes mixed up


def test_equalized_focal_is_focal_before_any_gradient():
    logits, labels = draw_step(0)
    torch.testing.assert_close(EqualizedFocalLoss(CLASSES)(logits, labels), FocalLoss(CLASSES)(logits, labels))


def test_scale_zero_is_focal_whatever_was_collected(run_step):
    loss = EqualizedFocalLoss(CLASSES, scale=0.0)
    run_step(loss, *draw_step(0))
    assert loss.gradient_ratio.min() == 0
    torch.testing.assert_close(loss(*draw_step(1)), FocalLoss(CLASSES)(*draw_step(1)))


def test_ratio_raises_exponent_and_weight_of_its_class():
    logits, ratio = torch.tensor([[0.3, -0.7]], dtype=torch.float64), torch.tensor([0.25, 1.0])
    options = {"alpha": 0.25, "gamma": 2.0, "scale": 8.0}
    loss = equalized_focal_loss(logits, torch.tensor([BACKGROUND]), **options, gradient_ratio=ratio)
    balanced = sigmoid_focal_loss(logits[:, 1:], torch.tensor([BACKGROUND]), alpha=0.25, gamma=2.0)
    raised = 4 * sigmoid_focal_loss(logits[:, :1], torch.tensor([BACKGROUND]), alpha=0.25, gamma=8.0)
    torch.testing.assert_close(loss, raised + balanced)


def test_ratio_is_at_most_one(run_step):
    loss = EqualizedFocalLoss(1)
    run_step(loss, [torch.full((1, 2, 1), -5.0)], [torch.tensor([[0, BACKGROUND]])])
    assert loss.positive_gradient > loss.negative_gradient
    assert loss.gradient_ratio.item() == 1


@pytest.mark.parametrize("switch", ["use_focusing", "use_weighting"])
def test_each_factor_can_be_used_alone(switch):
    logits, labels = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([BACKGROUND])
    options = {
        "alpha": 0.25,
        "gamma": 2.0,
        "scale": 8.0,
        "gradient_ratio": torch.tensor([0.25]),
    }  # exponent 8, weight 4
    other = {"use_focusing": "use_weighting", "use_weighting": "use_focusing"}[switch]
    loss = equalized_focal_loss(logits, labels, **options, **{other: False})
    exponent, weight = (8.0, 1.0) if switch == "use_focusing" else (2.0, 4.0)
    torch.testing.assert_close(loss, weight * sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=exponent))


def test_module_hands_its_switches_on(run_step):
    loss = EqualizedFocalLoss(CLASSES, use_focusing=False, use_weighting=False)
    run_step(loss, *draw_step(0))
    assert loss.gradient_ratio.min() == 0
    torch.testing.assert_close(loss(*draw_step(1)), FocalLoss(CLASSES)(*draw_step(1)))


def test_gradient_is_the_derivative_of_the_loss():
    logits, labels = draw_step(0)
    ratio = torch.tensor([0, 0.3, 0.6, 0.9, 1.0])
    assert torch.autograd.gradcheck(
        lambda z: equalized_focal_loss(z, labels[0], alpha=0.25, gamma=2.0, scale=8.0, gradient_ratio=ratio),
        logits[0].requires_grad_(),
    )


def test_images_without_objects_give_negative_gradient_alone(run_step):
    loss = EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    run_step(loss, logits, [torch.full_like(level, BACKGROUND) for level in labels])
    assert not loss.positive_gradient.any()
    assert (loss.negative_gradient > 0).all()
    assert not loss.gradient_ratio.any()


def test_ignored_images_collect_nothing_and_leave_the_ratio_at_one(run_step):
    loss = EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    assert run_step(loss, logits, [torch.full_like(level, IGNORE) for level in labels]) == 0
    assert not loss.positive_gradient.any()
    assert not loss.negative_gradient.any()
    assert (loss.gradient_ratio == 1).all()


def test_saturated_logits_are_finite_and_not_dropped(run_step):
    loss = EqualizedFocalLoss(2)
    logits = torch.tensor([[[200.0, -200.0], [-200.0, 200.0]]])
    assert math.isfinite(run_step(loss, [logits], [torch.tensor([[1, BACKGROUND]])]))
    assert loss.negative_gradient.min() > 0
    assert math.isfinite(run_step(loss, [logits], [torch.tensor([[1, BACKGROUND]])]))


def test_restored_state_goes_on_as_the_original(run_step):
    original, restored = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    run_step(original, *draw_step(0))
    state = original.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        "positive_gradient": torch.float64,
        "negative_gradient": torch.float64,
    }
    restored.load_state_dict({name: value.clone() for name, value in state.items()})
    assert run_step(restored, *draw_step(1)) == run_step(original, *draw_step(1))
    assert torch.equal(restored.gradient_ratio, original.gradient_ratio)


def test_module_refuses_logits_of_another_number_of_classes():
    with pytest.raises(ValueError, match=r"level 0 have shape \(2, 12, 5\).* built for 6 classes"):
        EqualizedFocalLoss(6)(*draw_step(0))


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"scale": -1.0}])
def test_exponents_without_meaning_are_refused(options):
    with pytest.raises(ValueError, match="expected gamma above 0 and scale at least 0"):
        EqualizedFocalLoss(3, **options)
