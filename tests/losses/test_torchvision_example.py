"""The README's example: our EFL in torchvision's RetinaNet."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision.models.detection as torchvision_detection

README = Path(__file__).parents[2] / "README.md"
NUM_CLASSES = 5


@pytest.fixture(scope="module")
def example() -> str:
    """The code block that builds torchvision's RetinaNet."""
    (block,) = (
        block.split("```")[0]
        for block in README.read_text(encoding="utf-8").split("```python\n")[1:]
        if "retinanet_resnet50_fpn(" in block.split("```")[0]
    )
    return block


@pytest.fixture
def small_images(monkeypatch):
    """Torchvision's RetinaNet, but images keep their size of 96 pixels."""
    build = partial(torchvision_detection.retinanet_resnet50_fpn, min_size=96, max_size=96)
    monkeypatch.setattr(torchvision_detection, "retinanet_resnet50_fpn", build)


def draw_batches(num_steps: int, num_images: int = 2) -> list[tuple[list, list]]:
    """The same images in every step: the first has two objects, the second none."""
    torch.manual_seed(0)
    images = [torch.rand(3, 96, 96), torch.rand(3, 96, 80)]
    boxes = torch.tensor([[8.0, 10, 60, 70], [40, 30, 90, 92]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([3, 1])},
        {"boxes": boxes[:0], "labels": torch.tensor([]).long()},
    ]
    return [(images[:num_images], targets[:num_images])] * num_steps


def run(example: str, batches: list) -> dict:
    torch.manual_seed(1)
    names = {"num_classes": NUM_CLASSES, "batches": batches}
    exec(example, names)
    return names


def test_example_is_shorter_than_25_lines(example):
    assert 15 < len([line for line in example.splitlines() if line.strip()]) < 25


def test_example_trains_and_gathers_gradients(example, small_images):
    batches = draw_batches(3)
    model = run(example, batches)["model"]
    efl, untrained = model.efl, run(example, [])["model"]
    assert (efl.positive_gradient > 0).tolist() == [False, True, False, True, False]
    assert (efl.negative_gradient > 0).all()
    assert efl.gradient_ratio[[0, 2, 4]].max() == 0
    assert {"efl.positive_gradient", "efl.negative_gradient"} < model.state_dict().keys()
    losses = [sum(m(*batches[0]).values()).item() for m in (untrained, model)]
    assert losses[1] < losses[0]


def train_in_half(example: str, batches: list, dtype: torch.dtype, scale: float):
    """The example's model after its training loop with autocast and a GradScaler, by the lines that README has for that."""
    readme = README.read_text(encoding="utf-8")
    before, after = (
        re.search(rf"`({line})`", readme)[1] for line in (r"scale = scaler[^`]*", r"efl\.after_backward\(gra[^`]*")
    )
    names = run(example, [])
    model, optimizer, efl = names["model"], names["optimizer"], names["efl"]
    names |= {"scaler": torch.amp.GradScaler("cpu", init_scale=scale), "processes": 1}
    for images, targets in batches:
        efl.begin_step()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            losses = model(images, targets)
        names["scaler"].scale(sum(losses.values())).backward()
        names["scaler"].step(optimizer)
        exec(before, names)
        names["scaler"].update()
        exec(after, names)
    return model


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 2.0**10), (torch.bfloat16, 2.0**16)])
def test_example_collects_under_a_grad_scaler_what_it_collects_without(example, small_images, dtype, scale):
    batches = draw_batches(1, num_images=1)
    plain, scaled = run(example, batches)["model"], train_in_half(example, batches, dtype, scale)
    for name in ("positive_gradient", "negative_gradient"):
        expected = getattr(plain.efl, name)
        assert expected.any()
        torch.testing.assert_close(getattr(scaled.efl, name), expected, rtol=0.05, atol=0)


def test_step_that_the_grad_scaler_skips_is_not_collected(example, small_images):
    model = train_in_half(example, draw_batches(1, num_images=1), torch.float16, 2.0**30)  # gradients overflow
    assert not model.efl.positive_gradient.any()
    assert not model.efl.negative_gradient.any()


def test_first_loss_of_the_example_is_torchvisions_own(example, small_images):
    ((images, targets),) = draw_batches(1, num_images=1)  # torchvision averages over images
    ours = run(example, [])["model"]
    torch.manual_seed(1)
    theirs = torchvision_detection.retinanet_resnet50_fpn(num_classes=NUM_CLASSES, weights=None, weights_backbone=None)
    assert ours(images, targets)["classification"].item() == pytest.approx(
        theirs(images, targets)["classification"].item(), rel=1e-5
    )


def test_copy_of_the_example_has_a_loss_of_its_own(example, small_images):
    ((images, targets),) = draw_batches(1)
    model = run(example, [])["model"]
    copied = copy.deepcopy(model)
    sum(copied(images, targets).values()).backward()
    assert copied.efl.pending.any()
    assert not model.efl.pending.any()
