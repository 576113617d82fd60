"""Numbers of the authors' code: United-Perception 52aaeb9 (EFL, EQFL), eqlv2 907fad9, GFocal db48199, focal_calibration 475422a.

Run on a CPU by their own functions, with only the imports of their frameworks replaced. Of the three steps of EFL and EQFL,
the float64 half is kept, without the logits, which are the outputs of the layer that is kept, and the gradients of step 1.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longshot.losses import (
    BACKGROUND,
    EqualizationLossV2,
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    distribution_focal_loss,
    equal_gradient_gamma,
    equalization_loss,
    equalized_focal_loss,
    expected_value,
    flsd_gamma,
    inverse_focal_loss,
    quality_focal_loss,
    softmax_focal_loss,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
NUM_CLASSES, NUM_ANCHORS, NUM_LEVELS = 7, 2, 5
CROSS_ENTROPY = {"alpha": None, "gamma": 0.0}


def load(name: str) -> dict[str, Tensor]:
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def per_level(flat: Tensor, sizes: Tensor) -> list[Tensor]:
    """(2, R) -> (2, R_l) per level."""
    return list(flat.split([int(h * w) * NUM_ANCHORS for h, w in sizes.tolist()], dim=1))


def rows(maps: Tensor) -> Tensor:
    """(N, A * K, H, W), anchor outermost -> (N, H * W * A, K)."""
    return maps.unflatten(1, (NUM_ANCHORS, NUM_CLASSES)).permute(0, 3, 4, 1, 2).reshape(len(maps), -1, NUM_CLASSES)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("efl_3steps", partial(EqualizedFocalLoss, alpha=0.25, gamma=2.0, scale=8.0)),
        ("eqfl_3steps", partial(EqualizedQualityFocalLoss, gamma=2.0, scale=4.0)),
    ],
)
def test_three_steps_of_a_layer_shared_by_five_levels_are_those_of_the_authors_code(name, build, dtype, rounding):
    reference, loss = load(name), build(NUM_CLASSES)
    exactly = {"rtol": rounding, "check_dtype": False}
    weight, bias = (reference[f"conv_{part}"].to(dtype) for part in ("weight", "bias"))
    for step in range(3):
        theirs = {key.split("_", 1)[1]: value for key, value in reference.items() if key.startswith(f"f64/s{step}_")}
        given = {key.split("_", 1)[1]: value for key, value in reference.items() if key.startswith(f"s{step}_")}
        maps = [
            F.conv2d(given[f"feat_l{level}"].to(dtype), weight, bias, padding=1).requires_grad_()
            for level in range(NUM_LEVELS)
        ]
        targets = [per_level(given["target"].long() - 1, reference["sizes_hw"])]
        if loss.uses_quality:
            targets.append(per_level(given["scores"].to(dtype), reference["sizes_hw"]))
        torch.testing.assert_close(loss.gradient_ratio, theirs["pos_neg_used"], **exactly, atol=0)
        loss.begin_step()
        value = loss([rows(level) for level in maps], *targets) / theirs["normalizer"]
        value.backward()
        loss.after_backward()
        torch.testing.assert_close(value.detach(), theirs["loss"].squeeze(), **exactly, atol=0)
        for level in range(NUM_LEVELS if step != 1 else 0):
            expected = theirs[f"grad_l{level}"]
            torch.testing.assert_close(
                maps[level].grad, expected, **exactly, atol=rounding * expected.abs().max().item()
            )
        torch.testing.assert_close(loss.positive_gradient, theirs["pos_grad_acc"], **exactly, atol=0)
        torch.testing.assert_close(loss.negative_gradient, theirs["neg_grad_acc"], **exactly, atol=0)
        torch.testing.assert_close(loss.gradient_ratio, theirs["pos_neg_after"], **exactly, atol=0)


def test_maps_read_class_outermost_give_the_loss_of_the_authors_last_commit():
    # Their head came to read channel k * A + a for anchor a and class k. The same inputs, in the same file of numbers:
    theirs = 12.952178729658359
    reference = load("efl_3steps")
    weight, bias = (reference[f"conv_{part}"].double() for part in ("weight", "bias"))
    maps = [F.conv2d(reference[f"s0_feat_l{level}"].double(), weight, bias, padding=1) for level in range(NUM_LEVELS)]
    labels = per_level(reference["s0_target"].long() - 1, reference["sizes_hw"])
    positives = reference["f64/s0_normalizer"]
    right, wrong = (
        EqualizedFocalLoss(NUM_CLASSES)([rows(level) for level in read], labels) / positives
        for read in (
            maps,
            [level.unflatten(1, (NUM_CLASSES, NUM_ANCHORS)).transpose(1, 2).flatten(1, 2) for level in maps],
        )
    )
    assert wrong.item() == pytest.approx(theirs, rel=1e-12)
    assert right.item() == pytest.approx(reference["f64/s0_loss"].item(), rel=1e-12) != pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize(("label", "side"), [(0, "pos"), (BACKGROUND, "neg")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_efl_extreme_logits(label, side, dtype):
    reference = load("efl_extreme_logits")
    gamma, alpha, scale, ratio = reference["cfg"].tolist()
    logits = reference["logits"].to(dtype)[:, None].requires_grad_()
    losses = [
        equalized_focal_loss(
            row, torch.tensor([label]),
            alpha=alpha, gamma=gamma, scale=scale, gradient_ratio=torch.tensor([ratio], dtype=torch.float64),
        )
        for row in logits.split(1)
    ]  # fmt: skip
    sum(losses).backward()
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    for ours, theirs in ((torch.stack(losses).detach(), "loss"), (logits.grad[:, 0], "grad")):
        expected = reference[f"stable_f64_{side}_{theirs}"]
        torch.testing.assert_close(ours.double(), expected, rtol=rounding, atol=0 if dtype == torch.float64 else 1e-30)
    broken = reference[f"ref_f32_{side}_grad"]
    assert broken.isnan().any(), "the logits that break the authors' code are among them"


def gradient_of(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    value.backward()
    return value.detach(), logits.grad


def test_qfl_dfl():
    reference = load("qfl_dfl")
    labels, factor = reference["qfl_label"] - 1, reference["qfl_avg_factor"].item()
    value, gradient = gradient_of(
        lambda z: quality_focal_loss(z, labels, reference["qfl_score"], gamma=2.0) / factor, reference["qfl_logits"]
    )
    torch.testing.assert_close(value, reference["qfl_loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, reference["qfl_grad"], rtol=1e-5, atol=1e-8)
    weights, factor = 0.25 * reference["dfl_weight"], reference["dfl_avg_factor"].item()
    value, gradient = gradient_of(
        lambda z: (weights * distribution_focal_loss(z, reference["dfl_target"])).sum() / factor,
        reference["dfl_logits"],
    )
    torch.testing.assert_close(value, reference["dfl_loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, reference["dfl_grad"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(expected_value(reference["dfl_logits"]), reference["dfl_expectation"], rtol=1e-5, atol=0)


def background_last(labels: Tensor) -> Tensor:
    """Labels of the authors' code, where background is class 7."""
    return labels.where(labels < NUM_CLASSES, BACKGROUND)


