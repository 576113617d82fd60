"""tools -> detector -> {losses, datasets}, and nobody the other way round."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("losses", "datasets", "detector", "tools")
FORBIDDEN = {
    "losses": ("datasets", "detector", "tools"),
    "datasets": ("losses", "detector", "tools"),
    "detector": ("tools",),
    "detector.model": ("detector.training", "detector.evaluation", "detector.config", "detector.distributed"),
    "tools": (),
}


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Absolute names of all that `source`, a module inside `package`, imports; `from a import b` yields a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_inside(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def broken_imports(source: str, package: str) -> list[str]:
    forbidden = [name for inside, names in FORBIDDEN.items() if is_inside(package, inside) for name in names]
    return [
        module for module in imported_modules(source, package) if any(is_inside(module, name) for name in forbidden)
    ]


def modules(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{ROOT / package} holds no module: has it moved?"
    return files


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_keep_the_arrows(package):
    for path in modules(package):
        inside = ".".join(path.parent.relative_to(ROOT).parts)
        broken = broken_imports(path.read_text(encoding="utf-8"), inside)
        assert not broken, f"{path.relative_to(ROOT)} imports {broken[0]}: not allowed inside {inside}"


def test_losses_need_torch_alone():
    for path in modules("losses"):
        for module in imported_modules(path.read_text(encoding="utf-8"), "losses"):
            top = module.split(".")[0]
            assert top in {"torch", "losses", *sys.stdlib_module_names}, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("import datasets", "losses"),
        ("from datasets.annotations import read", "losses"),
        ("def f():\n    import detector.model as m", "datasets"),
        ("from tools import train", "detector"),
        ("from ..training import matching", "detector.model"),
        ("from ..training.matching import assign", "detector.model"),
        ("from .. import config", "detector.model"),
        ("from detector import distributed", "detector.model"),
    ],
)
def test_rule_sees_every_form_of_import(source, package):
    assert broken_imports(source, package)


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from .labels import IGNORE", "losses"),
        ("from losses import IGNORE", "detector.training"),
        ("from ..model.boxes import encode", "detector.training"),
        ("from . import configuration, boxes", "detector.model"),
        ("from detector.model import boxes", "detector.model"),
        ("import dataset_tools, lossess", "losses"),
    ],
)
def test_rule_lets_allowed_imports_pass(source, package):
    assert not broken_imports(source, package)
