"""What the sections of a configuration are made of: keys that are the parameters of a class, alternatives by name."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..errors import ConfigError, brief
from .yaml_files import as_json, suggestion

# With upper limits far beyond what makes sense: a slip of the keyboard shall be refused, rather than fill the memory.
Positive = Annotated[int, Field(gt=0, lt=2**31)]
NotNegative = Annotated[int, Field(ge=0, lt=2**31)]
Images = Annotated[int, Field(gt=0, le=2**16)]  # in a batch
Side = Annotated[int, Field(gt=0, le=2**13)]  # pixels, of an image
Channels = Annotated[int, Field(gt=0, le=2**12)]
Strides = Annotated[float, Field(ge=1e-3, le=1e3)]  # what sides of anchors are multiplied from
Fraction = Annotated[float, Field(ge=0, le=1)]
AboveZero = Annotated[float, Field(gt=0, le=1e9)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, str_max_length=1000, protected_namespaces=()
    )

    def options(self) -> dict[str, Any]:
        """The values as keyword arguments, without the `name` which chose whom they are for."""
        return {key: getattr(self, key) for key in type(self).model_fields if key != "name"}

    def with_one_of(self, usual: str, other: str) -> Self:
        """The section with one of two keys set: the default of `usual` gives way to `other`. Raises ValueError for both."""
        if getattr(self, other) is None:
            if getattr(self, usual) is None:
                raise ValueError(f"needs {usual} or {other}; both are null")
            return self
        if usual in self.model_fields_set and getattr(self, usual) is not None:
            raise ValueError(f"{usual} and {other} are both set; set one of them to null")
        return self.model_copy(update={usual: None})


def section_of(title: str, target: Callable, *, set_by_program: tuple[str, ...] = (), **extra: Any) -> type[Section]:
    """A section whose keys are the keyword-only parameters of `target`, plus `extra` ones."""
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    fields = dict(extra)
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in set_by_program:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    return create_model(title, __base__=Section, **fields)


def sections_of(table: Mapping[str, Callable], *, set_by_program: tuple[str, ...] = ()) -> dict[str, type[Section]]:
    """A section for each entry of a table, with the entry's key as its `name`."""
    return {
        name: section_of(f"{name} options", target, set_by_program=set_by_program, name=(Literal[name], name))
        for name, target in table.items()
    }


def one_of(sections: Mapping[str, type[Section]]) -> Any:
    return Annotated[reduce(or_, sections.values()), Field(discriminator="name")]


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