def test_eqlv2_of_eqlv2_eql_bags():
    reference, loss = load("eqlv2_eql_bags"), EqualizationLossV2(NUM_CLASSES, **CROSS_ENTROPY)
    for step in range(3):
        theirs = {key.split("_", 2)[2]: value for key, value in reference.items() if key.startswith(f"eqlv2_s{step}_")}
        logits, labels = theirs["logits"], background_last(theirs["label"])
        # Their eighth score, for "any object", is cross entropy of its own, with weight 1.
        objectness = F.binary_cross_entropy_with_logits(logits[:, 7], (labels == BACKGROUND).float(), reduction="sum")
        value, gradient = gradient_of(lambda z, labels=labels: loss([z[None]], [labels[None]]), logits[:, :7])
        loss.after_backward()  # theirs are not divided by the number of samples
        torch.testing.assert_close((value + objectness) / len(logits), theirs["loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient / len(logits), theirs["grad"][:, :7], rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(loss.positive_gradient.float(), theirs["pos_grad"], rtol=1e-5, atol=0)
        torch.testing.assert_close(loss.negative_gradient.float(), theirs["neg_grad"], rtol=1e-5, atol=0)
        torch.testing.assert_close(loss.gradient_ratio.float(), theirs["pos_neg"], rtol=1e-5, atol=0)


def test_eql_of_eqlv2_eql_bags():
    reference = load("eqlv2_eql_bags")
    labels = background_last(reference["eql_label"])
    rare = reference["eql_freq"] < reference["eql_lambda"]
    assert rare.any()
    value, gradient = gradient_of(
        lambda z: equalization_loss(z, labels, rare=rare, **CROSS_ENTROPY) / len(labels), reference["eql_logits"]
    )
    torch.testing.assert_close(value, reference["eql_loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, reference["eql_grad"], rtol=1e-5, atol=1e-9)


def flsd_52(p: Tensor) -> Tensor:
    return torch.where(p < 0.2, 5.0, torch.where(p < 0.5, 3.0, 2.0))


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("flsd53", partial(softmax_focal_loss, gamma=flsd_gamma)),
        ("flsd52", partial(softmax_focal_loss, gamma=flsd_52)),
        ("fl3", partial(softmax_focal_loss, gamma=3.0)),
        ("invfocal_gamma2", partial(inverse_focal_loss, gamma=2.0)),
    ],
)
def test_losses_of_calibration(name, loss):
    reference = load("calibration")
    value, gradient = gradient_of(lambda z: loss(z, reference["label"], reduction="sum"), reference["logits"].double())
    torch.testing.assert_close(value, reference[f"{name}_sum_loss"].double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, reference[f"{name}_grad"].double(), rtol=1e-5, atol=1e-6)


def test_exponents_of_calibration():
    reference = load("calibration")
    torch.testing.assert_close(
        equal_gradient_gamma(reference["gamma_star_p"]), reference["gamma_star"], rtol=1e-8, atol=0
    )
