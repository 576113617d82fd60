import math
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from longshot import losses
from longshot.losses import BACKGROUND, IGNORE, FocalLoss, SeesawLoss, seesaw_loss, sigmoid_focal_loss

ROOT = Path(__file__).parents[2]

# Three levels of 2 images, A = 2 anchors per location, K = 5 classes: R_l = 12, 4, 2.
ANCHORS, CLASSES = (12, 4, 2), 5
PAPER = {"mitigation": 0.8, "compensation": 2.0}
FOCAL = {"alpha": 0.25, "gamma": 2.0}
CROSS_ENTROPY = {"alpha": None, "gamma": 0.0}


def draw_step(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and labels of one step. Class 4 never occurs; IGNORE and BACKGROUND do."""
    generator = torch.Generator().manual_seed(seed)
    logits = [3 * torch.randn(2, rows, CLASSES, dtype=dtype, generator=generator) - 1 for rows in ANCHORS]
    return logits, [torch.randint(IGNORE, CLASSES - 1, (2, rows), generator=generator) for rows in ANCHORS]


def flat(levels: list[Tensor]) -> Tensor:
    return torch.cat([level.flatten(0, 1) for level in levels])


def slow_factors(logits: Tensor, labels: Tensor, counts: list[float], mitigation: float, compensation: float) -> Tensor:
    """S of each entry, by the paper's two definitions; 1 at positives and off the rows of objects."""
    factors, p = torch.ones_like(logits), logits.sigmoid().tolist()
    for row, i in enumerate(labels.tolist()):
        for j in range(logits.shape[1] if i >= 0 else 0):
            n_i, n_j, p_i = max(counts[i], 1), max(counts[j], 1), max(p[row][i], 0.01)
            if j != i and n_j < n_i:
                factors[row, j] *= (n_j / n_i) ** mitigation
            if j != i and p[row][j] > p_i:
                factors[row, j] *= (p[row][j] / p_i) ** compensation
    return factors


def slow_seesaw(
    logits: Tensor, labels: Tensor, factors: Tensor, alpha: float | None, gamma: float
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of focal loss with weights S / (1 - p + S p), by autograd."""
    z = logits.clone().requires_grad_()
    target = F.one_hot(labels.clamp(min=0), logits.shape[1]) * (labels >= 0)[:, None].double()
    p = z.sigmoid()
    weight = (factors / (1 - p + factors * p)).detach()
    p_t = torch.where(target > 0, p, 1 - p)
    if alpha is not None:
        weight = weight * torch.where(target > 0, alpha, 1 - alpha)
    loss = -(weight * (1 - p_t) ** gamma * p_t.log())[labels != IGNORE].sum()
    return loss.detach(), torch.autograd.grad(loss, z)[0]


@pytest.mark.parametrize(
    ("alpha", "gamma", "mitigation", "compensation"), [(0.25, 2.0, 0.8, 2.0), (None, 0.0, 0.5, 1.0)]
)
def test_three_steps_equal_the_slow_loss(alpha, gamma, mitigation, compensation):
    loss = SeesawLoss(CLASSES, mitigation=mitigation, compensation=compensation, alpha=alpha, gamma=gamma, weight=3.0)
    counts = [0.0] * CLASSES
    for step in range(3):
        logits, labels = draw_step(step)
        factors = slow_factors(flat(logits), flat(labels), counts, mitigation, compensation)
        expected, gradient = slow_seesaw(flat(logits), flat(labels), factors, alpha, gamma)
        levels = [level.requires_grad_() for level in logits]
        loss.begin_step()
        value = loss(levels, labels)
        value.backward()
        loss.after_backward()
        torch.testing.assert_close(value.detach(), 3 * expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(flat([level.grad for level in levels]), 3 * gradient, rtol=1e-11, atol=1e-15)
        for label in flat(labels).tolist():
            counts[label] += label >= 0
        assert loss.counts.tolist() == counts
    assert factors.min() < 0.5
    assert factors.max() > 50
    assert len(set(counts)) == CLASSES  # the comparison sees classes mixed up


def test_gradient_of_cross_entropy_is_that_of_logits_shifted_as_in_the_paper():
    logits, labels = (flat(levels) for levels in draw_step(0))
    counts = [100.0, 7.0, 30.0, 2.0, 0.0]
    z = logits.clone().requires_grad_()
    seesaw_loss(z, labels, counts=torch.tensor(counts), **PAPER, **CROSS_ENTROPY).backward()
    shifted = (logits + slow_factors(logits, labels, counts, **PAPER).log()).sigmoid()
    shifted[labels >= 0, labels[labels >= 0]] -= 1
    shifted[labels == IGNORE] = 0
    torch.testing.assert_close(z.grad, shifted, rtol=1e-12, atol=1e-15)


def test_rarer_class_is_spared_and_the_more_frequent_one_is_not():
    even, counts = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([100.0, 1.0])  # p = 1/2: all cost log 2
    costs = [
        seesaw_loss(even, torch.tensor([label]), counts=counts, **PAPER, **CROSS_ENTROPY).item()
        for label in (0, 1, BACKGROUND)
    ]
    mitigated = 2 * 100**-0.8 / (1 + 100**-0.8)  # S / (1/2 + S/2)
    assert costs == pytest.approx([(1 + mitigated) * math.log(2), 2 * math.log(2), 2 * math.log(2)])


def test_compensated_gradient_stays_below_one():
    # The right class scores 1e-4, the wrong one 1/2: C is 2500, whose product with 1/2 no clipping would survive.
    logits = torch.tensor([[-9.2, 0.0]], requires_grad=True)
    seesaw_loss(logits, torch.tensor([0]), counts=torch.ones(2), **PAPER, **CROSS_ENTROPY).backward()
    assert logits.grad[0, 1].item() == pytest.approx(2500 / 2501, rel=1e-5)


def test_exponents_of_zero_are_focal():
    logits, labels = draw_step(0)
    loss = SeesawLoss(CLASSES, mitigation=0.0, compensation=0.0)
    loss.counts += torch.tensor([100, 7, 30, 2, 0])
    assert loss(logits, labels) == FocalLoss(CLASSES)(logits, labels)


def test_first_step_without_compensation_is_focal():
    assert SeesawLoss(CLASSES, compensation=0.0)(*draw_step(0)) == FocalLoss(CLASSES)(*draw_step(0))


def test_images_without_objects_are_focal_whatever_was_counted():
    logits, _ = draw_step(0)
    background = torch.full(logits[0].shape[:-1], BACKGROUND)
    counts = torch.tensor([100.0, 7, 30, 2, 0])
    loss = seesaw_loss(logits[0], background, counts=counts, **PAPER, **FOCAL)
    assert loss == sigmoid_focal_loss(logits[0], background, **FOCAL)


def test_chunks_change_nothing(monkeypatch):
    logits, labels = draw_step(0)
    counts = torch.tensor([100.0, 7, 30, 2, 0])
    whole = seesaw_loss(logits[0], labels[0], counts=counts, **PAPER, **FOCAL)
    monkeypatch.setattr(losses.kernel, "CHUNK", 3 * 10 * 6)  # three rows at a time
    torch.testing.assert_close(
        seesaw_loss(logits[0], labels[0], counts=counts, **PAPER, **FOCAL), whole, rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(dtype):
    logits, labels = (flat(levels) for levels in draw_step(0, torch.float32))
    half, full = logits.to(dtype).requires_grad_(), logits.to(dtype).float().requires_grad_()
    counts = torch.tensor([100.0, 7, 30, 2, 0])
    values = [seesaw_loss(z, labels, counts=counts, **PAPER, **FOCAL) for z in (half, full)]
    for value in values:
        value.backward()
    assert torch.equal(*values)
    assert torch.equal(half.grad, full.grad.to(dtype))


def test_saturated_logits_are_finite_and_ignored_rows_may_hold_anything():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [math.nan, math.inf]], requires_grad=True)
    labels = torch.tensor([1, 1, IGNORE])
    loss = seesaw_loss(logits, labels, counts=torch.tensor([1e6, 1.0]), **PAPER, **FOCAL)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def step(loss: SeesawLoss, seed: int) -> None:
    """Forward and backward, in two passes of one image."""
    logits, labels = draw_step(seed)
    for image in range(2):
        levels = [level[image : image + 1].requires_grad_() for level in logits]
        loss(levels, [level[image : image + 1] for level in labels]).backward()


def positives(*seeds: int) -> list[int]:
    labels = torch.cat([flat(draw_step(seed)[1]) for seed in seeds])
    return [int((labels == k).sum()) for k in range(CLASSES)]


def test_counts_are_updated_once_after_all_passes_of_a_step():
    loss = SeesawLoss(CLASSES)
    step(loss, 0)
    assert not loss.counts.any()
    loss.after_backward()
    assert loss.counts.tolist() == positives(0)
    loss.after_backward()
    assert loss.counts.tolist() == positives(0)


def test_aborted_and_skipped_steps_and_evaluation_are_not_counted():
    loss = SeesawLoss(CLASSES)
    step(loss, 0)
    loss.begin_step()
    step(loss, 1)
    with torch.no_grad():
        loss(*draw_step(2))
    loss.eval()(*draw_step(3))
    loss.train().after_backward(gradient_scale=65536.0)
    assert loss.counts.tolist() == positives(1)
    step(loss, 2)
    loss.after_backward(step_taken=False)
    loss.after_backward()
    assert loss.counts.tolist() == positives(1)


def test_restored_counts_go_on_as_the_original():
    original, restored = SeesawLoss(CLASSES), SeesawLoss(CLASSES)
    step(original, 0)
    original.after_backward()
    state = original.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {"counts": torch.float64}
    restored.load_state_dict({name: value.clone() for name, value in state.items()})
    assert restored(*draw_step(1)) == original(*draw_step(1))


@pytest.mark.parametrize("options", [{"mitigation": -0.1}, {"compensation": -1.0}])
def test_negative_exponents_are_refused(options):
    with pytest.raises(ValueError, match="expected exponents of at least 0"):
        SeesawLoss(3, **options)


def run_rank(rank: int, folder: Path) -> None:
    """One of two processes: rank r has the images of seeds r, 2 + r and 4 + r; rank 0 skips the second step."""
    rendezvous, timeout = f"file://{folder}/rendezvous", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timeout)
    loss = SeesawLoss(CLASSES)
    for number in range(3):
        loss.begin_step()
        step(loss, 2 * number + rank)
        loss.after_backward(step_taken=(rank, number) != (0, 1))
    torch.save(loss.counts, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_count_together_and_drop_a_step_together(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment) for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt").tolist() == positives(0, 1, 4, 5)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
