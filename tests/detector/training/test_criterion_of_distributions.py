"""The losses of Generalized Focal Loss (arXiv:2006.04388): classes by IoU, boxes as distributions, both weighted by score."""

import math

import pytest
import torch

from longshot.detector.model.boxes import DistributionCoding
from longshot.detector.model.head import HeadOutputs
from longshot.detector.training.criterion import Assignment, Criterion
from longshot.losses import BACKGROUND, IGNORE, EqualizedQualityFocalLoss, GIoULoss, L1Loss, QualityFocalLoss

BINS = 5
NAMES = {"classification", "box", "distribution"}


def criterion(*, weighting="score", classification=None, **options):
    return Criterion(
        classification or QualityFocalLoss(3, gamma=2.0), GIoULoss(weight=2.0), None,
        coding=DistributionCoding(anchor_size=8.0, bins=BINS), box_weighting=weighting, **options,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- against slow formulae


def slow_losses(logits, raw, scene, overlap, normalizer):
    """The three losses, an anchor, a class and a side at a time, from float64 outputs (N, R, K) and (N, R, 4 * bins)."""
    rows, objects = torch.cat(scene.anchors).double().tolist(), iter(scene.assignment.boxes.double())
    classification, boxes, distributions, weights, clamped = 0.0, 0.0, 0.0, 0.0, 0
    for image, labels in enumerate(scene.assignment.labels.tolist()):
        for row, label in enumerate(labels):
            p = 1 / (1 + (-logits[image, row]).exp())
            iou = 0.0
            if label >= 0:
                left, top, right, bottom = rows[row]
                x, y, stride, found = (left + right) / 2, (top + bottom) / 2, (right - left) / 8, next(objects)
                weight = max(p.tolist())
                targets = [(x - found[0]), (y - found[1]), (found[2] - x), (found[3] - y)]
                means = []
                for side, target in enumerate(targets):
                    bins = raw[image, row, side * BINS : (side + 1) * BINS].exp()
                    bins = bins / bins.sum()
                    means.append(sum(i * share for i, share in enumerate(bins)) * stride)
                    target = target.item() / stride
                    clamped += not 0 <= target <= BINS - 1.1
                    target = min(max(target, 0.0), BINS - 1.1)
                    lower = int(target)
                    loss = -(lower + 1 - target) * bins[lower].log() - (target - lower) * bins[lower + 1].log()
                    distributions = distributions + 0.25 * weight * loss / 4
                box = torch.stack([x - means[0], y - means[1], x + means[2], y + means[3]])
                iou, giou = overlap(box, found)
                iou = iou.item()
                boxes, weights = boxes + 2.0 * weight * (1 - giou), weights + weight
            if label != IGNORE:
                for k in range(3):
                    q = iou if k == label else 0.0
                    cross_entropy = -q * p[k].log() - (1 - q) * (1 - p[k]).log()
                    classification = classification + (q - p[k]).abs() ** 2 * cross_entropy
    assert weights > 1
    assert clamped > 1
    return {
        "classification": classification / normalizer,
        "box": boxes / weights,
        "distribution": distributions / weights,
    }


def test_losses_and_their_gradients_are_those_of_the_formulae(scene, slow_overlap):
    drawn = scene(4 * BINS)
    ours = criterion()(*drawn, torch.tensor(5.0))
    logits, raw = (torch.cat(maps, dim=1).detach().double().requires_grad_() for maps in drawn.outputs[:2])
    theirs = slow_losses(logits, raw, drawn, slow_overlap, normalizer=5)
    assert ours.keys() == theirs.keys() == NAMES
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(theirs[name].item(), rel=1e-5)
        maps, leaf = (drawn.outputs.logits, logits) if name == "classification" else (drawn.outputs.deltas, raw)
        gradient = torch.cat(torch.autograd.grad(loss, maps, retain_graph=True), dim=1)
        (expected,) = torch.autograd.grad(theirs[name], leaf, retain_graph=True)
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-7)


def test_boxes_do_not_train_the_scores_that_weight_them_nor_scores_the_boxes(scene):
    drawn = scene(4 * BINS)
    losses = criterion()(*drawn, torch.tensor(5.0))
    for name, loss in losses.items():
        strange = drawn.outputs.deltas if name == "classification" else drawn.outputs.logits
        gradients = torch.autograd.grad(loss, strange, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in gradients), name


# --------------------------------------------------------------------------------------------------------------- by hand


def logit(p):
    return math.log(p / (1 - p))


def in_a_row(scores, reaches, *, learned=2.0):
    """Outputs, anchors and assignment of anchors at (20, 20), stride 5; the best of three scores, the last, is given.

    Boxes are certain to reach `learned` strides to all sides; their objects of class 0 reach `reaches` strides.
    """
    count = len(scores)
    logits = torch.full((1, count, 3), -9.0)
    logits[0, :, 2] = torch.tensor([logit(score) for score in scores])
    # Two neighboring bins in proportion to how near they are.
    p = (1 - (learned - torch.arange(BINS)).abs()).clamp(min=0)
    deltas = p.log().clamp(min=-30).repeat(4).expand(1, count, -1)
    anchors = torch.tensor([[0.0, 0, 40, 40]]).repeat(count, 1)
    side = 5 * torch.tensor(reaches)[:, None]
    boxes = torch.cat([20 - side, 20 - side, 20 + side, 20 + side], dim=1)
    return HeadOutputs([logits], [deltas]), [anchors], Assignment(torch.zeros(1, count, dtype=torch.int64), boxes)


