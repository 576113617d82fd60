"""tools/equality.py in float64, over steps of which a process, or all of them, have no object."""

from itertools import product
from pathlib import Path

import pytest

from longshot.tools.checks.equality import TOLERANCES
from longshot.tools.checks.equality_cases import CASES

TOOL = Path(__file__).resolve().parents[2] / "tools" / "equality.py"
OPTIONS = ["--device", "cpu", "--precision", "float64", "--steps"]
IN_ONE_PASS = ("improved baseline", "generalized focal")


def rows(text):
    """(case, images per pass) -> differences of losses, sums, g, weights."""
    lines = [line for line in text.splitlines() if line.startswith(tuple(CASES))]
    return {(line[:30].strip(), int(line[30:38])): [float(cell) for cell in line[38:].split()] for line in lines}


def divisions(passes):
    return {(case, n) for case, n in product(CASES, passes) if n == passes[0] or not case.startswith(IN_ONE_PASS)}


def assert_equal(text, passes):
    found = rows(text)
    assert found.keys() == divisions(passes)
    assert max(map(max, found.values())) < 1e-6
    assert f"0 of {len(found)} rows differ by more than 1e-05 in float64" in text.splitlines()


def test_two_processes_come_to_the_same_as_one(start, tmp_path):
    done = start("equality", *OPTIONS, 5, "--processes", 2, cwd=tmp_path)
    assert done.code == 0, (done.out, done.err)
    assert_equal(done.out, passes=[4, 2, 1])
    assert "4 per pass: 1 process without objects in steps 2; all without objects in steps 3" in done.out.splitlines()


def test_four_processes_that_torchrun_has_started_come_to_the_same_as_one(run_processes):
    ended = run_processes(4, TOOL, *OPTIONS, 5)
    assert ended.codes == [0] * 4, ended.output
    assert_equal(ended.output[0], passes=[2, 1])
    empty = [
        f"{who} without objects in steps {step}" for who, step in (("1 process", 4), ("3 processes", 2), ("all", 3))
    ]
    assert f"2 per pass: {'; '.join(empty)}" in ended.output[0].splitlines()
    assert not any(map(rows, ended.output[1:]))


@pytest.fixture
def under_torchrun(monkeypatch, free_port):
    """This process is the only one that torchrun has started."""
    here = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in here.items():
        monkeypatch.setenv(name, str(value))


def test_several_passes_come_to_the_same_as_one(call, under_torchrun, tmp_path):
    done = call("equality", *OPTIONS, 3, cwd=tmp_path)
    assert done.code == 0
    assert_equal(done.out, passes=[8, 4, 2, 1])


def test_a_difference_ends_in_an_exit_code(call, under_torchrun, monkeypatch, tmp_path):
    monkeypatch.setitem(TOLERANCES, "float64", 1e-20)
    done = call("equality", *OPTIONS, 1, cwd=tmp_path)
    assert done.code == 1
    assert f"{'focal, gn':30}{8:>8}" + " " * 3 + f"{0:>9}" * 4 in done.out.splitlines()
    assert done.out.count("DIFFERS") > 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--processes", 2, 3], "--batch-size: 8 is not divisible by each of [2, 3] processes"),
        (["--processes", 0], "--steps, --batch-size, --processes: expected at least 1"),
        (["--steps", 0], "--steps, --batch-size, --processes: expected at least 1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(call, tmp_path, arguments, told):
    done = call("equality", *arguments, cwd=tmp_path)
    assert done.code == 2
    assert told in done.err
