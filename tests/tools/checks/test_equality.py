"""What tools/equality.py compares, and that it tells of processes which forget to ask each other."""

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longshot.detector.system.distributed import Process, process_group
from longshot.detector.training import criterion
from longshot.detector.training import step as engine
from longshot.losses import stepwise
from longshot.tools.checks import equality
from longshot.tools.checks.equality import TOLERANCES, Difference, Row, Trace, difference, line, take_steps
from longshot.tools.checks.equality_cases import make_data

# What is not summed over processes: module, attribute and what stands there instead; case; columns that tell of it.
FORGOTTEN = {
    "positives": (engine, "all_sum", lambda tensor: tensor, "focal, gn", ["losses", "weights"]),
    "weights of boxes": (criterion, "all_sum", lambda tensor: tensor, "improved baseline, gn", ["losses", "weights"]),
    "gradients": (equality, "parallel", lambda network, process: network, "focal, frozen_bn", ["losses", "weights"]),
    "EFL's state": (
        stepwise, "dist", SimpleNamespace(is_available=lambda: False), "equalized_focal, gn",
        ["losses", "sums", "g", "weights"],
    ),
}  # fmt: skip


def run_rank(folder):
    """One of two processes, each of which compares its five steps with those of one that is alone."""
    data, found, alone = make_data(folder, steps=5, batch_size=8), {}, Process(0, 1, torch.device("cpu"))
    traces = {
        (name, precision): take_steps(case, data, alone, images_per_pass=8, precision=precision)
        for name, (*_, case, _) in FORGOTTEN.items()
        for precision in TOLERANCES
    }  # fmt: skip
    with process_group("cpu") as process:
        for (name, precision), trace in traces.items():
            module, attribute, instead, case, _ = FORGOTTEN[name]
            right = getattr(module, attribute)
            setattr(module, attribute, instead)
            ours = take_steps(case, data, process, images_per_pass=4, precision=precision)
            setattr(module, attribute, right)
            found[f"{name}, {precision}"] = difference(ours, trace)
        if process.rank == 1:
            equality.difference = lambda ours, theirs: Difference(0.0, 0.0, 0.0, 9.0)
        expected = {("focal, gn", "float64"): traces["positives", "float64"]}
        found["rank 1 alone"] = next(equality.compare(expected, data, ["float64"], process)).differences["float64"]
    (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def forgetful(run_processes, tmp_path_factory):
    """By what is forgotten and precision: how one of two processes differs from one that is alone."""
    folder = tmp_path_factory.mktemp("forgetful")
    ended = run_processes(2, __file__, folder)
    assert ended.codes == [0, 0], ended.output
    found = json.loads((folder / "0" / "found.json").read_text())
    return {name: Difference(*numbers) for name, numbers in found.items()}


@pytest.mark.parametrize("name", FORGOTTEN)
def test_float64_tells_of_a_sum_over_processes_that_is_left_out(forgetful, name):
    told = forgetful[f"{name}, float64"]
    for column in FORGOTTEN[name][-1]:
        assert getattr(told, column) > 100 * TOLERANCES["float64"], column


@pytest.mark.parametrize("name", sorted(FORGOTTEN.keys() - {"weights of boxes"}))  # that is a matter of a thousandth
def test_float32_tells_of_it_where_it_is_no_subtle_matter(forgetful, name):
    told = forgetful[f"{name}, float32"]
    for column in FORGOTTEN[name][-1]:
        assert getattr(told, column) > 10 * TOLERANCES["float32"], column


def test_the_rank_that_differs_most_is_told(forgetful):
    told = forgetful["rank 1 alone"]
    assert told.weights == 9
    assert 0 < told.losses < 1e-6


def test_what_is_compared_has_a_g_of_its_own_for_several_classes_and_objects_of_any_size(tmp_path):
    data = make_data(tmp_path, steps=5, batch_size=8)
    alone = Process(0, 1, torch.device("cpu"))
    ratio = take_steps("equalized_focal, frozen_bn", data, alone, images_per_pass=8, precision="float64").ratio[-1]
    assert len(ratio[(ratio > 0) & (ratio < 1)].unique()) >= 3
    boxes = data.dataset.annotations.boxes_xywh
    assert boxes[:, 2:].min() <= 3
    sizes = data.dataset.sizes[data.dataset.annotations.object_images]
    assert (boxes[:, [3, 2]] == sizes).all(axis=1).any()


def trace(**changes):
    numbers = torch.tensor([[4.0, 0.0], [2.0, 1.0]])
    sums = torch.tensor([[[2.0, 1.0], [4.0, 8.0]]])
    return Trace(numbers, sums, sums[:, 0] / sums[:, 1], torch.tensor([1.0, 3.0]), torch.tensor([0.5, -2.0]))._replace(
        **changes
    )


def test_differences_are_relative_but_for_g():
    other = trace(
        numbers=torch.tensor([[4.0, 0.0], [1.5, 1.0]]), sums=torch.tensor([[[2.0, 1.0], [4.0, 9.0]]]),
        ratio=torch.tensor([[0.5, 0.375]]), weights=torch.tensor([1.0, 2.0]),
    )  # fmt: skip
    assert difference(other, trace()) == Difference(losses=0.25, sums=0.125, g=0.25, weights=0.5)
    assert difference(trace(), trace()) == Difference(0.0, 0.0, 0.0, 0.0)


def test_a_row_beyond_the_tolerance_is_marked_and_so_is_nan():
    within, beyond = Difference(1e-6, 0.0, 0.0, 1e-5), Difference(1e-6, 0.0, 2e-5, 0.0)
    assert line(Row("focal, gn", 4, {"float64": within})).split() == [
        "focal,",
        "gn",
        "4",
        "1.0e-06",
        "0",
        "0",
        "1.0e-05",
    ]
    for difference_ in (beyond, Difference(math.nan, 0.0, 0.0, 0.0)):
        assert line(Row("focal, gn", 4, {"float32": within, "float64": difference_})).endswith("DIFFERS")
    assert Row("focal, gn", 4, {"float32": beyond}).is_equal


if __name__ == "__main__":
    torch.set_num_threads(1)
    own = Path(sys.argv[1]) / os.environ["RANK"]
    own.mkdir()
    run_rank(own)
