"""The classes of a model: what its labels mean."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .annotations.annotations import Annotations, frequency_groups
from .errors import DataError


class Classes(NamedTuple):
    """K classes; label k is class k of each list. Plain values, since checkpoints hold it."""

    ids: list[int]  # category ids of the annotation files, ascending
    names: list[str]
    frequencies: list[str] | None  # "r", "c" or "f", by the training set; None where nobody knows
    train_images: list[int] | None  # number of training images that hold the class; None likewise

    @classmethod
    def from_annotations(cls, train: Annotations, *, rare: int = 10, common: int = 100) -> "Classes":
        """The classes of a training set; `rare` and `common` group them if the file does not (see `frequency_groups`)."""
        counts = train.image_counts
        groups = train.frequencies or frequency_groups(counts, rare=rare, common=common)
        return cls(train.category_ids.tolist(), list(train.class_names), list(groups), counts.tolist())

    @classmethod
    def of_file(cls, annotations: Annotations) -> "Classes":
        """The classes of a file that need not be a training set: frequencies as it states them, training images unknown."""
        groups = None if annotations.frequencies is None else list(annotations.frequencies)
        return cls(annotations.category_ids.tolist(), list(annotations.class_names), groups, None)

    def by_falling_count(self) -> list[int]:
        """The labels (K,) from the class with most training images to that with fewest."""
        return sorted(range(len(self.ids)), key=lambda k: -self.train_images[k])

    def check_same(self, ids: Sequence[int], names: Sequence[str], *, here: str, there: str) -> None:
        """Raise DataError, naming the first differences, if other classes are not these.

        Args:
            here: what to call the place of these classes, such as "the training set".
            there: the place of the others.
        """
        ours, theirs = _by_id(self.ids, self.names), _by_id(ids, names)
        if ours != theirs:
            raise DataError(_differences(ours, theirs, here, there))


def _differences(ours: dict[int, str], theirs: dict[int, str], here: str, there: str) -> str:
    differing = [i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i)]
    shown = "; ".join(f"id {i}: {_quoted(ours, i)} here, {_quoted(theirs, i)} there" for i in differing[:5])
    return (
        f"{here} has {len(ours)} classes, {there} has {len(theirs)}; {len(differing)} differ: {shown}"
        f"{'; …' if len(differing) > 5 else ''}. A label would mean different things: use files with the same categories"
    )


def _by_id(ids: Sequence[int], names: Sequence[str]) -> dict[int, str]:
    return {int(i): name for i, name in zip(ids, names, strict=True)}


def _quoted(names: Mapping[int, str], category_id: int) -> str:
    return repr(names[category_id]) if category_id in names else "nothing"
