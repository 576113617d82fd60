import math

import pytest
import torch

from longshot.datasets.loading.dataset import Targets
from longshot.detector.matching.iou import IoUMatcher
from longshot.detector.model.boxes import decode
from longshot.detector.model.head import HeadOutputs
from longshot.detector.training.criterion import Criterion
from longshot.losses import BACKGROUND, IGNORE, EqualizedFocalLoss, FocalLoss
from longshot.losses.box import GIoULoss, L1Loss

# Level 0: four boxes of 10 x 10 in a row; level 1: one of 40 x 40.
ANCHORS = [
    torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10], [30, 0, 40, 10]]),
    torch.tensor([[0.0, 0, 40, 40]]),
]
NOTHING = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
# The first object is anchor 1; the second is anchor 3, moved by 2 to the left (IoU 80 / 120); anchor 0 lies in a crowd.
OBJECTS = Targets(
    torch.tensor([[10.0, 0, 20, 10], [28, 0, 38, 10]]), torch.tensor([2, 0]), torch.tensor([[0.0, 0, 6, 10]])
)


def criterion(box=None, *, ignore_padding=False, classification=None):
    return Criterion(
        classification or FocalLoss(3, alpha=0.25, gamma=2.0),
        box or L1Loss(),
        IoUMatcher(positive=0.5, negative=0.4, low_quality=False),
        ignore_padding=ignore_padding,
    )


def outputs(num_images, fill=-1.0):
    logits = [torch.full((num_images, len(level), 3), fill, requires_grad=True) for level in ANCHORS]
    return HeadOutputs(logits, [torch.zeros(num_images, len(level), 4, requires_grad=True) for level in ANCHORS])


def test_labels_and_boxes_by_hand():
    assignment = criterion().assign(ANCHORS, [NOTHING, OBJECTS], [(40, 40), (40, 40)])
    assert assignment.labels.tolist() == [[BACKGROUND] * 5, [IGNORE, 2, BACKGROUND, 0, BACKGROUND]]
    assert assignment.boxes.tolist() == [[10, 0, 20, 10], [28, 0, 38, 10]]


def test_anchors_centered_in_the_padding_are_negatives_or_ignored():
    (negatives,) = criterion().assign(ANCHORS, [NOTHING], [(8, 20)]).labels.tolist()
    assert negatives == [BACKGROUND] * 5
    (labels,) = criterion(ignore_padding=True).assign(ANCHORS, [NOTHING], [(8, 20)]).labels.tolist()
    assert labels == [BACKGROUND, BACKGROUND, IGNORE, IGNORE, IGNORE]  # centers x = 5, 15, 25, 35, 20 of 20


def test_each_image_has_its_own_size():
    labels = criterion(ignore_padding=True).assign(ANCHORS, [NOTHING, NOTHING], [(40, 40), (8, 20)]).labels
    assert (labels == IGNORE).sum(1).tolist() == [0, 3]


def test_losses_by_hand():
    # p = 1/2 everywhere. Negatives cost 0.75 / 4 * log 2, positives 0.25 / 4 * log 2. Of 2 * 5 * 3 entries 3 are ignored
    # and 2 positive. The L1 loss of zero deltas: 0 for the first object; 2 / 10 of a side for the second.
    crit = criterion()
    assignment = crit.assign(ANCHORS, [NOTHING, OBJECTS], [(40, 40), (40, 40)])
    losses = crit(outputs(2, fill=0.0), ANCHORS, assignment, torch.tensor(2.0))
    assert losses.keys() == {"classification", "box"}
    expected = (25 * 0.75 + 2 * 0.25) / 4 * math.log(2) / 2
    assert losses["classification"].item() == pytest.approx(expected, rel=1e-6)
    assert losses["box"].item() == pytest.approx(0.2 / 2, rel=1e-6)


def test_a_loss_on_boxes_gets_decoded_boxes():
    crit = criterion(GIoULoss())
    assignment = crit.assign(ANCHORS, [OBJECTS], [(40, 40)])
    losses = crit(outputs(1), ANCHORS, assignment, torch.tensor(2.0))
    # IoU 80 / 120 and a hull as large as the union: 1 - GIoU is 1/3 for the second object and 0 for the first.
    assert losses["box"].item() == pytest.approx(1 / 3 / 2, rel=1e-5)


