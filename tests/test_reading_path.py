"""How much a reader of the training path has to read: traced, not estimated."""

import re
from pathlib import Path

import pytest

from longshot.tools.checks.reading_path import quickstart_arguments, table, trace_training

README = Path(__file__).parents[1] / "README.md"
MOST_FILES, MOST_LINES = 45, 2810  # what has been reached: less is the aim, 2,500 lines first
MOST_FRAMES = 4  # of ours from main to the forward pass of the network, main included
MOST_PARAMETERS = 8


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return trace_training(quickstart_arguments(tmp_path_factory.mktemp("traced")))


def test_the_way_to_the_first_step_can_be_read(traced):
    files, above = traced
    assert len(files) <= MOST_FILES, table(files, above)
    assert sum(file.lines_ran for file in files) <= MOST_LINES, table(files, above)


def test_few_frames_with_few_parameters_stand_between_main_and_the_forward_pass(traced):
    _, above = traced
    assert [caller.name for caller in above] == ["main", "train", "optimize", "_backward"]
    assert len(above) <= MOST_FRAMES
    assert max(caller.parameters for caller in above) <= MOST_PARAMETERS, above


def test_the_readme_quotes_the_figures(traced):
    files, _ = traced
    found = re.search(r"(\d+) files, ([\d,]+) lines of functions", README.read_text(encoding="utf-8"))
    assert found, "the section Reading order quotes what `python -m longshot.tools.checks.reading_path` prints"
    assert (int(found[1]), int(found[2].replace(",", ""))) == (len(files), sum(file.lines_ran for file in files))
