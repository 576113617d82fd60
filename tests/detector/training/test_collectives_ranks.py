"""What two processes tell each other in steps of which one or both have no object: the same, in the same order."""

import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from longshot.detector.build import build_network
from longshot.detector.system.distributed import process_group
from longshot.detector.training.step import parallel
from longshot.tools.checks.equality import emptiness, take_steps
from longshot.tools.checks.equality_cases import NUM_CLASSES, case_config, make_data

CASE = "improved baseline, frozen_bn"  # sums positives, weights of boxes in each pass, gradients, EFL's state, losses


def run_rank(folder):
    """One of two processes, with two passes of two images in each of four steps."""
    with process_group("cpu") as process:
        mine = folder / str(process.rank)
        mine.mkdir()
        data = make_data(mine, steps=4, batch_size=8)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
            take_steps(CASE, data, process, images_per_pass=2, precision="float32")
        calls = [event for event in recorded.events() if event.name.startswith("gloo:")]
        calls.sort(key=lambda event: event.time_range.start)
        model = parallel(build_network(case_config(CASE, data, "float32").model, 3, pretrained=False), process)
        seen = {
            "calls": [(call.name, call.input_shapes) for call in calls],
            "emptiness": emptiness(data, process, 2),
            "finds unused": model.find_unused_parameters,
        }
        torch.save(seen, mine / "seen.pt")


@pytest.fixture(scope="module")
def ranks(run_processes, tmp_path_factory):
    """What each of two processes has seen."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = run_processes(2, __file__, folder, seconds=60)
    assert ended.codes == [0, 0], ended.output
    return [torch.load(folder / str(rank) / "seen.pt") for rank in range(2)]


def test_both_ranks_run_the_same_collectives_in_the_same_order(ranks):
    assert ranks[0]["emptiness"] == "2 per pass: 1 process without objects in steps 2; all without objects in steps 3"
    assert ranks[0]["calls"] == ranks[1]["calls"]


def test_steps_without_objects_run_the_collectives_of_all_others(ranks):
    steps, calls = [[]], ranks[0]["calls"]
    for call in calls:
        steps[-1].append(call)
        if call == ("gloo:all_reduce", [[2, NUM_CLASSES]]):  # EFL's, the last of a step
            steps.append([])
    assert len(steps) == 5
    assert steps[2] == steps[3]  # before, DDP compares the models and fills its buckets anew
    # Positives, weights and their number in two passes, gradients in two buckets, losses and norms, EFL.
    assert [name for name, _ in steps[2]].count("gloo:all_reduce") == 1 + 2 + 2 + 1 + 1


def test_gradients_are_averaged_without_a_search_for_unused_parameters(ranks):
    assert [seen["finds unused"] for seen in ranks] == [False, False]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(Path(sys.argv[1]))
