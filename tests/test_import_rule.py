"""tools -> detector -> {losses, datasets}, and nobody the other way round."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("losses", "datasets", "detector", "tools")
ROOMS = tuple(
    f"detector.{path.name}" for path in sorted((ROOT / "detector").iterdir()) if (path / "__init__.py").exists()
)
MAY_IMPORT = {  # of detector's rooms; those not named here may import any but tools
    "detector.model": (),
    "detector.matching": ("detector.model",),
    "detector.system": (),
    "detector.training": ("detector.model", "detector.matching", "detector.system"),
    "detector.checkpoint": ("detector.model", "detector.system"),
    "detector.results": ("detector.system",),
    "detector.evaluation": ("detector.results", "detector.model", "detector.system"),
}
FORBIDDEN = {
    "losses": ("datasets", "detector", "tools"),
    "datasets": ("losses", "detector", "tools"),
    "detector": ("tools",),
    **{
        room: (*(other for other in ROOMS if other not in (room, *allowed)), "detector.build", "detector.build_data")
        for room, allowed in MAY_IMPORT.items()
    },
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
    """What `source`, a module inside longshot.`package`, imports of ours and may not."""
    forbidden = [
        f"longshot.{name}" for inside, names in FORBIDDEN.items() if is_inside(package, inside) for name in names
    ]
    imported = imported_modules(source, f"longshot.{package}")
    return [module for module in imported if any(is_inside(module, name) for name in forbidden)]


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
        for module in imported_modules(path.read_text(encoding="utf-8"), "longshot.losses"):
            top = module.split(".")[0]
            assert top in {"torch", "longshot", *sys.stdlib_module_names}, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("import longshot.datasets", "losses"),
        ("from ..datasets.annotations import read", "losses"),
        ("from longshot import datasets", "losses"),
        ("def f():\n    import longshot.detector.model as m", "datasets"),
        ("from longshot.tools import train", "detector"),
        ("from ...tools import train", "detector.model"),
        ("from ..training import step", "detector.model"),
        ("from ..training.step import optimize", "detector.model"),
        ("from .. import config", "detector.model"),
        ("from longshot.detector import system", "detector.model"),
        ("from ..run.log import RunLog", "detector.training"),
        ("from ..build import build_run", "detector.training"),
    ],
)
def test_rule_sees_every_form_of_import(source, package):
    assert broken_imports(source, package)


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from .dense import IGNORE", "losses"),
        ("from ...losses import IGNORE", "detector.training"),
        ("from longshot.losses import IGNORE", "detector.training"),
        ("from ..model.boxes import encode", "detector.training"),
        ("from . import configuration, boxes", "detector.model"),
        ("from longshot.detector.model import boxes", "detector.model"),
        ("import dataset_tools, lossess", "losses"),
        ("import datasets", "losses"),  # somebody else's
    ],
)
def test_rule_lets_allowed_imports_pass(source, package):
    assert not broken_imports(source, package)
