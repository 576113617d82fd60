"""Boxes weighted by quality or score over two processes: their steps are those of one."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from detector.build import build_run
from detector.build_data import build_data
from detector.config import parse_config
from detector.distributed import Process
from detector.training.engine import optimize, parallel

ROOT = Path(__file__).parents[3]
HEADS = ["improved baseline", "gfl"]  # weighted by quality and by score


def take_steps(values, batches, process, *, images_per_pass):
    """Take a step from the start on this process's share of each batch of 4 images; numbers and gradients of each."""
    config = parse_config(values)
    torch.manual_seed(config.seed)
    run = build_run(config, build_data(config, process).classes, process, num_images=24)
    run.network.double().register_forward_pre_hook(lambda network, images: (images[0].double(),))
    model, start, seen = parallel(run.network, process), run.network.state_dict(), []
    start = {name: value.clone() for name, value in start.items()}
    mine = 4 // process.world_size
    share = slice(process.rank * mine, (process.rank + 1) * mine)
    for batch in batches:
        run.network.load_state_dict(start)
        numbers = optimize(
            run, model, batch._replace(images=batch.images[share], targets=batch.targets[share]), process,
            images_per_pass=images_per_pass, precision="fp32", clip_norm=None,
        )  # fmt: skip
        seen.append((numbers, {name: p.grad.clone() for name, p in run.network.named_parameters()}))
    return seen


def run_rank(rank, folder):
    """One of two processes, with two images each: in one pass, then in two."""
    rendezvous, timeout = f"file://{folder}/rendezvous", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timeout)
    process = Process(rank, 2, torch.device("cpu"))
    jobs = torch.load(folder / "jobs.pt", weights_only=False)
    seen = {
        (name, per_pass): take_steps(*job, process, images_per_pass=per_pass)
        for name, job in jobs.items()
        for per_pass in (2, 1)
    }
    torch.save(seen, folder / f"{rank}.pt")
    dist.destroy_process_group()


def without_objects(batch, images):
    targets = [
        target._replace(boxes=target.boxes[:0], labels=target.labels[:0]) if image in images else target
        for image, target in enumerate(batch.targets)
    ]
    return batch._replace(targets=targets)


@pytest.fixture(scope="module")
def jobs(start, heads, make_config):
    """head -> (configuration, batches): with objects on both ranks, on rank 0, in the first pass of both, on none."""
    _, batches = start()
    without = [set(), {2, 3}, {1, 3}, {0, 1, 2, 3}]
    varied = [without_objects(batches[0], images) for images in without]
    return {name: (make_config(differences=heads[name]).model_dump(mode="json"), varied) for name in HEADS}


@pytest.fixture(scope="module")
def ranks(jobs, tmp_path_factory):
    """What each of two processes has seen."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(jobs, folder / "jobs.pt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment) for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_same_steps(ours, theirs):
    for (our_numbers, our_gradients), (numbers, gradients) in zip(ours, theirs, strict=True):
        assert our_numbers == pytest.approx(numbers, rel=1e-5)
        assert our_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", HEADS)
def test_a_step_of_two_processes_is_that_of_one(ranks, jobs, cpu, name):
    one = take_steps(*jobs[name], cpu, images_per_pass=4)
    assert [numbers["positives"] > 0 for numbers, _ in one] == [True, True, True, False]
    for seen in ranks:
        assert_same_steps(seen[name, 2], one)


@pytest.mark.parametrize("name", HEADS)
def test_passes_of_two_processes_are_those_of_one_with_the_same_images(ranks, jobs, cpu, name):
    # In their first passes the two processes hold images 0 and 2. One process that has a pass for these two, and another
    # for images 1 and 3, weights the same boxes against each other.
    values, batches = jobs[name]
    order = [0, 2, 1, 3]
    mixed = [
        batch._replace(images=[batch.images[i] for i in order], targets=[batch.targets[i] for i in order])
        for batch in batches
    ]
    one = take_steps(values, mixed, cpu, images_per_pass=2)
    for seen in ranks:
        assert_same_steps(seen[name, 1], one)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
