"""Boxes weighted by quality or score over two processes in passes: against which others they are weighted.

That in one pass two processes come to the same as one: see tools/equality.py.
"""

import sys
from pathlib import Path

import pytest
import torch

from longshot.detector.build import build_run
from longshot.detector.build_data import build_data
from longshot.detector.config.schema import parse_config
from longshot.detector.system.distributed import process_group
from longshot.detector.training.step import optimize, parallel

HEADS = ["improved baseline", "gfl"]  # weighted by quality and by score


def take_steps(values, batches, process):
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
            images_per_pass=2 // process.world_size, precision="fp32", clip_norm=None,
        )  # fmt: skip
        seen.append((numbers, {name: p.grad.clone() for name, p in run.network.named_parameters()}))
    return seen


def run_rank(folder):
    """One of two processes, with two passes of an image each."""
    jobs = torch.load(folder / "jobs.pt", weights_only=False)
    with process_group("cpu") as process:
        torch.save({name: take_steps(*job, process) for name, job in jobs.items()}, folder / f"{process.rank}.pt")


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
def ranks(jobs, run_processes, tmp_path_factory):
    """What each of two processes has seen."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(jobs, folder / "jobs.pt")
    ended = run_processes(2, __file__, folder)
    assert ended.codes == [0, 0], ended.output
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", HEADS)
def test_passes_of_two_processes_are_those_of_one_with_the_same_images(ranks, jobs, cpu, name):
    # In their first passes the two processes hold images 0 and 2. One process that has a pass for these, and another for
    # images 1 and 3, weights the same boxes against each other.
    values, batches = jobs[name]
    order = [0, 2, 1, 3]
    mixed = [
        batch._replace(images=[batch.images[i] for i in order], targets=[batch.targets[i] for i in order])
        for batch in batches
    ]
    one = take_steps(values, mixed, cpu)
    assert [numbers["positives"] > 0 for numbers, _ in one] == [True, True, True, False]
    for seen in ranks:
        for (our_numbers, our_gradients), (numbers, gradients) in zip(seen[name], one, strict=True):
            assert our_numbers == pytest.approx(numbers, rel=1e-5)
            assert our_gradients.keys() == gradients.keys()
            for key, gradient in gradients.items():
                torch.testing.assert_close(our_gradients[key], gradient, rtol=1e-4, atol=1e-6, msg=key)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(Path(sys.argv[1]))
