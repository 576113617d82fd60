"""What EqualizedFocalLoss collects, over levels, passes and processes."""

import copy
import math
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longshot import losses
from longshot.losses import BACKGROUND, IGNORE, EqualizedFocalLoss, FocalLoss

ROOT = Path(__file__).parents[2]

# Three levels of 2 images, A = 2 anchors per location, K = 5 classes: R_l = 12, 4, 2.
ANCHORS, CLASSES = (12, 4, 2), 5


def draw_step(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and labels of one step, among them IGNORE and BACKGROUND."""
    generator = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(2, rows, CLASSES, dtype=dtype, generator=generator) - 1 for rows in ANCHORS]
    return logits, [torch.randint(IGNORE, CLASSES - 1, (2, rows), generator=generator) for rows in ANCHORS]


def sums(loss: EqualizedFocalLoss) -> Tensor:
    return torch.stack([loss.positive_gradient, loss.negative_gradient])


def test_collected_sums_are_those_of_the_gradient_itself(monkeypatch):
    monkeypatch.setattr(losses.kernel, "CHUNK", 3 * 10 * 6)  # three rows at a time
    loss = EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    levels = [level.clone().requires_grad_() for level in logits]
    loss(levels, labels).backward()
    loss.after_backward()
    gradient = torch.cat([level.grad.flatten(0, 1) for level in levels]).abs()
    label = torch.cat([level.flatten() for level in labels])
    positive = torch.zeros_like(gradient, dtype=torch.bool)
    positive[label >= 0, label[label >= 0]] = True
    torch.testing.assert_close(loss.positive_gradient, (gradient * positive).sum(0))
    torch.testing.assert_close(loss.negative_gradient, (gradient * ~positive).sum(0))


def test_negatives_keep_their_precision_beside_positives_1e8_times_larger():
    # float32 gradients of the first step at a prior of 0.001
    loss = EqualizedFocalLoss(1)
    logits = torch.full((1, 3, 1), -6.9068, requires_grad=True)
    loss([logits], [torch.tensor([[0, BACKGROUND, 0]])]).backward()
    loss.after_backward()
    assert loss.positive_gradient.item() == pytest.approx(2 * 0.2527, rel=1e-3)
    assert loss.negative_gradient.item() == pytest.approx(logits.grad[0, 1, 0].item(), rel=1e-6)


def test_weight_multiplies_loss_and_collected_gradient(run_step):
    plain, weighted = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES, weight=3.0)
    value = run_step(plain, *draw_step(0))
    assert run_step(weighted, *draw_step(0)) == pytest.approx(3 * value)
    torch.testing.assert_close(sums(weighted), 3 * sums(plain))


def test_order_of_levels_changes_nothing(run_step):
    forward, backward = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    run_step(forward, logits, labels)
    run_step(backward, logits[::-1], labels[::-1])
    torch.testing.assert_close(sums(backward), sums(forward), rtol=1e-14, atol=0)


def test_levels_of_a_shared_layer_are_collected_in_one_backward(run_step):
    loss, expected = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    run_step(expected, logits, labels)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss([level * scale for level in logits], labels).backward()
    loss.after_backward()
    assert torch.equal(sums(loss), sums(expected))


def test_passes_of_one_image_add_up_to_one_pass_and_one_update(run_step):
    whole, passes = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    for step in range(2):
        logits, labels = draw_step(step)
        run_step(whole, logits, labels, 5.0)
        passes.begin_step()
        ratio = passes.gradient_ratio
        for image in range(2):
            levels = [level[image : image + 1].clone().requires_grad_() for level in logits]
            (passes(levels, [level[image : image + 1] for level in labels]) / 5.0).backward()
            assert torch.equal(passes.gradient_ratio, ratio)
        passes.after_backward()
        torch.testing.assert_close(sums(passes), sums(whole), rtol=1e-13, atol=0)


def test_gradient_scale_is_divided_out(run_step):
    plain, scaled = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    run_step(plain, logits, labels)
    (1024 * scaled([level.requires_grad_() for level in logits], labels)).backward()
    scaled.after_backward(gradient_scale=1024.0)
    torch.testing.assert_close(sums(scaled), sums(plain))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_step_with_one_level_that_is_not_finite_is_dropped_whole(run_step, value):
    loss = EqualizedFocalLoss(CLASSES)
    run_step(loss, *draw_step(0))
    before = sums(loss)
    logits, labels = draw_step(1)
    levels = [level.requires_grad_() for level in logits]
    (value * loss(levels[:1], labels[:1]) + loss(levels[1:], labels[1:])).backward()
    loss.after_backward()
    assert torch.equal(sums(loss), before)
    run_step(loss, *draw_step(1))
    assert (sums(loss)[1] > before[1]).all()


def test_step_with_one_class_that_is_not_finite_is_dropped_whole(run_step):
    loss = EqualizedFocalLoss(CLASSES)
    run_step(loss, *draw_step(0))
    before = sums(loss)
    logits, labels = draw_step(1)
    logits[0][0, 0, 2], labels[0][0, 0] = math.nan, BACKGROUND
    loss([level.requires_grad_() for level in logits], labels).backward()
    assert loss.pending.isnan().any(0).tolist() == [False, False, True, False, False]
    loss.after_backward()
    assert torch.equal(sums(loss), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sign_of_the_gradient_that_comes_in_changes_nothing(dtype):
    plain, turned = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0, dtype=dtype)
    plain([level.clone().requires_grad_() for level in logits], labels).backward()
    (-3 * turned([level.requires_grad_() for level in logits], labels)).backward()
    torch.testing.assert_close(turned.pending, 3 * plain.pending, rtol=1e-6, atol=0)


def test_step_not_taken_is_dropped_and_forgotten():
    loss = EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    loss([level.requires_grad_() for level in logits], labels).backward()
    loss.after_backward(step_taken=False)
    assert not sums(loss).any()
    assert torch.equal(loss.gradient_ratio, torch.ones(CLASSES, dtype=torch.float64))
    loss.after_backward()
    assert not sums(loss).any()


def test_begin_step_forgets_an_aborted_step(run_step):
    expected, loss = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    run_step(expected, *draw_step(1))
    logits, labels = draw_step(0)
    loss([level.requires_grad_() for level in logits], labels).backward()
    run_step(loss, *draw_step(1))
    assert torch.equal(sums(loss), sums(expected))


def test_forward_without_gradient_collects_nothing():
    loss = EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    with torch.no_grad():
        value = loss([level.clone().requires_grad_() for level in logits], labels)
    torch.testing.assert_close(value, FocalLoss(CLASSES)(logits, labels))
    loss.after_backward()
    assert not sums(loss).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_collect_the_gradient_before_it_is_rounded(run_step, dtype):
    exact, half = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    for step in range(3):
        logits, labels = draw_step(step, dtype=torch.float32)
        logits = [(level - 5).to(dtype) for level in logits]  # many gradients are below what float16 can hold
        run_step(exact, [level.double() for level in logits], labels)
        run_step(half, logits, labels)
        torch.testing.assert_close(sums(half), sums(exact), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_backward_through_a_retained_graph_collects_the_same_again(dtype):
    loss = EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0, dtype=torch.float32)
    value = loss([level.to(dtype).requires_grad_() for level in logits], labels)
    value.backward(retain_graph=True)
    once = loss.pending.clone()
    (-3 * value).backward()
    torch.testing.assert_close(loss.pending, 4 * once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float"])
def test_sums_stay_float64_when_the_model_is_cast(run_step, cast):
    loss = EqualizedFocalLoss(CLASSES)
    run_step(loss, *draw_step(0))
    before = sums(loss)
    getattr(torch.nn.Sequential(loss), cast)()
    assert torch.equal(sums(loss), before)
    assert sums(loss).dtype == loss.pending.dtype == torch.float64


def test_copy_of_a_loss_collects_for_itself():
    loss = EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    copy.deepcopy(loss)([level.requires_grad_() for level in logits], labels).backward()
    assert not loss.pending.any()


def test_checkpointed_layer_collects_once():
    plain, checkpointed = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)
    layer = torch.nn.Linear(CLASSES, CLASSES, dtype=torch.float64)
    plain([layer(level) for level in logits], labels).backward()
    inputs = [level.requires_grad_() for level in logits]
    checkpointed([checkpoint(layer, level, use_reentrant=False) for level in inputs], labels).backward()
    assert torch.equal(checkpointed.pending, plain.pending)


def test_loss_inside_a_compiled_step_collects_the_same():
    plain, compiled = EqualizedFocalLoss(CLASSES), EqualizedFocalLoss(CLASSES)
    logits, labels = draw_step(0)

    def step(scale: Tensor) -> Tensor:
        return compiled([level * scale for level in logits], labels)

    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    torch.compile(step, backend="aot_eager")(scale).backward()
    plain([level.requires_grad_() for level in logits], labels).backward()
    torch.testing.assert_close(compiled.pending, plain.pending, rtol=1e-12, atol=0)


class WithLoss(torch.nn.Module):
    """A detector that owns its loss, as the one of the README does."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.loss = EqualizedFocalLoss(CLASSES)

    def forward(self, logits: list[Tensor], labels: list[Tensor]) -> Tensor:
        return self.loss([level * self.scale for level in logits], labels)


def collect_inside_ddp(rank: int) -> Tensor:
    """The sums of one step of two passes, of this rank's image in steps 0 and 1; DDP synchronizes buffers in both."""
    model = torch.nn.parallel.DistributedDataParallel(WithLoss())
    model.module.loss.begin_step()
    for step in range(2):
        model(*([level[rank : rank + 1] for level in part] for part in draw_step(step))).backward()
    model.module.loss.after_backward()
    return sums(model.module.loss)


def run_rank(rank: int, folder: Path) -> None:
    """One of two processes, with one image each; stores the sums after each of four steps."""
    rendezvous, timeout = f"file://{folder}/rendezvous", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timeout)
    loss, history = EqualizedFocalLoss(CLASSES), []
    for step in range(4):
        logits, labels = draw_step(step)
        levels = [level[rank : rank + 1].requires_grad_() for level in logits]
        loss.begin_step()
        # 2: gradients are averaged over ranks. One rank alone overflows in step 1 and skips step 2.
        factor = math.inf if (rank, step) == (1, 1) else 2.0
        (factor * loss(levels, [level[rank : rank + 1] for level in labels])).backward()
        loss.after_backward(gradient_scale=2.0, step_taken=(rank, step) != (0, 2))
        history.append(sums(loss))
    torch.save(history, folder / f"{rank}.pt")
    torch.save(collect_inside_ddp(rank), folder / f"ddp{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_and_drop_a_step_together(run_step, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment) for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    one = EqualizedFocalLoss(CLASSES)
    run_step(one, *draw_step(0))
    torch.testing.assert_close(first[0], sums(one), rtol=1e-13, atol=0)
    assert torch.equal(first[1], first[0])
    assert torch.equal(first[2], first[0])
    run_step(one, *draw_step(3))
    torch.testing.assert_close(first[3], sums(one), rtol=1e-13, atol=0)
    whole = WithLoss()
    for step in range(2):
        whole(*draw_step(step)).backward()
    whole.loss.after_backward()
    for rank in range(2):
        inside = torch.load(tmp_path / f"ddp{rank}.pt")
        torch.testing.assert_close(inside, sums(whole.loss), rtol=1e-13, atol=0)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
