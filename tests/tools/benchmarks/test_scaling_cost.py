from multiprocessing import Pipe

import pytest

from longshot.detector.build import build_network
from longshot.tools.benchmarks import scaling
from longshot.tools.benchmarks.scaling import INDEPENDENT, ONE, TOGETHER, Scaling, Seconds

MEASURED = Scaling(
    {ONE: Seconds(0.1, 0.1), INDEPENDENT: Seconds(0.125, 0.2), TOGETHER: Seconds(0.16, 0.25)}, sent=3 * 2**20
)


def test_efficiency_is_against_two_independent_processes():
    assert scaling.findings(MEASURED).splitlines() == [
        "efficiency of two processes in one run, against two independent ones: 0.781 by the clock, 0.800 by CPU time",
        "each process sends 3.00 MB per step",
    ]


def test_rates_count_the_images_of_all_processes():
    rows = {
        line[:26].strip(): [float(cell) for cell in line[26:].split()]
        for line in scaling.table(MEASURED).splitlines()[1:]
    }
    images = scaling.NUM_IMAGES
    assert rows[ONE] == [0.1, pytest.approx(images / 0.1), 1.0, 0.1]
    assert rows[INDEPENDENT] == [0.125, pytest.approx(2 * images / 0.125), 1.6, 0.2]
    assert rows[TOGETHER] == [0.16, pytest.approx(2 * images / 0.16), 1.25, 0.25]


def test_step_lasts_as_long_as_the_slowest_and_costs_what_all_cost():
    ours, theirs = zip(*(Pipe() for _ in range(2)), strict=True)
    for pipe, taken in zip(theirs, [(0.5, 0.25), (0.75, 0.5)], strict=True):
        pipe.send(taken)
    assert scaling._steps(ours, 3) == Seconds(0.75, 0.75)
    assert [pipe.recv() for pipe in theirs] == [3, 3]


def test_dead_process_is_an_error():
    ours, theirs = Pipe()
    theirs.close()
    with pytest.raises(RuntimeError, match="a process that was to be timed has died"):
        scaling._steps([ours], 1)


def test_all_ways_are_timed_and_gradients_are_nearly_all_that_is_sent():
    measured = scaling.measure(steps=1, repeats=1)
    assert set(measured.seconds) == {ONE, INDEPENDENT, TOGETHER}
    assert all(seconds.clock > 0 and seconds.processor > 0 for seconds in measured.seconds.values())
    network = build_network(scaling._config().model, scaling.NUM_CLASSES)
    gradients = sum(parameter.nbytes for parameter in network.parameters())
    assert gradients < measured.sent < 1.001 * gradients  # of two processes, each sends all of them once
