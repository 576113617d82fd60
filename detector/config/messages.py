"""Pydantic's validation errors in our words: where, what was found, what was expected, and what was probably meant."""

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import ConfigError, brief
from .yaml_files import as_json, suggestion

_TOLD = 10
Model = TypeVar("Model", bound=BaseModel)


class _Place(NamedTuple):
    """A place in a configuration, and what may stand there."""

    path: str  # `loss.classification.scale`
    allowed: tuple[str, ...]  # values, if they can be listed
    sections: list[type[BaseModel]]  # alternatives, if it is a section


def validated(root: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """The values as a model. Raises ConfigError with a line for each of the first mistakes, and one for how many follow."""
    # Through JSON: pydantic's strict mode then takes a list for a tuple, but still no text or boolean for a number.
    text = as_json(values, where)
    try:
        return root.model_validate_json(text)
    except ValidationError as error:
        lines = [f"{where}: {in_our_words(entry, root, values)}" for entry in error.errors()[:_TOLD]]
        more = error.error_count() - len(lines)
        raise ConfigError("\n".join([*lines, *([f"{where}: … and {more} more"] if more else [])])) from error


def in_our_words(error: Mapping[str, Any], root: type[BaseModel], values: Any) -> str:
    """One pydantic error as a line: `optimizer.lrr: unknown key; did you mean 'lr'?`.

    Args:
        error: an entry of `ValidationError.errors()`.
        root: the model that was validated against.
        values: what was validated.
    """
    place, found = _find(error["loc"], root, values), error["input"]
    names = [_name_of(section) for section in place.sections if "name" in section.model_fields]
    match error["type"]:
        case "extra_forbidden":
            (section,) = _find(error["loc"][:-1], root, values).sections
            return f"{brief(place.path)}: unknown key{suggestion(error['loc'][-1], section.model_fields)}"
        case "union_tag_invalid":
            return f"{place.path}.name: unknown choice {brief(repr(found['name']))}{suggestion(found['name'], names)}"
        case "union_tag_not_found":
            return f"{place.path}: needs a `name`; known: {', '.join(names)}"
        case "missing":
            return f"{place.path}: required, but missing"
        case "literal_error":
            return f"{place.path}: unknown value {brief(repr(found))}{suggestion(found, place.allowed)}"
        case "value_error":  # of our own validators, which say what they found
            return f"{place.path}: {error['msg'].removeprefix('Value error, ')}"
    return f"{place.path}: {error['msg']}, found {brief(repr(found))}"


def _find(location: Sequence[str | int], root: type[BaseModel], values: Any) -> _Place:
    path, sections, annotation = "", [root], None
    for part in location:
        if isinstance(values, Mapping) and part not in values and values.get("name") == part:
            continue  # pydantic's tag of the chosen alternative, no part of the user's file
        fields = sections[0].model_fields if len(sections) == 1 else {}
        annotation = fields[part].annotation if part in fields else None
        values = values.get(part) if isinstance(values, Mapping) else None
        sections = _chosen(_sections_in(annotation), values)
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return _Place(path, typing.get_args(annotation), sections)


def _chosen(sections: list[type[BaseModel]], values: Any) -> list[type[BaseModel]]:
    """The section that the `name` in `values` chooses; all of them if it chooses none."""
    name = values.get("name") if isinstance(values, Mapping) else None
    return [s for s in sections if len(sections) > 1 and _name_of(s) == name] or sections


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return [section for argument in typing.get_args(annotation) for section in _sections_in(argument)]
    return []


def _name_of(section: type[BaseModel]) -> str:
    """The `name` that chooses this section: its only allowed value."""
    return typing.get_args(section.model_fields["name"].annotation)[0]
