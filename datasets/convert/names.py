"""Text files, and the lists of classes in them."""

from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError


def read_text(path: Path) -> str:
    """The content of a text file. Raises DataError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8: {error}") from error


def read_names(path: Path) -> list[str]:
    """The classes of a text file, one a line, or of `names` in a YAML file: a list, or a mapping from 0, 1, … to names.

    Raises:
        DataError: there are none, a name is empty or comes twice, or a number is left out.
    """
    names = (
        _from_yaml(path)
        if path.suffix in (".yaml", ".yml")
        else list(filter(None, map(str.strip, read_text(path).splitlines())))
    )
    if not names:
        raise DataError(f"{path}: names no class")
    if not all(isinstance(name, str) and name for name in names):
        wrong = next(name for name in names if not (isinstance(name, str) and name))
        raise DataError(f"{path}: class {wrong!r} is not a name; write it in quotes")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{path}: class {twice!r} comes twice")
    return names


def _from_yaml(path: Path) -> list[Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML: {error}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        return [names[i] for i in range(len(names))]
    if isinstance(names, list):
        return names
    raise DataError(f"{path}: expected 'names': a list of classes, or a mapping of 0, 1, … to them; found {names!r}")
