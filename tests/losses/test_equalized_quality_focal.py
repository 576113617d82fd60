import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longshot.losses import IGNORE, EqualizedFocalLoss, EqualizedQualityFocalLoss, QualityFocalLoss

# Three levels of 2 images, A = 2 anchors per location, K = 5 classes: R_l = 12, 4, 2.
ANCHORS, CLASSES = (12, 4, 2), 5


def draw_step(seed: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Logits, labels and quality of one step. Class 4 never occurs; IGNORE and BACKGROUND do."""
    generator = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(2, rows, CLASSES, dtype=torch.float64, generator=generator) - 1 for rows in ANCHORS]
    labels = [torch.randint(IGNORE, CLASSES - 1, (2, rows), generator=generator) for rows in ANCHORS]
    return logits, labels, [torch.rand(2, rows, dtype=torch.float64, generator=generator) for rows in ANCHORS]


class SlowEqualizedQualityFocal:
    """The loss with a dense target and the derivative that autograd finds, in float64."""

    def __init__(self, gamma: float, scale: float):
        self.gamma, self.scale = gamma, scale
        self.positive = self.negative = torch.zeros(CLASSES, dtype=torch.float64)
        self.ratio = torch.ones(CLASSES, dtype=torch.float64)

    def step(self, logits: Tensor, labels: Tensor, quality: Tensor, normalizer: float) -> tuple[float, Tensor]:
        z = logits.clone().requires_grad_()
        one_hot = torch.zeros_like(logits)
        rows = torch.nonzero(labels >= 0).squeeze(1)
        one_hot[rows, labels[rows]] = 1
        target, exponent = one_hot * quality[:, None], self.gamma + self.scale * (1 - self.ratio)
        cost = F.binary_cross_entropy_with_logits(z, target, reduction="none")
        cost = exponent / self.gamma * (target - z.sigmoid()).abs() ** exponent * cost
        loss = cost[labels != IGNORE].sum() / normalizer
        (gradient,) = torch.autograd.grad(loss, z)
        self.positive = self.positive + (gradient.abs() * one_hot).sum(0)
        self.negative = self.negative + (gradient.abs() * (1 - one_hot)).sum(0)
        self.ratio = (self.positive / (self.negative + 1e-10)).clamp(0, 1)
        return loss.item(), gradient


def flat(levels: list[Tensor]) -> Tensor:
    return torch.cat([level.flatten(0, 1) for level in levels])


@pytest.mark.parametrize(("gamma", "scale"), [(2.0, 4.0), (1.5, 8.0)])
def test_three_steps_equal_the_slow_loss(gamma, scale):
    loss, slow = EqualizedQualityFocalLoss(CLASSES, gamma=gamma, scale=scale), SlowEqualizedQualityFocal(gamma, scale)
    for step, normalizer in enumerate((7.0, 3.0, 11.0)):
        logits, labels, quality = draw_step(step)
        expected, gradient = slow.step(flat(logits), flat(labels), flat(quality), normalizer)
        levels = [level.requires_grad_() for level in logits]
        loss.begin_step()
        value = loss(levels, labels, quality) / normalizer
        value.backward()
        loss.after_backward()
        assert value.item() == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(flat([level.grad for level in levels]), gradient, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(loss.positive_gradient, slow.positive, rtol=1e-12, atol=0)
        torch.testing.assert_close(loss.negative_gradient, slow.negative, rtol=1e-12, atol=0)
        torch.testing.assert_close(loss.gradient_ratio, slow.ratio, rtol=1e-12, atol=0)
    assert slow.ratio[4] == 0
    assert len(slow.ratio.unique()) == CLASSES  # the comparison sees classes mixed up


def test_it_is_quality_focal_before_any_gradient():
    torch.testing.assert_close(
        EqualizedQualityFocalLoss(CLASSES)(*draw_step(0)), QualityFocalLoss(CLASSES)(*draw_step(0))
    )


def test_quality_one_is_equalized_focal_without_alpha():
    logits, labels, quality = draw_step(0)
    quality = [torch.ones_like(level) for level in quality]
    both = EqualizedQualityFocalLoss(CLASSES, scale=8.0), EqualizedFocalLoss(CLASSES, alpha=None, scale=8.0)
    for loss, targets in zip(both, ((labels, quality), (labels,)), strict=True):
        loss([level.clone().requires_grad_() for level in logits], *targets).backward()
        loss.after_backward()
    torch.testing.assert_close(both[0].gradient_ratio, both[1].gradient_ratio, rtol=1e-12, atol=0)
    torch.testing.assert_close(both[0](logits, labels, quality), both[1](logits, labels))