def test_boxes_and_distributions_count_by_their_best_score():
    # Boxes reach 2 strides. Objects that do too: no loss. Of 4, a quarter of the area is shared: GIoU 1/4; and 4 counts as
    # 3.9, where bins 3 and 4 have exp(-30): 30. Half the weight of the four boxes is theirs; GIoU times 2.
    losses = criterion()(*in_a_row([0.5, 0.6, 0.8, 0.3], [2.0, 4, 2, 4]), torch.tensor(4.0))
    share = 0.9 / 2.2
    assert losses["box"].item() == pytest.approx(2 * 0.75 * share, rel=1e-5)
    assert losses["distribution"].item() == pytest.approx(0.25 * 30 * share, rel=1e-5)


def test_scores_count_as_one_at_least():
    losses = criterion()(*in_a_row([0.2, 0.1], [4.0, 2]), torch.tensor(2.0))
    assert losses["box"].item() == pytest.approx(2 * 0.75 * 0.2, rel=1e-5)
    assert losses["distribution"].item() == pytest.approx(0.25 * 30 * 0.2, rel=1e-5)


def test_a_distribution_right_between_two_bins_costs_log_two():
    # 2.5 strides: half in bins 2 and 3 each, which is what distributions that reach 2.5 strides have.
    losses = criterion(weighting="none")(*in_a_row([0.5], [2.5], learned=2.5), torch.tensor(1.0))
    assert losses["distribution"].item() == pytest.approx(0.25 * math.log(2), rel=1e-5)
    assert losses["box"].item() == pytest.approx(0, abs=1e-5)


def test_the_factor_of_distributions_is_theirs_alone():
    drawn = in_a_row([0.5, 0.6, 0.8], [2.0, 4, 3])
    plain, other = (criterion(distribution_weight=weight)(*drawn, torch.tensor(3.0)) for weight in (0.25, 0.75))
    assert other["distribution"].item() == pytest.approx(3 * plain["distribution"].item())
    assert (other["box"], other["classification"]) == (plain["box"], plain["classification"])


def test_without_weighting_both_losses_are_divided_by_the_number_of_positives():
    losses = criterion(weighting="none")(*in_a_row([0.5, 0.6, 0.8], [2.0, 4, 4]), torch.tensor(12.0))
    assert losses["box"].item() == pytest.approx(2 * 0.75 * 2 / 12, rel=1e-5)
    assert losses["distribution"].item() == pytest.approx(0.25 * 30 * 2 / 12, rel=1e-5)


def test_distributions_with_a_quality_branch_have_four_losses(scene):
    losses = criterion(quality="iou", weighting="quality")(*scene(4 * BINS), torch.tensor(5.0))
    assert losses.keys() == NAMES | {"quality"}


# ------------------------------------------------------------------------------------------------------ passes, extremes


def test_a_pass_counts_by_its_share_of_the_positives():
    # Two boxes of weight 0.6, one of which has a loss: half of it, and 2/3 of the step. One of weight 0.4, with its whole
    # loss: 1/3 of the step. In one pass: 0.6 + 0.4 of 1.6.
    crit = criterion()
    passes = [crit(*in_a_row(*drawn), torch.tensor(3.0)) for drawn in (([0.6, 0.6], [4.0, 2]), ([0.4], [4.0]))]
    big = crit(*in_a_row([0.6, 0.6, 0.4], [4.0, 2, 4]), torch.tensor(3.0))
    for name, loss in {"box": 2 * 0.75, "distribution": 0.25 * 30}.items():
        found = [losses[name].item() for losses in passes]
        assert found == pytest.approx([loss / 2 * 2 / 3, loss / 3], rel=1e-5)
        assert big[name].item() == pytest.approx(loss / 1.6, rel=1e-5)


@pytest.mark.parametrize("classification", [QualityFocalLoss(3), EqualizedQualityFocalLoss(3)])
def test_a_pass_without_objects_has_zero_losses_of_boxes_with_gradients(scene, classification):
    drawn = scene(4 * BINS)
    nothing = Assignment(torch.full((2, 20), BACKGROUND), torch.zeros(0, 4))
    losses = criterion(classification=classification)(*drawn[:2], nothing, torch.tensor(1.0))
    assert losses["classification"] > 0
    assert losses["box"] == losses["distribution"] == 0
    sum(losses.values()).backward()
    for level in drawn.outputs.deltas:
        assert torch.equal(level.grad, torch.zeros_like(level))


@pytest.mark.parametrize("value", [-65504.0, 65504.0])  # the largest of float16
def test_extreme_outputs_have_finite_losses_and_gradients(scene, value):
    drawn = scene(4 * BINS)
    with torch.no_grad():
        for level in drawn.outputs.deltas:
            level[..., 1::3] = value
        for level in drawn.outputs.logits:
            level.fill_(value)
    losses = criterion()(*drawn, torch.tensor(5.0))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(level.grad.isfinite().all() for maps in drawn.outputs[:2] for level in maps)


def test_half_outputs_are_computed_with_in_float32(scene):
    drawn = scene(4 * BINS)
    half = HeadOutputs(*([level.detach().bfloat16() for level in maps] for maps in drawn.outputs))
    same = HeadOutputs(*([level.float() for level in maps] for maps in half))
    ours, expected = (criterion()(outputs, *drawn[1:], torch.tensor(5.0)) for outputs in (half, same))
    for name, loss in ours.items():
        assert loss.dtype == torch.float32
        assert loss == expected[name]


def test_a_loss_on_deltas_is_refused():
    with pytest.raises(ValueError, match="L1Loss compares deltas of anchors, but the head does not predict any"):
        Criterion(QualityFocalLoss(3), L1Loss(), None, coding=DistributionCoding(anchor_size=8.0))
