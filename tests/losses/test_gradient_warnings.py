"""What losses that collect gradients warn of, and when they keep quiet."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from longshot import losses
from longshot.losses import BACKGROUND, IGNORE, EqualizationLossV2, EqualizedFocalLoss, EqualizedQualityFocalLoss

# Three levels of 2 images, A = 2 anchors per location, K = 5 classes: R_l = 12, 4, 2.
ANCHORS, CLASSES = (12, 4, 2), 5


def draw_step(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and labels of one step, among them IGNORE and BACKGROUND."""
    generator = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(2, rows, CLASSES, dtype=dtype, generator=generator) - 1 for rows in ANCHORS]
    return logits, [torch.randint(IGNORE, CLASSES - 1, (2, rows), generator=generator) for rows in ANCHORS]


def test_loss_warns_once_when_every_ratio_stays_at_one(run_step, monkeypatch, caplog):
    monkeypatch.setattr(losses.gradient_collection, "CHECK_EVERY", 3)
    loss = EqualizedFocalLoss(1)
    for step in range(9):
        # One positive and one negative at a prior of 0.001: 1e8 times the gradient.
        run_step(loss, [torch.full((1, 2, 1), -6.9)], [torch.tensor([[0, BACKGROUND]])])
        assert len(caplog.messages) == (step >= 2)
    assert (
        "EqualizedFocalLoss: it is plain focal loss after 3 steps: in every class positives outweigh"
        in caplog.messages[0]
    )
    assert "prior" in caplog.messages[0]


def test_loss_warns_once_when_gradients_never_arrive(monkeypatch, caplog):
    monkeypatch.setattr(losses.gradient_collection, "CHECK_EVERY", 3)
    loss = EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    for _ in range(9):
        loss.begin_step()
        loss(logits, labels)
        loss.after_backward()
    (message,) = caplog.messages
    assert "no gradient has arrived in 3 steps" in message
    assert "are the logits detached" in message


def test_loss_warns_once_when_after_backward_is_not_called(monkeypatch, caplog):
    monkeypatch.setattr(losses.gradient_collection, "CHECK_EVERY", 3)
    loss = EqualizedFocalLoss(CLASSES)
    for _ in range(9):
        loss(*draw_step(0))
    (message,) = caplog.messages
    assert message.startswith("EqualizedFocalLoss: after_backward() was not called in 3 passes")


def test_loss_looks_for_trouble_every_200_steps():
    assert losses.gradient_collection.CHECK_EVERY == 200


def test_loss_that_becomes_neutral_or_loses_its_gradients_later_warns_too(run_step, monkeypatch, caplog):
    monkeypatch.setattr(losses.gradient_collection, "CHECK_EVERY", 3)
    for level, message in ((torch.full((1, 2, 1), 30.0), "plain focal loss after 6 steps"), (None, "no gradient has")):
        caplog.clear()
        loss = EqualizedFocalLoss(1)
        loss.positive_gradient += 0.5
        loss.negative_gradient += 1.0  # as after a resumed checkpoint
        for _ in range(3):
            run_step(loss, [torch.zeros(1, 2, 1)], [torch.tensor([[0, BACKGROUND]])])
        assert not caplog.messages
        for _ in range(3):
            loss.positive_gradient += 100.0 if level is not None else 0.0
            loss.after_backward()
        assert message in caplog.text


def test_passes_of_an_evaluation_are_not_missing_their_backward(monkeypatch, caplog):
    monkeypatch.setattr(losses.gradient_collection, "CHECK_EVERY", 3)
    loss = EqualizedFocalLoss(CLASSES)
    for _ in range(9):
        with torch.no_grad():
            loss(*draw_step(0))
    loss.eval()
    for _ in range(9):
        loss(*draw_step(0))
    assert not caplog.messages


def test_only_the_first_rank_warns(monkeypatch, caplog):
    monkeypatch.setattr(losses.gradient_collection, "CHECK_EVERY", 3)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for rank, number in ((1, 0), (0, 1)):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        loss = EqualizedFocalLoss(CLASSES)
        for _ in range(9):
            loss(*draw_step(0))
        assert len(caplog.messages) == number


@pytest.mark.parametrize(
    ("loss", "ratio", "neutral"),
    [
        (EqualizedFocalLoss(2), [1.01, 3.0], True),
        (EqualizedFocalLoss(2), [0.99, 3.0], False),
        (EqualizedQualityFocalLoss(2), [1.01, 3.0], True),
        (EqualizationLossV2(2), [1.2, 3.0], True),  # 1 / (1 + exp(-12 * 0.4)) = 0.992
        (EqualizationLossV2(2), [1.0, 3.0], False),  # 1 / (1 + exp(-12 * 0.2)) = 0.917
    ],
)
def test_each_loss_knows_when_it_treats_all_classes_alike(loss, ratio, neutral):
    loss.positive_gradient.copy_(torch.tensor(ratio))
    loss.negative_gradient.fill_(1.0)
    assert loss.is_neutral() == neutral


def test_loss_that_works_warns_of_nothing(run_step, monkeypatch, caplog):
    monkeypatch.setattr(losses.gradient_collection, "CHECK_EVERY", 3)
    loss = EqualizedFocalLoss(CLASSES)
    for step in range(5):
        run_step(loss, *draw_step(step))
    assert not caplog.messages
