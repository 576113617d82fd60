"""YAML files into plain dictionaries: one `base:` parent, `section.key=value` overrides, no silent surprises."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

# Sections whose keys depend on their `name`.
ALTERNATIVES = ("loss.classification", "loss.box", "matching.matcher")


class ConfigError(ValueError):
    """A configuration says something that the program does not understand."""


@contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Tell which part of the configuration the ValueError of a constructor is about."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader which refuses a key given twice (PyYAML keeps the last) and reads 1e-4 as a number (PyYAML: a string)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            where = f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}"
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is not text")
            if key in seen:
                raise ConfigError(f"{where}: key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, where: str) -> Any:
    loader = _Loader(text)
    loader.name = where
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file, merged over that of its `base:` file (a path relative to the file), if it names one.

    Raises ConfigError for a missing file, invalid YAML, a duplicate key, and a base that leads back to the file.
    """
    chain: list[tuple[Path, dict]] = []
    while path is not None:
        if path.resolve() in [seen.resolve() for seen, _ in chain]:
            raise ConfigError(f"{path}: its `base:` leads back to itself")
        if not path.is_file():
            asked_by = f" (the `base:` of {chain[-1][0]})" if chain else ""
            raise ConfigError(f"{path}{asked_by}: no such file")
        try:
            values = _parse(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not a text file: {error}") from error
        if not isinstance(values, dict | None):
            raise ConfigError(f"{path}: expected a mapping of sections, found {type(values).__name__}")
        values = values or {}
        base = values.pop("base", None)
        if not isinstance(base, str | None):
            raise ConfigError(f"{path}: base: expected the path of one file, found {base!r}")
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
            raise ConfigError(f"{override!r}: an override has the form section.key=value")
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


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'lr'?`, or the list of what is known if nothing is close."""
    known = sorted(str(entry) for entry in known)
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
