"""YAML files into plain dictionaries: one `base:` parent, `section.key=value` overrides, no silent surprises."""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, brief

# Sections whose keys depend on their `name`.
ALTERNATIVES = ("loss.classification", "loss.box", "matching.matcher")

PACKAGED = Path(__file__).resolve().parents[2] / "configs"

_ZERO = re.compile(r"(?<!\\)(\\\\)*\\u0000")  # as JSON writes it


class _Loader(yaml.SafeLoader):
    """SafeLoader which refuses a key given twice (PyYAML keeps the last) and reads 1e-4 as a number (PyYAML: a string).

    It refuses aliases too: ten lines of them can stand for a billion values. `base:` is there to share values.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            where = f"{alias.start_mark.name}, line {alias.start_mark.line + 1}"
            raise ConfigError(
                f"{where}: *{brief(alias.anchor)} repeats a value; write the value itself, or use `base:`"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            where = f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}"
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {brief(repr(key))} is not text")
            if key in seen:
                raise ConfigError(f"{where}: key {brief(repr(key))} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, where: str) -> Any:
    loader = None
    try:
        loader = _Loader(text)
        loader.name = where
        return loader.get_single_data()
    except ConfigError:
        raise
    # ValueError: a number of thousands of digits, or a 99th of January. RecursionError: thousands of lists in lists.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {brief(str(error), 600)}") from error
    finally:
        if loader:
            loader.dispose()


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file, merged over that of its `base:` file (a path relative to the file), if it names one.

    Raises ConfigError for a missing file, invalid YAML, a duplicate key, and a base that leads back to the file.
    """
    chain: list[tuple[Path, dict]] = []
    while path is not None:
        if not os.path.isfile(path):  # false also for what can be no path; Path.is_file raises OSError then
            asked_by = f" (the `base:` of {chain[-1][0]})" if chain else ""
            raise ConfigError(f"{brief(str(path))}{asked_by}: no such file")
        if path.resolve() in [seen.resolve() for seen, _ in chain]:
            raise ConfigError(f"{path}: its `base:` leads back to itself")
        try:
            values = _parse(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not a text file: {error}") from error
        if not isinstance(values, dict | None):
            raise ConfigError(f"{path}: expected a mapping of sections, found {type(values).__name__}")
        values = values or {}
        base = values.pop("base", None)
        if not isinstance(base, str | None):
            raise ConfigError(f"{path}: base: expected the path of one file, found {brief(repr(base))}")
        chain.append((path, values))
        path = path.parent / base if base is not None else None
    merged: dict[str, Any] = {}
    for _, values in reversed(chain):
        merged = merge(merged, values)
    return merged


def merge(
    base: Mapping[str, Any], over: Mapping[str, Any], *, alternatives: Sequence[str] = ALTERNATIVES, at: str = ""
) -> dict[str, Any]:
    """`base` with the values of `over` in place; mappings merge key by key.

    Args:
        alternatives: sections that start afresh under another `name`: the options of the old choice do not fit the new.
        at: path of the two mappings in the whole configuration.
    """
    merged = dict(base)
    for key, value in over.items():
        old, path = merged.get(key), f"{at}.{key}" if at else key
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        another = both and path in alternatives and value.get("name", old.get("name")) != old.get("name")
        merged[key] = merge(old, value, alternatives=alternatives, at=path) if both and not another else value
    return merged


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`values` with `section.key=value` assignments in place, in whichever order they come; values are read as YAML."""
    together: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise ConfigError(f"{brief(repr(override))}: an override has the form section.key=value")
        # Here `#` belongs to a file name: nobody writes comments on a command line.
        nested: Any = text if "#" in text else _parse(text, f"override {path}")
        for key in reversed(keys):
            nested = {key: nested}
        together = merge(together, nested, alternatives=())
    return merge(values, together)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """`section.key: old -> new` for each value in which two nested mappings differ, sorted by key.

    A key that `before` does not have, as it came later, has the value of `defaults` there.
    """
    new = _flat(now)
    old = {key: value for key, value in _flat(defaults or {}).items() if key in new} | _flat(before)
    keys = sorted(key for key in old | new if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def as_json(values: Mapping[str, Any], where: str) -> str:
    """The values as JSON. Raises ConfigError for what is no value of a configuration, such as bytes."""
    try:
        text = json.dumps(dict(values), default=_date_as_text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: holds what is no value of a configuration: {brief(str(error))}") from error
    if _ZERO.search(text):
        raise ConfigError(f"{where}: holds a text with a zero character, which is no name of a file")
    return text


def _date_as_text(value: Any) -> str:
    """YAML reads 2026-01-31 as a date; here it is the name of a folder."""
    if isinstance(value, date):
        return str(value)
    raise TypeError(f"{brief(repr(value))} of type {type(value).__name__}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'lr'?`, or the list of what is known if nothing is close."""
    known = sorted(str(entry) for entry in known)
    close = difflib.get_close_matches(str(word)[:100], known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def find_config(name: Path | str) -> Path:
    """The path of a configuration: `name` itself, if there is such a file, else the packaged configuration of that name.

    Raises ConfigError, with names that are near, if there is neither.
    """
    path = Path(name)
    if os.path.isfile(path):  # false also for what can be no path; Path.is_file raises OSError then
        return path
    known = {str(p.relative_to(PACKAGED).with_suffix("").as_posix()): p for p in sorted(PACKAGED.rglob("*.yaml"))}
    try:
        return known[str(name).removesuffix(".yaml")]
    except KeyError:
        near = suggestion(str(name).removesuffix(".yaml"), known)
        raise ConfigError(
            f"{brief(str(name))}: no such file, nor a packaged configuration of that name{near}"
        ) from None
