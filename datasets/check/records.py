"""Whether the fields of an annotation file are there, its ids unique, and its references resolved. T objects."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .findings import KEPT, Finding, Severity, found
from .reading import Column, Content, whole_numbers


@dataclass(frozen=True, eq=False)
class Records:
    """The content of a split's annotation file, with what several checks need. Images and classes go by position."""

    split: str
    content: Content
    image_ids: Column
    category_ids: Column
    heights: Column
    widths: Column
    file_names: list[str | None]
    class_names: list[str | None]
    owners: NDArray[np.int64]  # (T,) the image of each object, -1 if it is unknown; of several, the first with the id
    labels: NDArray[np.int64]  # (T,) the class, likewise

    @classmethod
    def of(cls, split: str, content: Content) -> "Records":
        """Resolve the references of a content."""
        images, objects = content.images, content.objects
        image_ids = whole_numbers([image.id for image in images])
        category_ids = whole_numbers([category.id for category in content.categories])
        return cls(
            split=split,
            content=content,
            image_ids=image_ids,
            category_ids=category_ids,
            heights=_sides([image.height for image in images]),
            widths=_sides([image.width for image in images]),
            file_names=[_file_name(image.file_name, image.coco_url) for image in images],
            class_names=[_text(category.name) for category in content.categories],
            owners=positions(image_ids, objects.image_ids),
            labels=positions(category_ids, objects.category_ids),
        )

    def image(self, position: int) -> str:
        """What to call an image."""
        name = self.file_names[position]
        called = (
            f"image {self.image_ids.values[position]}" if self.image_ids.usable[position] else f"images[{position}]"
        )
        return called + (f" ({name})" if name else "")

    def category(self, position: int) -> str:
        """What to call a class."""
        return self.class_names[position] or f"categories[{position}]"

    def annotation(self, position: int) -> str:
        """What to call an annotation."""
        ids = self.content.objects.ids
        return f"annotation {ids.values[position]}" if ids.usable[position] else f"annotations[{position}]"

    def rows(
        self, severity: Severity, what: str, mask: NDArray[np.bool_], called: Callable[[int], str]
    ) -> list[Finding]:
        """The finding of the records in the mask; `called` gives the name of one."""
        where = np.flatnonzero(mask)
        return found(self.split, severity, what, [called(i) for i in where[:KEPT]], len(where))


def positions(known: Column, wanted: Column) -> NDArray[np.int64]:
    """Where each wanted id is among the known ones, first; -1 for none."""
    where = np.flatnonzero(known.usable)
    ids, first = np.unique(known.values[where], return_index=True)
    if len(ids) == 0:
        return np.full(len(wanted.values), -1)
    index = np.searchsorted(ids, wanted.values).clip(max=len(ids) - 1)
    return np.where(wanted.usable & (ids[index] == wanted.values), where[first][index], -1)


def check_fields(records: Records) -> list[Finding]:
    """Fields that are missing or of another kind, without which the file is not read."""
    objects = records.content.objects
    no_file = np.array([name is None for name in records.file_names], bool)
    no_name = np.array([name is None for name in records.class_names], bool)
    not_whole, not_side = "missing or not a whole number", "missing or not a whole number above 0"
    not_flag = "is neither 0 nor 1"
    fields = [
        ("images", "'id'", not_whole, ~records.image_ids.usable, records.image),
        ("images", "'width'", not_side, ~records.widths.usable, records.image),
        ("images", "'height'", not_side, ~records.heights.usable, records.image),
        ("images", "'file_name'", "missing, and 'coco_url' too", no_file, records.image),
        ("categories", "'id'", not_whole, ~records.category_ids.usable, records.category),
        ("categories", "'name'", "missing or not a text", no_name, records.category),
        ("annotations", "'id'", not_whole, ~objects.ids.usable, records.annotation),
        ("annotations", "'image_id'", not_whole, ~objects.image_ids.usable, records.annotation),
        ("annotations", "'category_id'", not_whole, ~objects.category_ids.usable, records.annotation),
        ("annotations", "'bbox'", "missing or not four numbers", ~objects.boxes_xywh.usable, records.annotation),
        ("annotations", "'area'", "not a finite number", ~objects.areas.usable, records.annotation),
        ("annotations", "'iscrowd'", not_flag, ~objects.crowd.usable, records.annotation),
        ("annotations", "'ignore'", not_flag, ~objects.ignore.usable, records.annotation),
    ]
    empty = [key for key in ("images", "categories") if not getattr(records.content, key)]
    return [
        *found(records.split, "error", "empty lists", empty),
        *(f for key, field, what, mask, called in fields for f in records.rows("error", f"{key}: {field} {what}", mask, called)),
    ]  # fmt: skip


def check_ids(records: Records) -> list[Finding]:
    """Ids and names that several records share."""
    ids = {
        "image": records.image_ids,
        "category": records.category_ids,
        "annotation": records.content.objects.ids,
    }
    findings = []
    for kind, column in ids.items():
        findings += _repeated(records.split, "error", f"{kind} ids used more than once", column.values[column.usable])
    findings += _repeated(records.split, "warning", "file names of several images", filter(None, records.file_names))
    names = filter(None, records.class_names)
    return findings + _repeated(records.split, "warning", "category names used more than once", names)


def check_references(records: Records) -> list[Finding]:
    """Annotations of images and categories that the file does not list."""
    objects, findings = records.content.objects, []
    for kind, plural, known, wanted, place in (
        ("image", "images", records.image_ids, objects.image_ids, records.owners),
        ("category", "categories", records.category_ids, objects.category_ids, records.labels),
    ):
        if not known.usable.any():
            continue  # told already, and all would be unknown
        findings += records.rows(
            "error", f"annotations of unknown {plural}", wanted.usable & (place < 0),
            lambda i, kind=kind, wanted=wanted: f"{records.annotation(i)} ({kind}_id {wanted.values[i]})",
        )  # fmt: skip
    return findings


def _repeated(split: str, severity: Severity, what: str, values: NDArray | Iterable[Hashable]) -> list[Finding]:
    if isinstance(values, np.ndarray):
        unique, counts = (array.tolist() for array in np.unique(values, return_counts=True))
        times = dict(zip(unique, counts, strict=True))
    else:
        times = Counter(values)
    return found(split, severity, what, [f"{value} ({n} times)" for value, n in times.items() if n > 1])


def _sides(values: list) -> Column:
    column = whole_numbers(values)
    return Column(column.values, column.usable & (column.values >= 1) & (column.values < 2**31))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _file_name(file_name: Any, coco_url: Any) -> str | None:
    """As `read_annotations` names it."""
    return _text(file_name) or "/".join((_text(coco_url) or "").split("/")[-2:]) or None
