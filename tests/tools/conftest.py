"""The tools as users run them, and one small training run that all of their tests look at."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from longshot.detector.config.yaml_files import merge

STEPS = 40
TOOLS = Path(__file__).resolve().parents[2] / "tools"


class Done(NamedTuple):
    """How a tool ended."""

    code: int
    out: str
    err: str


class Trained(NamedTuple):
    """A run of tools/train.py on the shapes."""

    home: Path  # where it was started
    config: Path
    folder: Path  # of the run
    checkpoint: Path
    metrics: dict  # the final ones
    done: Done


@pytest.fixture(scope="session")
def start() -> Callable[..., Done]:
    """(tool, arguments, cwd) -> Done, in a process of its own, or several under torchrun."""

    def run(tool: str, *arguments: object, cwd: Path, processes: int = 1, **variables: str) -> Done:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(torchrun if processes > 1 else []), TOOLS / f"{tool}.py", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., Done]:
    """(tool, arguments, cwd) -> Done, in this process, which saves the seconds that importing torch takes."""

    def run(tool: str, *arguments: object, cwd: Path) -> Done:
        path = TOOLS / f"{tool}.py"
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        code, message = 0, ""
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:  # a text is what Python prints while it exits with code 1
            code, message = (1, f"{end.code}\n") if isinstance(end.code, str) else (end.code or 0, "")
        written = capsys.readouterr()
        return Done(code, written.out, written.err + message)

    return run


@pytest.fixture(scope="session")
def write_config(values) -> Callable[..., Path]:
    """folder -> a configuration file in it: the shapes, the default run folder, enough steps for an AP above 0."""
    tiny = {key: value for key, value in values.items() if key != "output"}
    longer = {"schedule": {"length": STEPS}, "train": {"checkpoint_every": STEPS // 2}}
    too_few_for_lvis = {"test": {"detections_per_image": 50}}

    def write(folder: Path) -> Path:
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(merge(tiny, longer | too_few_for_lvis)))
        return path

    return write


@pytest.fixture(scope="session")
def trained(tmp_path_factory, start, write_config) -> Trained:
    home = tmp_path_factory.mktemp("home")
    config, folder = write_config(home), home / "runs" / "tiny"
    done = start("train", "--config", config.name, "eval.pictures=2", "data.workers=1", cwd=home)
    assert done.code == 0, done.err
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["AP"] > 1, "tests that compare zeros would see nothing"
    return Trained(home, config, folder, folder / "checkpoints" / "step_00000040.pt", metrics, done)


@pytest.fixture
def is_error() -> Callable[..., bool]:
    """(Done, texts) -> True if the tool ended with one `error:` line that has all the texts, and no traceback."""

    def check(done: Done, *texts: str) -> bool:
        assert done.code == 1, (done.out, done.err)
        lines = [line for line in done.err.splitlines() if line and "%|" not in line]  # no progress bars
        assert len(lines) == 1, done.err
        assert lines[0].startswith("error: ")
        for text in texts:
            assert text in lines[0]
        return True

    return check
