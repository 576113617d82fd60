"""Equalized Focal Loss's gradient hook on the classification outputs of the pyramid levels, beside plain tensor hooks."""

import pytest
import torch

from longshot.losses import GradientGuidedLoss

K = 4


class TensorHooks:
    """Plain tensor hooks on the classification outputs that a loss is given: (2, K) sums of each, in float64."""

    def __init__(self):
        self.of_levels = []

    def register(self, logits, labels):
        """Observe the (N, R_l, K) gradient of every level's logits."""
        for level, level_labels in zip(logits, labels, strict=True):
            positive = level_labels[..., None] == torch.arange(K)

            def hook(gradient, positive=positive):
                sizes = gradient.double().abs()
                sums = [(sizes * of_kind).sum((0, 1)) for of_kind in (positive, ~positive)]
                self.of_levels.append(torch.stack(sums))

            level.register_hook(hook)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["equalized_focal", "equalized_quality_focal", "equalization_v2"])
def test_the_hook_is_given_the_sums_that_tensor_hooks_see_on_every_level(
    start, steps, monkeypatch, name, dtype, tolerance
):
    plain, given = TensorHooks(), []
    forward, gradient_hook = GradientGuidedLoss.forward, GradientGuidedLoss.gradient_hook

    def observed(loss, logits, labels, *quality):
        plain.register(logits, labels)
        return forward(loss, logits, labels, *quality)

    def recorded(loss, sums):
        given.append(sums.clone())
        gradient_hook(loss, sums)

    monkeypatch.setattr(GradientGuidedLoss, "forward", observed)
    monkeypatch.setattr(GradientGuidedLoss, "gradient_hook", recorded)
    run, batches = start(loss={"classification": {"name": name}}, model={"fpn": {"levels": 4}})
    if dtype == torch.float64:
        run.network.double().register_forward_pre_hook(lambda _, images: (images[0].double(),))
    for batch in batches[:2]:
        steps(run, [batch], images_per_pass=2)
    assert len(given) == len(plain.of_levels) == 2 * 2 * 4, "two steps of two passes over four levels"
    assert all(level[1].sum() > 0 for level in given)

    def in_order(levels):  # which level comes first in backward is autograd's affair
        return torch.stack(sorted(levels, key=lambda sums: float(sums[1].sum())))

    torch.testing.assert_close(in_order(given), in_order(plain.of_levels), rtol=tolerance, atol=0)


def test_the_hook_sees_half_gradients_before_they_are_rounded(start, steps, monkeypatch):
    plain, given = TensorHooks(), []
    forward, gradient_hook = GradientGuidedLoss.forward, GradientGuidedLoss.gradient_hook
    monkeypatch.setattr(
        GradientGuidedLoss, "forward", lambda loss, *inputs: (plain.register(*inputs), forward(loss, *inputs))[1]
    )
    monkeypatch.setattr(
        GradientGuidedLoss,
        "gradient_hook",
        lambda loss, sums: (given.append(sums.clone()), gradient_hook(loss, sums))[1],
    )
    run, batches = start()
    steps(run, batches[:1], precision="bf16")
    ours, theirs = sum(given), sum(plain.of_levels)
    difference = ((ours - theirs).abs() / ours)[1].max()
    assert 1e-6 < difference < 1e-2, "bfloat16 keeps 8 bits"
