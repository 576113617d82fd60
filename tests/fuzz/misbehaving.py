"""Readers that do all that readers must not, to see that the suite notices."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case

from longshot.datasets import DataError


class Misbehaving:
    """A reader for each kind of failure, after two that are as they should be."""

    inputs = 14

    def __init__(self, folder: Path):
        self.folder, self.path, self.neighbor = folder, folder / "input", folder / "neighbor"

    def case(self, number: int, rng: random.Random) -> Case:
        """The readers in turn."""
        self.path.write_bytes(b"input")
        self.neighbor.write_bytes(b"neighbor")
        what, read = self._readers()[number]
        return Case(what, self.path, read, _is_right)

    def _readers(self) -> list[tuple[str, Callable[[], Any]]]:
        return [
            ("right", lambda: "right"),
            ("refuses clearly", lambda: _raise(DataError(f"{self.path}: empty"))),
            ("raises KeyError", lambda: {}["key"]),
            ("raises a plain ValueError", lambda: _raise(ValueError(f"{self.path}: empty"))),
            ("does not name the file", lambda: _raise(DataError("empty"))),
            ("talks too much", lambda: _raise(DataError(f"{self.path}: {'x' * 4000}"))),
            ("believes it", lambda: "wrong"),
            ("hangs", _hang),
            ("fills the memory", lambda: str(np.ones(1100 * 2**17)[:0])),  # 1,100 MiB
            ("asks for more memory than there is", lambda: np.ones(2**40)),
            ("changes the file", lambda: self.path.write_bytes(b"other")),
            ("leaves a file", lambda: (self.folder / "left").write_bytes(b"")),
            ("removes another file", self.neighbor.unlink),
            ("ends the program", lambda: _raise(SystemExit(2))),
            ("crashes", os.abort),
        ]


def _is_right(result: Any) -> None:
    assert result != "wrong", "something wrong"


def _raise(error: BaseException) -> None:
    raise error


def _hang() -> None:
    while True:
        pass
