"""Equalized Focal Loss's state over whole training steps of two processes: that of one, and steps dropped together."""

import os
import subprocess
import sys
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.amp import GradScaler

from detector.build import build_run
from detector.build_data import build_data
from detector.config import parse_config
from detector.distributed import Process
from detector.training.engine import optimize, parallel

ROOT = Path(__file__).parents[3]
HEAD = {
    "prior": 0.3
}  # high enough for negatives to outweigh positives: g lies below 1, and differs from class to class
# So small a loss that half gradients bear a scale of 65536; from 0.08 to 0.125 they overflow in the fifth step, at 262144.
WEIGHT = 0.1
JOBS = {
    "one pass": {"model": {"head": HEAD}},
    "passes, head recomputed": {"model": {"head": {**HEAD, "recompute": True}}, "train": {"images_per_pass": 1}},
    "fp16": {"model": {"head": HEAD}, "train": {"precision": "fp16"}, "optimizer": {"lr": 0.001}},
}


def take_steps(values, batches, process):
    """Take steps on this process's share of batches of 4 images; what it sees after each, by name."""
    config = parse_config(values)
    torch.manual_seed(config.seed)
    data = build_data(config, process)
    run = build_run(config, data.classes, process, num_images=len(data.train))
    if config.train.precision == "fp16":
        run.scaler = GradScaler("cpu", init_scale=65536.0, growth_interval=2)
    else:  # float64: float32 rounds sums in another order differently
        run.network.double().register_forward_pre_hook(lambda network, images: (images[0].double(),))
    logits, finite, seen = [], [], defaultdict(list)
    run.network.head.register_forward_hook(lambda head, inputs, outputs: logits.append(torch.cat(outputs.logits, 1)))
    for parameter in run.network.parameters():  # of this process alone: hooks come before the average over processes
        parameter.register_hook(lambda gradient: finite.append(gradient.isfinite().all()))
    model, loss, mine = parallel(run.network, process), run.criterion.classification, 4 // process.world_size
    share = slice(process.rank * mine, (process.rank + 1) * mine)
    for batch in batches:
        logits.clear()
        finite.clear()
        numbers = optimize(
            run, model, batch._replace(images=batch.images[share], targets=batch.targets[share]), process,
            images_per_pass=config.train.images_per_pass or mine, precision=config.train.precision, clip_norm=None,
        )  # fmt: skip
        seen["sums"].append(torch.stack([loss.positive_gradient, loss.negative_gradient]))
        seen["g"].append(loss.gradient_ratio)
        seen["pending"].append(loss.pending.clone())
        seen["logits"].append(torch.cat(logits).detach())
        seen["finite here"].append(torch.stack(finite).all().item())
        seen["taken"].append(torch.tensor(numbers["gradient_norm"]).isfinite().item())
        seen["scale"].append(run.scaler.get_scale())
    return dict(seen)


def run_rank(rank, folder):
    """One of two processes, with two images each."""
    rendezvous, timeout = f"file://{folder}/rendezvous", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timeout)
    jobs = torch.load(folder / "jobs.pt", weights_only=False)
    process = Process(rank, 2, torch.device("cpu"))
    torch.save({name: take_steps(*job, process) for name, job in jobs.items()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def without_objects(batch, images):
    targets = [
        target._replace(boxes=target.boxes[:0], labels=target.labels[:0]) if image in images else target
        for image, target in enumerate(batch.targets)
    ]
    return batch._replace(targets=targets)


@pytest.fixture(scope="module")
def jobs(start, make_config):
    """name -> (configuration, batches): with objects on both ranks, on rank 0, on none; for fp16 on rank 1 alone."""
    _, batches = start()
    varied = [batches[0], without_objects(batches[1], {2, 3}), without_objects(batches[2], {0, 1, 2, 3}), batches[3]]
    of_rank_1 = [without_objects(batch, {0, 1}) for batch in batches * 2]
    # Where the edges of two boxes meet, GIoU's gradient jumps.
    loss = {"classification": {"weight": WEIGHT}, "box": {"name": "smooth_l1", "weight": WEIGHT}}
    return {
        name: (
            make_config(differences={**differences, "loss": loss}).model_dump(mode="json"),
            of_rank_1 if name == "fp16" else varied,
        )
        for name, differences in JOBS.items()
    }


@pytest.fixture(scope="module")
def ranks(jobs, tmp_path_factory):
    """What two processes have seen in their jobs."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(jobs, folder / "jobs.pt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment) for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["one pass", "passes, head recomputed"])
def test_two_processes_come_to_the_g_of_one(ranks, jobs, cpu, name):
    one = {key: torch.stack(value) for key, value in take_steps(*jobs["one pass"], cpu).items() if key in ("sums", "g")}
    assert len(one["g"][(one["g"] > 0) & (one["g"] < 1)].unique()) > 10
    for key, value in one.items():
        first, second = (torch.stack(seen[name][key]) for seen in ranks)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, value, rtol=1e-6, atol=0)


def test_a_step_that_overflows_on_one_rank_alone_is_dropped_on_both_and_leaves_no_trace(ranks):
    ours, theirs = (seen["fp16"] for seen in ranks)
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


def test_two_processes_collect_what_the_half_logits_of_both_give(ranks, jobs, start, labels_of, analytic):
    ours, theirs = (seen["fp16"] for seen in ranks)
    run, _ = start()
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for step, batch in enumerate(jobs["fp16"][1]):
        logits = torch.cat([ours["logits"][step], theirs["logits"][step]])
        assert logits.dtype == torch.float16
        if ours["taken"][step]:
            expected += WEIGHT * analytic(logits, labels_of(run, batch), expected)
        torch.testing.assert_close(ours["sums"][step], expected, rtol=1e-6, atol=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
