"""The lists of a COCO or LVIS file a megabyte at a time: its polygons can be gigabytes."""

import re
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import msgspec

_WINDOW = 2**20  # bytes; larger ones leave the processor's cache before they are parsed, at half the speed
_SPACE = rb"[ \t\r\n]*"
_KEY = _SPACE + rb'"([ !#-\[\]-~]*)"' + _SPACE + b":" + _SPACE  # printable ASCII without escapes
_FIRST_KEY = re.compile(_SPACE + rb"\{" + _KEY)
_NEXT_KEY = re.compile(_SPACE + b"," + _KEY)
_END = re.compile(_SPACE + rb"\}" + _SPACE)
_LIST = re.compile(rb"\[" + _SPACE + rb"(\])?")
_NEXT_RECORD = re.compile(_SPACE + b"," + _SPACE + rb"(?=\{)")
_LAST_RECORD = re.compile(rb"\}" + _SPACE + rb"\]")
_AFTER_VALUE = re.compile(_SPACE + b"[,}]")
_TRIES = 1000
_NOT_A_VALUE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class IrregularFileError(Exception):
    """Perhaps not JSON, perhaps only laid out in another way than annotation files are."""


def stream_lists(path: Path, types: Mapping[str, type[msgspec.Struct]]) -> Iterator[tuple[str, list]]:
    """(key, some of its records) of those members of the top-level object that `types` has; others are skipped.

    No parser of JSON: places to cut the text are guessed, and each guess is put to a strict parser. Text from the start
    of a value can be cut at one place only such that it is a complete value, so that a right cut is certain.

    Raises:
        IrregularFileError: when no guess was right, at any time; what came before is of no use then.
    """
    decoders = {key: msgspec.json.Decoder(list[struct]) for key, struct in types.items()}
    seen, position, pattern = set(), 0, _FIRST_KEY
    with open(path, "rb") as file:
        while not _END.fullmatch(text := _read(file, position)) or len(text) == _WINDOW:
            match = pattern.match(text)
            key = match[1].decode() if match else None
            if key is None or key in seen:
                raise IrregularFileError(f"no new key at byte {position}")
            seen.add(key)
            position, pattern = position + match.end(), _NEXT_KEY
            if key in decoders:
                position = yield from _records(file, position, key, decoders[key])
            else:
                position += _value_length(_read(file, position))
    if not seen >= decoders.keys():
        raise IrregularFileError(f"only the keys {seen}")


def _read(file: BinaryIO, position: int) -> bytes:
    file.seek(position)
    return file.read(_WINDOW)


def _records(
    file: BinaryIO, position: int, key: str, decoder: msgspec.json.Decoder
) -> Generator[tuple[str, list], None, int]:
    """The records of the list that begins at `position`; returns where it ends."""
    match = _LIST.match(_read(file, position))
    if not match:
        raise IrregularFileError(f"{key} is no list")
    position += match.end()
    if match[1]:
        return position
    while True:
        window = _read(file, position)
        end, following = _last_cut(window)
        try:
            records = decoder.decode(b"[" + window[:end] + b"]")
        except _NOT_A_VALUE:  # as it should be where the list ends in this window
            records, following = [], 0
        if not records:
            records, length = _rest(window, decoder)
            yield key, records
            return position + length
        yield key, records
        position += following


def _last_cut(window: bytes) -> tuple[int, int]:
    """Where the last record ends that another one seems to follow, and where that begins; (0, 0) if there is none."""
    brace = len(window)
    while (brace := window.rfind(b"}", 0, brace)) >= 0:
        if match := _NEXT_RECORD.match(window, brace + 1):
            return brace + 1, match.end()
    return 0, 0


def _rest(window: bytes, decoder: msgspec.json.Decoder) -> tuple[list, int]:
    """The records up to the end of the list, and how far that is."""
    for match in islice(_LAST_RECORD.finditer(window), _TRIES):
        try:
            return decoder.decode(b"[" + window[: match.end()]), match.end()
        except _NOT_A_VALUE:
            continue
    raise IrregularFileError("no end of a list")


def _value_length(window: bytes) -> int:
    for match in islice(_AFTER_VALUE.finditer(window), _TRIES):
        try:
            msgspec.json.decode(window[: match.start()])
            return match.start()
        except _NOT_A_VALUE:
            continue
    raise IrregularFileError("no end of a value")
