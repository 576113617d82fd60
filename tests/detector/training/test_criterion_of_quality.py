"""Losses with a branch for the quality of boxes, and boxes weighted by it: EFL's improved baseline, FCOS."""

import math

import pytest
import torch

from longshot.detector.model.boxes import DeltaCoding, DistanceCoding
from longshot.detector.model.head import HeadOutputs
from longshot.detector.training.criterion import Assignment, Criterion
from longshot.losses import BACKGROUND, IGNORE, FocalLoss, GIoULoss, L1Loss, QualityFocalLoss

NAMES = {"classification", "box", "quality"}
CODINGS = {"iou": DeltaCoding(), "centerness": DistanceCoding(anchor_size=8.0)}


def criterion(quality="iou", *, coding=None, box=None, weighting="quality", **options):
    return Criterion(
        FocalLoss(3, alpha=0.25, gamma=2.0), box or GIoULoss(), None,
        coding=coding, quality=quality, box_weighting=weighting, **options,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- against slow formulae


def sigmoid(x):
    return 1 / (1 + math.e**-x)


def slow_losses(leaves, scene, quality, overlap, normalizer):
    """The three losses, an anchor and a class at a time, from float64 outputs (N, R, K), (N, R, 4), (N, R)."""
    logits, raw, of_quality = leaves
    rows, objects = torch.cat(scene.anchors).double().tolist(), iter(scene.assignment.boxes.double())
    classification, boxes, weights, branch = 0.0, 0.0, 0.0, 0.0
    for image, labels in enumerate(scene.assignment.labels.tolist()):
        for row, label in enumerate(labels):
            for k in range(3):
                p = sigmoid(logits[image, row, k])
                if label == k:
                    classification = classification - 0.25 * (1 - p) ** 2 * p.log()
                elif label != IGNORE:
                    classification = classification - 0.75 * p**2 * (1 - p).log()
            if label < 0:
                continue
            left, top, right, bottom = rows[row]
            x, y, side, found = (left + right) / 2, (top + bottom) / 2, right - left, next(objects)
            a, b, c, d = raw[image, row]
            if quality == "iou":
                box = [x + a * side - c.exp() * side / 2, y + b * side - d.exp() * side / 2]
                box += [x + a * side + c.exp() * side / 2, y + b * side + d.exp() * side / 2]
            else:
                box = [x - a.exp() * side / 8, y - b.exp() * side / 8, x + c.exp() * side / 8, y + d.exp() * side / 8]
            iou, giou = overlap(torch.stack(box), found)
            target = iou.detach()
            if quality == "centerness":
                x, y = sorted([x - found[0], found[2] - x]), sorted([y - found[1], found[3] - y])
                target = 0.0 if min(x[0], y[0]) <= 0 else (x[0] / x[1] * y[0] / y[1]) ** 0.5
            boxes, weights = boxes + target * (1 - giou), weights + target
            s = sigmoid(of_quality[image, row])
            branch = branch - target * s.log() - (1 - target) * (1 - s).log()
    assert weights > 1
    return {"classification": classification / normalizer, "box": boxes / weights, "quality": branch / normalizer}


@pytest.mark.parametrize("quality", CODINGS)
def test_losses_and_their_gradients_are_those_of_the_formulae(scene, slow_overlap, quality):
    drawn = scene(4)
    ours = criterion(quality, coding=CODINGS[quality])(*drawn, torch.tensor(5.0))
    leaves = [torch.cat(maps, dim=1).detach().double().requires_grad_() for maps in drawn.outputs]
    theirs = slow_losses(leaves, drawn, quality, slow_overlap, normalizer=5)
    assert ours.keys() == theirs.keys() == NAMES
    for (name, loss), maps, leaf in zip(ours.items(), drawn.outputs, leaves, strict=True):
        assert loss.item() == pytest.approx(theirs[name].item(), rel=1e-5)
        gradient = torch.cat(torch.autograd.grad(loss, maps, retain_graph=True), dim=1)
        (expected,) = torch.autograd.grad(theirs[name], leaf, retain_graph=True)
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("quality", CODINGS)
def test_each_loss_trains_its_own_outputs_alone(scene, quality):
    drawn = scene(4)
    losses = criterion(quality, coding=CODINGS[quality])(*drawn, torch.tensor(5.0))
    for (name, loss), own in zip(losses.items(), drawn.outputs, strict=True):
        for maps in drawn.outputs:
            gradients = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
            assert all((g is not None) == (maps is own) for g in gradients), name


# ------------------------------------------------------------------------------------------------------------ by hand


def in_a_row(predictions, *, quality=0.0):
    """Outputs, anchors and assignment of boxes 10 high, predicted with these widths, where their objects are 10 wide."""
    anchors = torch.tensor([[0.0, 0, 10, 10]]).repeat(len(predictions), 1)
    widths = torch.tensor(predictions) / 10  # both from x = 0
    zero = torch.zeros_like(widths)
    deltas = torch.stack([(widths - 1) / 2, zero, widths.log(), zero], dim=1)[None]
    outputs = HeadOutputs([torch.zeros(1, len(widths), 3)], [deltas], [torch.full((1, len(widths)), quality)])
    return outputs, [anchors], Assignment(torch.zeros(1, len(widths), dtype=torch.int64), anchors)


def test_boxes_count_by_their_iou():
    # IoU 1/2 and 4/5, and the hull is the object: 1 - GIoU is 1/2 and 1/5. Twice: the weights are above 1 together.
    losses = criterion()(*in_a_row([5.0, 8, 5, 8]), torch.tensor(4.0))
    assert losses["box"].item() == pytest.approx((0.5 * 0.5 + 0.8 * 0.2) / 1.3, rel=1e-5)
    assert losses["quality"].item() == pytest.approx(math.log(2), rel=1e-6)  # at a logit of 0, whatever the target


def test_weights_count_as_one_at_least():
    losses = criterion()(*in_a_row([5.0, 2]), torch.tensor(2.0))
    assert losses["box"].item() == pytest.approx(0.5 * 0.5 + 0.2 * 0.8, rel=1e-5)


def test_the_quality_branch_learns_the_iou():
    # BCE of sigmoid(2) with 1/2 and with 4/5
    losses = criterion()(*in_a_row([5.0, 8], quality=2.0), torch.tensor(2.0))
    p = 1 / (1 + math.exp(-2))
    expected = sum(-q * math.log(p) - (1 - q) * math.log(1 - p) for q in (0.5, 0.8)) / 2
    assert losses["quality"].item() == pytest.approx(expected, rel=1e-5)


def test_the_quality_branch_learns_the_centerness_of_the_anchor_wherever_the_box_is():
    # Its center is (5, 5); of objects to the right by 0, 3 and 7: 1, the root of 2 / 8, and outside.
    outputs, anchors, assignment = in_a_row([9.0, 9, 9], quality=2.0)
    objects = assignment.boxes + torch.tensor([[0.0, 0, 0, 0], [3, 0, 3, 0], [7, 0, 7, 0]])
    crit = criterion("centerness", weighting="none")
    losses = crit(outputs, anchors, assignment._replace(boxes=objects), torch.tensor(3.0))
    p = 1 / (1 + math.exp(-2))
    expected = sum(-q * math.log(p) - (1 - q) * math.log(1 - p) for q in (1, 0.5, 0)) / 3
    assert losses["quality"].item() == pytest.approx(expected, rel=1e-5)


def test_a_box_on_an_anchor_centered_outside_its_object_does_not_count():
    outputs, anchors, assignment = in_a_row([9.0, 5])
    objects = assignment.boxes + torch.tensor([[7.0, 0, 7, 0], [0, 0, 0, 0]])
    losses = criterion("centerness")(outputs, anchors, assignment._replace(boxes=objects), torch.tensor(2.0))
    assert losses["box"].item() == pytest.approx(0.5, rel=1e-5)  # the other one, at centerness 1


def test_losses_on_deltas_are_weighted_too():
    # A shift by -1/4 of the side, half the width; with IoU 1/2 twice: together 1.
    losses = criterion(box=L1Loss())(*in_a_row([5.0, 5]), torch.tensor(2.0))
    assert losses["box"].item() == pytest.approx(0.25 + math.log(2), rel=1e-5)


def test_factors_multiply_their_losses():
    drawn = in_a_row([5.0, 8, 8], quality=1.0)
    plain = criterion()(*drawn, torch.tensor(3.0))
    other = criterion(box=GIoULoss(weight=2.0), quality_weight=0.5)(*drawn, torch.tensor(3.0))
    assert other["quality"].item() == pytest.approx(0.5 * plain["quality"].item())
    assert other["box"].item() == pytest.approx(2 * plain["box"].item())
    assert other["classification"] == plain["classification"]


def test_a_quality_branch_needs_no_weighting():
    losses = criterion(weighting="none")(*in_a_row([5.0, 8]), torch.tensor(2.0))
    assert losses.keys() == NAMES
    assert losses["box"].item() == pytest.approx((0.5 + 0.2) / 2, rel=1e-5)


def test_what_a_quality_aware_loss_is_told_stays_the_iou_beside_a_centerness_branch(scene):
    drawn = scene(4)
    told = []
    for quality in ("none", "centerness"):
        crit = Criterion(QualityFocalLoss(3), GIoULoss(), None, quality=quality)
        told.append(crit(*drawn, torch.tensor(5.0))["classification"])
    assert torch.equal(*told)


# ------------------------------------------------------------------------------------------------------ passes of a step


def test_a_pass_counts_by_its_share_of_the_positives():
    # Four boxes of weight and loss 1/2: their mean is 1/2, and 4/5 of the step. One of loss 1/5: 1/5 of the step. All in
    # one pass: (4 * 1/4 + 4/5 * 1/5) / 2.8.
    crit = criterion()
    passes = [crit(*in_a_row(widths), torch.tensor(5.0)) for widths in ([5.0] * 4, [8.0])]
    assert [losses["box"].item() for losses in passes] == pytest.approx([0.4, 0.04], rel=1e-5)
    big = crit(*in_a_row([5.0] * 4 + [8.0]), torch.tensor(5.0))
    assert big["box"].item() == pytest.approx(1.16 / 2.8, rel=1e-5)
    for name in ("classification", "quality"):
        assert sum(losses[name].item() for losses in passes) == pytest.approx(big[name].item(), rel=1e-5)


@pytest.mark.parametrize("widths", [[5.0, 8, 9, 3], [0.1, 0.2, 0.1, 0.3], [1.5, 3, 1, 0.5]])  # weights: 5, 0.14, 1.2
def test_equal_passes_add_up_to_the_big_batch(widths):
    crit = criterion()
    passes = [crit(*in_a_row(widths), torch.tensor(8.0)) for _ in range(2)]
    big = crit(*in_a_row(widths * 2), torch.tensor(8.0))
    for name, loss in big.items():
        assert sum(losses[name].item() for losses in passes) == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("quality", CODINGS)
@pytest.mark.parametrize("normalizer", [1.0, 12.0])  # no object anywhere; objects in other passes
def test_a_pass_without_objects_has_zero_losses_of_boxes_with_gradients(scene, quality, normalizer):
    drawn = scene(4)
    nothing = Assignment(torch.full((2, 20), BACKGROUND), torch.zeros(0, 4))
    losses = criterion(quality, coding=CODINGS[quality])(*drawn[:2], nothing, torch.tensor(normalizer))
    assert losses["classification"] > 0
    assert losses["box"] == losses["quality"] == 0
    sum(losses.values()).backward()
    for level in (*drawn.outputs.deltas, *drawn.outputs.quality):
        assert torch.equal(level.grad, torch.zeros_like(level))


# ------------------------------------------------------------------------------------------------------------ extremes


@pytest.mark.parametrize("quality", CODINGS)
@pytest.mark.parametrize("value", [-65504.0, 65504.0])  # the largest of float16
def test_extreme_outputs_have_finite_losses_and_gradients(scene, quality, value):
    drawn = scene(4)
    with torch.no_grad():
        for level in drawn.outputs.deltas:
            level[..., 1::2] = value
        for level in (*drawn.outputs.logits, *drawn.outputs.quality):
            level.fill_(value)
    losses = criterion(quality, coding=CODINGS[quality])(*drawn, torch.tensor(5.0))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(level.grad.isfinite().all() for maps in drawn.outputs for level in maps)


@pytest.mark.parametrize("quality", CODINGS)
def test_half_outputs_are_computed_with_in_float32(scene, quality):
    drawn = scene(4)
    half = HeadOutputs(*([level.detach().bfloat16() for level in maps] for maps in drawn.outputs))
    same = HeadOutputs(*([level.float() for level in maps] for maps in half))
    crit = criterion(quality, coding=CODINGS[quality])
    ours, expected = (crit(outputs, *drawn[1:], torch.tensor(5.0)) for outputs in (half, same))
    for name, loss in ours.items():
        assert loss.dtype == torch.float32
        assert loss == expected[name]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: criterion(coding=DistanceCoding(anchor_size=8.0), box=L1Loss()),
            "L1Loss compares deltas of anchors, but",
        ),
        (lambda: criterion("none"), "box_weighting is quality, but the head predicts no quality"),
    ],
)
def test_losses_that_do_not_suit_the_head_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
