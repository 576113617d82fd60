"""Spoiled inputs of every kind: each is read right or refused clearly. `tests/fuzz/fuzz.py` tries more of them."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from longshot.tools.benchmarks import memory

KINDS = (
    "annotations", "caches", "results.json", "results.npz", "checkpoints", "configs", "overrides", "images", "foreign"
)  # fmt: skip
FUZZ = Path(__file__).with_name("fuzz.py")

pytestmark = pytest.mark.skipif(not memory.is_measurable(), reason="memory cannot be measured here")


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """The outcomes by kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    done = run("--out", folder / "outcomes.json", "--now", folder / "now")
    now = folder / "now"
    assert (folder / "outcomes.json").exists(), f"died of {now.exists() and now.read_text()}: {done.stderr[-3000:]}"
    print(done.stdout)
    outcomes = json.loads((folder / "outcomes.json").read_text())
    return {kind: [outcome for outcome in outcomes if outcome["kind"] == kind] for kind in KINDS}


def run(*arguments):
    # A process of its own, which a crash may end, and whose memory nothing else takes.
    command = [sys.executable, FUZZ, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_read_right_or_refused_clearly(tried, kind):
    failures = [o for o in tried[kind] if o["outcome"] == "failure"]
    told = [f"{o['kind']} --number {o['number']}: {o['what']}: {o['detail']}" for o in failures]
    assert not told, "\n\n".join([f"{len(told)} failures; each is tried again by tests/fuzz/fuzz.py", *told[:5]])


def test_there_are_enough_inputs_of_both_outcomes(tried):
    counts = {kind: Counter(outcome["outcome"] for outcome in tried[kind]) for kind in KINDS}
    assert sum(counts[kind].total() for kind in KINDS) >= 1000
    assert all(counts[kind]["right result"] >= 3 for kind in KINDS), counts
    assert all(counts[kind]["clear error"] >= 50 for kind in KINDS if kind != "caches"), counts


def test_whatever_a_reader_does_wrong_is_noticed(tmp_path):
    run("misbehaving", "--seconds", "5", "--out", tmp_path / "outcomes.json")
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert [outcome["outcome"] for outcome in outcomes] == ["right result", "clear error"] + ["failure"] * 12


def test_the_input_that_ends_the_process_is_known(tmp_path):
    done = run("misbehaving", "--number", "14", "--now", tmp_path / "now")
    assert done.returncode < 0
    assert (tmp_path / "now").read_text() == "misbehaving 14, seed 0"


def test_an_input_tried_alone_is_the_same(tried, tmp_path):
    run("results.json", "--number", "37", "--out", tmp_path / "outcomes.json")
    (alone,) = json.loads((tmp_path / "outcomes.json").read_text())
    assert alone["what"] == tried["results.json"][37]["what"]
