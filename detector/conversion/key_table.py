"""What became of every key of a converted file."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

STATUSES = ("matched", "missing", "unused", "misshaped")


class KeyRow(NamedTuple):
    """One key of a file, or of our network if the file has nothing for it."""

    status: Literal["matched", "missing", "unused", "misshaped"]
    theirs: str  # "" if missing
    ours: str  # "" if unused
    shape: str


def compare(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], wanted: Mapping[str, Tensor], unused: Mapping[str, Tensor]
) -> list[KeyRow]:
    """A row for each tensor that is there or wanted.

    Args:
        tensors: by the keys of those who want them.
        names: for keys of `tensors`, the key in the file.
        wanted: what is to be filled; shapes alone count.
        unused: what nobody wants, by the keys of the file.
    """
    rows = []
    for ours, value in tensors.items():
        theirs, shape = names[ours], _shape(value)
        if ours not in wanted:
            rows.append(KeyRow("unused", theirs, "", shape))
        elif wanted[ours].shape != value.shape:
            rows.append(KeyRow("misshaped", theirs, ours, f"{shape}, expected {_shape(wanted[ours])}"))
        else:
            rows.append(KeyRow("matched", theirs, ours, shape))
    rows += [KeyRow("missing", "", ours, _shape(wanted[ours])) for ours in wanted if ours not in tensors]
    return rows + [KeyRow("unused", theirs, "", _shape(value)) for theirs, value in unused.items()]


def is_complete(rows: Iterable[KeyRow]) -> bool:
    """Whether nothing is missing or misshaped."""
    return not any(row.status in ("missing", "misshaped") for row in rows)


def key_table(rows: Sequence[KeyRow]) -> str:
    """All rows, one a line, and a line that counts them."""
    titles = KeyRow("status", "in the file", "in the result", "shape")
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row.shape])
        for row in (titles, *rows)
    ]
    counts = Counter(row.status for row in rows)
    return "\n".join([*lines, f"{len(rows)} keys: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES)])


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
