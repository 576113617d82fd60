"""Equalized Focal Loss's state over fp16 steps of two processes, one of which has all objects: dropped by both or none.

That its state is that of one process: see tools/equality.py.
"""

import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch.amp import GradScaler

from longshot.detector.build import build_run
from longshot.detector.build_data import build_data
from longshot.detector.config.schema import parse_config
from longshot.detector.system.distributed import process_group
from longshot.detector.training.step import optimize, parallel

# So small a loss that half gradients bear a scale of 65536; from 0.08 to 0.125 they overflow in the fifth step, at
# 262144.
WEIGHT = 0.1
DIFFERENCES = {
    # So high a prior that negatives outweigh positives: g lies below 1, and differs from class to class.
    "model": {"head": {"prior": 0.3}},
    # Where the edges of two boxes meet, GIoU's gradient jumps.
    "loss": {"classification": {"weight": WEIGHT}, "box": {"name": "smooth_l1", "weight": WEIGHT}},
    "train": {"precision": "fp16"},
    "optimizer": {"lr": 0.001},
}


def run_rank(folder):
    """One of two processes, with two images of each batch of four; what it sees after each step, by name."""
    values, batches = torch.load(folder / "job.pt", weights_only=False)
    config, seen, logits, finite = parse_config(values), defaultdict(list), [], []
    with process_group("cpu") as process:
        torch.manual_seed(config.seed)
        data = build_data(config, process)
        run = build_run(config, data.classes, process, num_images=len(data.train))
        run.scaler = GradScaler("cpu", init_scale=65536.0, growth_interval=2)
        run.network.head.register_forward_hook(
            lambda head, inputs, outputs: logits.append(torch.cat(outputs.logits, 1))
        )
        for (
            parameter
        ) in run.network.parameters():  # of this process alone: hooks come before the average over processes
            parameter.register_hook(lambda gradient: finite.append(gradient.isfinite().all()))
        model, loss = parallel(run.network, process), run.criterion.classification
        share = slice(2 * process.rank, 2 * process.rank + 2)
        for batch in batches:
            finite.clear()
            numbers = optimize(
                run, model, batch._replace(images=batch.images[share], targets=batch.targets[share]), process,
                images_per_pass=2, precision="fp16", clip_norm=None,
            )  # fmt: skip
            seen["sums"].append(torch.stack([loss.positive_gradient, loss.negative_gradient]))
            seen["pending"].append(loss.pending.clone())
            seen["logits"].append(logits.pop().detach())
            seen["finite here"].append(torch.stack(finite).all().item())
            seen["taken"].append(torch.tensor(numbers["gradient_norm"]).isfinite().item())
            seen["scale"].append(run.scaler.get_scale())
    torch.save(dict(seen), folder / f"{process.rank}.pt")


def without_objects(batch, images):
    targets = [
        target._replace(boxes=target.boxes[:0], labels=target.labels[:0]) if image in images else target
        for image, target in enumerate(batch.targets)
    ]
    return batch._replace(targets=targets)


@pytest.fixture(scope="module")
def batches(start):
    """Eight, with objects on rank 1 alone."""
    return [without_objects(batch, {0, 1}) for batch in start()[1] * 2]


@pytest.fixture(scope="module")
def ranks(make_config, batches, run_processes, tmp_path_factory):
    """What each of two processes has seen."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save((make_config(differences=DIFFERENCES).model_dump(mode="json"), batches), folder / "job.pt")
    ended = run_processes(2, __file__, folder)
    assert ended.codes == [0, 0], ended.output
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_step_that_overflows_on_one_rank_alone_is_dropped_on_both_and_leaves_no_trace(ranks):
    ours, theirs = ranks
    assert ours["taken"] == theirs["taken"] == [True] * 4 + [False] + [True] * 3
    assert ours["finite here"] == [True] * 8
    assert theirs["finite here"] == ours["taken"]
    # After two steps the scale doubles; after the overflow it is halved, and all begins anew.
    assert ours["scale"] == theirs["scale"] == [2.0**n for n in (16, 17, 17, 18, 17, 17, 18, 18)]
    for seen in (ours, theirs):
        assert not torch.stack(seen["pending"]).any()
        before = [torch.zeros(2, 4, dtype=torch.float64), *seen["sums"][:-1]]
        changed = [not torch.equal(*sums) for sums in zip(before, seen["sums"], strict=True)]
        assert changed == seen["taken"]
    assert all(torch.equal(a, b) for a, b in zip(ours["sums"], theirs["sums"], strict=True))


def test_two_processes_collect_what_the_half_logits_of_both_give(ranks, batches, start, labels_of, analytic):
    ours, theirs = ranks
    run, _ = start()
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for step, batch in enumerate(batches):
        logits = torch.cat([ours["logits"][step], theirs["logits"][step]])
        assert logits.dtype == torch.float16
        if ours["taken"][step]:
            expected += WEIGHT * analytic(logits, labels_of(run, batch), expected)
        torch.testing.assert_close(ours["sums"][step], expected, rtol=1e-6, atol=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(Path(sys.argv[1]))
