"""Large CSV files, a piece at a time."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import DataError
from .problems import Problems

_ROWS = 2**11  # more at once leave the cache of the processor: at 2**16 it takes twice the time


class Piece(NamedTuple):
    """Some rows of a table."""

    lines: Sequence[int]  # of the file, from 1
    columns: list[Sequence[str]]  # in the order in which they were asked for


def read_table(path: Path, columns: Sequence[str], problems: Problems, *, progress: bool = True) -> Iterator[Piece]:
    """The named columns of a CSV file with a header; further columns are skipped. Names match whatever their case.

    Rows of another length than the header's are noted in `problems` and left out; blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or has no such columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            bar = tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=not progress)
            with bar:
                reader = csv.reader(file)
                header = next(reader, [])
                wanted = [_position(path, header, name) for name in columns]
                while rows := list(islice(reader, _ROWS)):
                    lines = range(reader.line_num - len(rows) + 1, reader.line_num + 1)  # no field spans lines
                    lines, rows = _complete(path, lines, rows, len(header), problems)
                    every = list(zip(*rows, strict=True)) or [()] * len(header)
                    yield Piece(lines, [every[position] for position in wanted])
                    bar.update(file.buffer.tell() - bar.n)
    except OSError as error:
        raise DataError(f"{path}: cannot read the table: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from error


def parse(
    piece: Piece, column: int, convert: Callable[[str], float], what: str, path: Path, problems: Problems
) -> NDArray[np.float64]:
    """A column as numbers; NaN where `convert` gives NaN or raises ValueError, which is noted as not being `what`."""
    texts = piece.columns[column]
    with suppress(ValueError):
        numbers = np.fromiter(map(convert, texts), np.float64, len(texts))
        if not np.isnan(numbers).any():
            return numbers
    numbers = [_number(text, convert) for text in texts]
    for row in np.flatnonzero(np.isnan(numbers)):
        problems.add(path, piece.lines[row], f"{texts[row]!r} is not {what}")
    return np.array(numbers)


def _number(text: str, convert: Callable[[str], float]) -> float:
    try:
        return convert(text)
    except ValueError:
        return np.nan


def _position(path: Path, header: Sequence[str], name: str) -> int:
    names = [field.strip().lower() for field in header]
    if name.lower() not in names:
        raise DataError(
            f"{path}:1: the header has no column {name!r}: {','.join(header)[:200]!r}; is this another file?"
        )
    return names.index(name.lower())


def _complete(
    path: Path, lines: Sequence[int], rows: list[list[str]], width: int, problems: Problems
) -> tuple[Sequence[int], list[list[str]]]:
    """The rows that are as wide as the header, with their lines."""
    if all(len(row) == width for row in rows):
        return lines, rows
    kept = []
    for line, row in zip(lines, rows, strict=True):
        if len(row) == width:
            kept.append((line, row))
        elif row:
            problems.add(path, line, f"{len(row)} fields, but the header has {width}")
    return [line for line, _ in kept], [row for _, row in kept]
