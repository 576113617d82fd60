"""How exact the kernel's float32 is, over all scores and qualities, and that its chunks of positives fit together."""

import pytest
import torch
from torch import Tensor

from longshot import losses
from longshot.losses import BACKGROUND, equalized_focal_loss, equalized_quality_focal_loss
from longshot.losses.kernel import focal_sum

# Exponents of 2 + 8 (1 - g): fractional ones.
RATIO = torch.tensor([0.0, 0.137, 0.5, 0.871, 1.0], dtype=torch.float64)
EXPONENT = 2 + 8 * (1 - RATIO)


def gradient(loss, logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    loss(logits).backward()
    return logits.grad.double()


def worst_error(loss, logits: Tensor) -> float:
    """The largest relative one of a float32 gradient, wherever the float64 gradient exceeds 1e-30."""
    ours, exact = gradient(loss, logits), gradient(loss, logits.double())
    counted = exact.abs() > 1e-30
    assert counted.float().mean() > 0.1
    return ((ours - exact).abs() / exact.abs())[counted].max().item()


def test_float32_gradients_of_eqfl_are_exact_for_every_score_and_quality():
    z = torch.linspace(-30, 30, 1201)
    qualities = torch.linspace(0, 1, 51).expand(len(z), -1)
    # Where the score is nearly right, q - p cancels.
    near = z.double().sigmoid()[:, None] * (1 + torch.tensor([0, 1e-7, 1e-6, -1e-5, 1e-4, -1e-3, 1e-2]))
    quality = torch.cat([qualities, near.clamp(max=1).float()], dim=1)
    rows = z[:, None].expand_as(quality).flatten()
    for label in range(len(RATIO)):
        labels = torch.full(rows.shape, label)

        def loss(logits, labels=labels):
            return equalized_quality_focal_loss(
                logits, labels, quality.flatten(), gamma=2.0, scale=8.0, gradient_ratio=RATIO
            )

        assert worst_error(loss, rows[:, None].expand(-1, len(RATIO)).contiguous()) < 1e-5


@pytest.mark.parametrize("label", [BACKGROUND, 0, 1, 3])
def test_float32_gradients_of_efl_are_exact_for_every_score(label):
    logits = torch.linspace(-200, 200, 40001)[:, None].expand(-1, len(RATIO)).contiguous()
    labels = torch.full((len(logits),), label)

    def loss(logits):
        return equalized_focal_loss(logits, labels, alpha=0.25, gamma=2.0, scale=8.0, gradient_ratio=RATIO)

    assert worst_error(loss, logits) < 1e-5
    assert gradient(loss, logits).isfinite().all()


def test_positives_come_in_chunks_of_their_own(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(BACKGROUND, 5, (40,), generator=generator)
    quality, results = torch.rand(40, dtype=torch.float64, generator=generator), []
    assert (labels >= 0).sum() > 20
    for size in (2**15, 3):
        monkeypatch.setattr(losses.kernel, "_POSITIVES", size)
        sums = torch.zeros(2, 5, dtype=torch.float64)

        def loss(z, hook=sums.add_):
            return focal_sum(z, labels, gamma=EXPONENT, quality=quality, gradient_hook=hook)

        results.append((loss(logits), gradient(loss, logits), sums))
    torch.testing.assert_close(results[1], results[0], rtol=1e-14, atol=0)
