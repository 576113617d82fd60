"""The package `longshot`: what a wheel holds, what importing costs, and that nothing is needed which only POSIX has."""

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from longshot.detector.config.schema import load_config
from longshot.detector.conversion.exporting import FORMATS
from longshot.detector.conversion.importing import SOURCES
from longshot.detector.errors import ConfigError
from longshot.tools import bench, convert, equality
from longshot.tools.checks.equality import TOLERANCES
from longshot.tools.main import COMMANDS

ROOT = Path(__file__).parents[1]
FOLDERS = ("losses", "datasets", "detector", "tools")
TOOLS = sorted(module for _, module, _ in COMMANDS)


def python(code, *arguments, cwd=None, **variables):
    """What a fresh Python printed that ran the code."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | variables, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_with_modules_is_in_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for top in FOLDERS for path in (ROOT / top).rglob("*.py")}
    expected = {".".join(("longshot", *folder.parts)) for folder in folders} | {"longshot.configs"}
    assert set(settings["packages"]) == expected


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel built from a copy of the sources."""
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools of the build system")
    source, out = tmp_path_factory.mktemp("source") / "longshot", tmp_path_factory.mktemp("wheel")
    for name in (*FOLDERS, "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    python("import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])", out, cwd=source)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_a_wheel_holds_longshot_alone_with_its_configurations(wheel):
    inside = {name for name in wheel if ".dist-info/" not in name}
    ours = {path for top in FOLDERS for path in (ROOT / top).rglob("*.py")} | set((ROOT / "configs").rglob("*.yaml"))
    assert inside == {f"longshot/{path.relative_to(ROOT).as_posix()}" for path in ours}


def test_losses_are_imported_beside_a_foreign_package_called_datasets(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("theirs = True")
    code = (
        "import datasets; from longshot.losses import EqualizedFocalLoss; import longshot.datasets, longshot.detector\n"
        "assert datasets.theirs and longshot.datasets is not datasets; print(EqualizedFocalLoss(3).num_classes)"
    )
    assert python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path)) == "3\n"


# ------------------------------------------------------------------------------------------------------------- commands


def test_each_tool_is_a_command_with_a_line_of_its_own():
    out = python("import sys; from longshot.tools.main import main; sys.argv = ['longshot', '--help']; main()")
    for name, module, _ in COMMANDS:
        assert f"\n  {name} " in out
        assert (ROOT / "tools" / f"{module}.py").exists()
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"__init__", "main", "arguments"}
    assert tools == {module for _, module, _ in COMMANDS}


def test_an_unknown_command_names_the_known_ones(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["longshot", "trian"])
    with pytest.raises(SystemExit, match="there is no command 'trian'; known: train, eval"):
        importlib.import_module("longshot.tools.main").main()


@pytest.mark.parametrize("tool", ["main", *TOOLS])
def test_help_loads_neither_torch_nor_numpy(tool):
    code = f"""
import sys
from longshot.tools.{tool} import main
sys.argv = ["longshot", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
loaded = {{"torch", "torchvision", "numpy"}} & set(sys.modules)
assert not loaded, loaded
"""
    assert python(code).startswith("usage:")


def test_choices_that_are_written_down_are_those_there_are():
    assert set(convert.SOURCES) == set(SOURCES)
    assert convert.FORMATS == FORMATS
    assert set(equality.PRECISIONS) == set(TOLERANCES)
    assert bench.DTYPES == ("float32", "bfloat16", "float16")


# -------------------------------------------------------------------------------------------------------- configurations


def test_a_packaged_configuration_goes_by_its_name_and_a_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = load_config("quickstart")
    assert packaged == load_config(ROOT / "configs" / "quickstart.yaml") == load_config("quickstart.yaml")
    assert packaged.output == "runs/quickstart"
    assert load_config("lvis/retinanet_r50_efl_2x").loss.classification.name == "equalized_focal"
    (tmp_path / "quickstart").write_text("seed: 7")
    assert load_config("quickstart").seed == 7


def test_a_name_that_is_none_suggests_another():
    with pytest.raises(ConfigError, match=r"^quikstart: no such file, .*did you mean 'quickstart'"):
        load_config("quikstart")


# ---------------------------------------------------------------------------------------------------------- without POSIX

WITHOUT_POSIX = """
import os, signal, sys
for owner, names in (
    (signal, ("SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGKILL", "SIGBUS")),
    (os, ("EX_TEMPFAIL", "posix_fadvise", "fork", "getuid", "setsid", "killpg")),
):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
"""


def test_tools_need_nothing_that_only_posix_has():
    code = f"""{WITHOUT_POSIX}
import importlib
for tool in {TOOLS}:
    sys.argv = [tool, "--help"]
    try:
        importlib.import_module(f"longshot.tools.{{tool}}").main()
    except SystemExit as end:
        assert not end.code, tool
"""
    assert python(code).count("usage:") == len(TOOLS)


def test_training_needs_nothing_that_only_posix_has(values, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if k != "output"}))
    code = f"""{WITHOUT_POSIX}
from longshot.tools.train import main
sys.argv = ["train", "--config", "tiny.yaml", "schedule.length=2", "output=run"]
main()
"""
    assert "curves and pictures: tensorboard --logdir run" in python(code, cwd=tmp_path, OMP_NUM_THREADS="1")


def test_scoring_saved_detections_loads_no_torch(shapes, tmp_path):
    results = tmp_path / "none.json"
    results.write_text("[]")
    code = """
import sys
from longshot.tools.eval import main
annotations, results, report = sys.argv[1:]
sys.argv = ["eval", "--annotations", annotations, "--results", results, "--report", report, "--fixed-ap"]
main()
loaded = {"torch", "torchvision"} & set(sys.modules)
assert not loaded, loaded
"""
    assert "AP50" in python(code, shapes.val, results, tmp_path / "report")
    assert (tmp_path / "report" / "report.html").exists()
