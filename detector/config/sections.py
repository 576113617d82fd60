"""What the sections of a configuration are made of: keys that are the parameters of a class, alternatives by name."""

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model

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