class Recorder(torch.nn.Module):
    """A classification loss that keeps what it is given."""

    uses_quality = True

    def forward(self, logits, labels, quality):
        self.labels, self.quality = labels, quality
        return torch.zeros(())


def test_quality_is_the_iou_of_the_decoded_box_with_its_object():
    crit = criterion(classification=Recorder())
    assignment = crit.assign(ANCHORS, [NOTHING, OBJECTS], [(40, 40), (40, 40)])
    out = outputs(2)
    with torch.no_grad():
        out.deltas[0][1, 1, 0] = 0.2  # anchor 1 is its object, and goes 2 to the right: IoU 80 / 120
        out.deltas[0][1, 3, 0] = -0.2  # anchor 3 goes 2 to the left, where its object is
    crit(out, ANCHORS, assignment, torch.tensor(2.0))
    assert [level.shape for level in crit.classification.quality] == [(2, 4), (2, 1)]
    torch.testing.assert_close(crit.classification.quality[0], torch.tensor([[0.0, 0, 0, 0], [0, 2 / 3, 0, 1]]))
    assert not crit.classification.quality[1].any()
    assert not crit.classification.quality[0].requires_grad


@pytest.mark.parametrize("box", [L1Loss(), GIoULoss()])
def test_each_positive_meets_its_own_anchor_delta_and_object(box):
    # Deltas that turn the anchors into the objects give no loss: any other order of levels, anchors or images does.
    crit = criterion(box)
    targets = [OBJECTS, NOTHING, OBJECTS._replace(boxes=torch.tensor([[1.0, 0, 39, 38], [20, 1, 30, 11]]))]
    assignment = crit.assign(ANCHORS, targets, [(40, 40)] * 3)
    out = outputs(3)
    perfect = [deltas.detach().clone() for deltas in out.deltas]
    perfect[0][0, 3, 0] = -0.2
    perfect[1][2, 0] = torch.tensor([0, -1 / 40, math.log(38 / 40), math.log(38 / 40)])
    perfect[0][2, 2, 1] = 0.1
    assert decode(perfect[1][2, 0], ANCHORS[1][0]).tolist() == pytest.approx([1, 0, 39, 38])
    assert len(assignment.boxes) == 4
    loss = crit(HeadOutputs(out.logits, perfect), ANCHORS, assignment, torch.tensor(1.0))["box"]
    assert loss.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("box", [L1Loss(), GIoULoss()])
@pytest.mark.parametrize("classification", [FocalLoss(3), EqualizedFocalLoss(3)])
def test_a_batch_without_objects_has_finite_losses_and_gradients(box, classification):
    crit, out = criterion(box, classification=classification), outputs(2)
    assignment = crit.assign(ANCHORS, [NOTHING, NOTHING], [(40, 40), (40, 40)])
    assert assignment.boxes.shape == (0, 4)
    losses = crit(out, ANCHORS, assignment, torch.tensor(1.0))
    sum(losses.values()).backward()
    assert losses["box"].item() == 0
    for tensor in (*out.logits, *out.deltas):
        assert tensor.grad.isfinite().all()
    assert all((logits.grad > 0).all() for logits in out.logits)
    assert all((deltas.grad == 0).all() for deltas in out.deltas)


def test_half_precision_outputs_are_computed_with_in_float32():
    crit = criterion(GIoULoss())
    assignment = crit.assign(ANCHORS, [OBJECTS], [(40, 40)])
    out = outputs(1)
    out = HeadOutputs(out.logits, [deltas + 0.25 for deltas in out.deltas])  # exact in bfloat16, but not exp(0.25)
    half = HeadOutputs([z.bfloat16() for z in out.logits], [d.bfloat16() for d in out.deltas])
    losses = crit(half, ANCHORS, assignment, torch.tensor(2.0))
    exact = crit(out, ANCHORS, assignment, torch.tensor(2.0))
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=1e-6)


def test_the_state_of_the_classification_loss_is_in_the_state_dict():
    assert criterion(classification=EqualizedFocalLoss(3)).state_dict().keys() == {
        "classification.positive_gradient",
        "classification.negative_gradient",
    }
