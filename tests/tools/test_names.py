"""`datasets` and `losses` are names of packages that people have installed; the tools must find ours."""

import sys
from pathlib import Path

import pytest

TOOLS = [
    path for path in sorted((Path(__file__).resolve().parents[2] / "tools").glob("*.py"))
    if path.stem not in ("__init__", "arguments")
]  # fmt: skip


@pytest.mark.parametrize("tool", [path.stem for path in TOOLS])
def test_tool_finds_our_packages_from_anywhere(tool, start, tmp_path):
    decoys = tmp_path / "site"
    for name in ("datasets", "losses", "detector"):
        (decoys / name).mkdir(parents=True)
        (decoys / name / "__init__.py").write_text(f"raise ImportError('the wrong {name}')")
    done = start(tool, "--help", cwd=tmp_path, PYTHONPATH=str(decoys))
    assert done.code == 0, done.err
    assert done.out.startswith("usage:")


def test_no_tool_bears_the_name_of_a_module():
    # The folder of a script is on sys.path: tools/datasets.py would be found in place of the package.
    ours = {"datasets", "detector", "losses"}
    assert not {path.stem for path in TOOLS} & (ours | set(sys.stdlib_module_names))
