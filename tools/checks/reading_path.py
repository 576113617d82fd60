"""What runs from `main` to the first optimizer step: the functions that a reader of the training path has to read.

    python -m longshot.tools.checks.reading_path

draws a small quickstart dataset and reads it once; then it traces `longshot train --config quickstart` with focal loss and no
workers, and prints, in the order in which they are entered, the files of ours in which a function ran, and how many lines
these functions have, docstrings included. What runs when modules are imported does not count, nor do lambdas and
comprehensions by themselves.
"""

import ast
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "data.generate.categories=10",
    "data.generate.train_images=40",
    "data.generate.val_images=20",
    "data.workers=0",
)


class FileRan(NamedTuple):
    """A file in which functions ran."""

    name: str  # relative to the checkout
    lines: int  # of the file
    lines_ran: int  # of the functions that ran, docstrings included
    functions: int


class Caller(NamedTuple):
    """A function on the way from `main` to the forward pass of the network."""

    name: str
    parameters: int


class _FirstStep(Exception):
    """The optimizer is about to take its first step."""


def trace_training(arguments: list[str]) -> tuple[list[FileRan], list[Caller]]:
    """The files that ran, and the functions of ours that stand between `main` and the first forward pass of the network."""
    import torch

    from longshot.detector.model.retinanet import RetinaNet
    from longshot.tools import train

    seen: dict[CodeType, None] = {}
    above: list[Caller] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and _is_ours(frame.f_code):
            seen.setdefault(frame.f_code)
            if frame.f_code is RetinaNet.forward.__code__ and not above:
                above.extend(_callers(frame))

    def stop(*_: object, **__: object) -> None:
        raise _FirstStep

    before, sys.argv = sys.argv, ["train.py", *arguments]
    steps = {optimizer: optimizer.step for optimizer in (torch.optim.SGD, torch.optim.AdamW)}
    for optimizer in steps:
        optimizer.step = stop
    try:
        _profiled(train.main, watch)
    except _FirstStep:
        pass
    finally:
        sys.argv = before
        for optimizer, step in steps.items():
            optimizer.step = step
    return _by_file(seen), above


def _profiled(call: Callable[[], None], watch: Callable) -> None:
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _is_ours(code: CodeType) -> bool:
    top = code.co_filename.removeprefix(f"{ROOT}/").split("/")[0]
    return top in ("losses", "datasets", "detector", "tools") and not code.co_name.startswith("<")


def _callers(frame: FrameType) -> list[Caller]:
    """The functions of ours above a frame, from `main` on."""
    found = []
    while (frame := frame.f_back) is not None:
        if _is_ours(frame.f_code) and frame.f_globals["__name__"] != __name__:
            found.append(Caller(frame.f_code.co_qualname, frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount))
    return found[::-1]


def _by_file(seen: dict[CodeType, None]) -> list[FileRan]:
    of_files: dict[str, list[CodeType]] = {}
    for code in seen:
        if code.co_filename != __file__:
            of_files.setdefault(code.co_filename, []).append(code)
    ran = []
    for name, codes in of_files.items():
        text = Path(name).read_text(encoding="utf-8")
        spans = _spans(text)
        codes = [code for code in codes if code.co_firstlineno in spans]
        if codes:
            lines = sum({code.co_firstlineno: spans[code.co_firstlineno] for code in codes}.values())
            ran.append(FileRan(str(Path(name).relative_to(ROOT)), text.count("\n"), lines, len(codes)))
    return ran


def _spans(text: str) -> dict[int, int]:
    """First line, a decorator's if there is one, and number of lines of each function."""
    spans = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            spans[first] = node.end_lineno - first + 1
    return spans


def quickstart_arguments(folder: Path) -> list[str]:
    """Of the traced run; its dataset is drawn, and its annotations read once, before this returns."""
    from longshot.detector.build_data import build_data
    from longshot.detector.config.schema import load_config
    from longshot.detector.system.distributed import process_group

    overrides = [
        *SMALL,
        "loss.classification.name=focal",
        f"output={folder / 'run'}",
        f"data.generate.folder={folder / 'data'}",
    ]
    config = ROOT / "configs" / "quickstart.yaml"
    with process_group("cpu") as process:
        for _ in range(2):
            build_data(load_config(config, overrides), process)
    return ["--config", str(config), "device=cpu", *overrides]


def table(files: list[FileRan], above: list[Caller]) -> str:
    """What a reader has to read, for people."""
    rows = [
        f"{file.lines_ran:5d} of {file.lines:4d} lines in {file.functions:2d} functions  {file.name}" for file in files
    ]
    total = f"{len(files)} files, {sum(file.lines_ran for file in files):,} lines of functions that ran"
    return "\n".join(
        [*rows, total, f"from main to the network's forward: {' > '.join(caller.name for caller in above)}"]
    )


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        print(table(*trace_training(quickstart_arguments(Path(folder)))))


if __name__ == "__main__":
    main()
