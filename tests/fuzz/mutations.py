"""Ways to spoil a file: its bytes, or the values that it holds."""

import copy
import gzip
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

DEPTH = 10_000


class Raw(NamedTuple):
    """Text that stands in a JSON file as it is, for what `json.dumps` would not write."""

    text: str


NUMBERS = [
    -1, 0, 1, 2, -0.0, 0.5, 1.0, 1e-308, 1e308, -1e308, float("nan"), float("inf"), -float("inf"), 2**31 - 1, 2**31, 2**32,
    2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**12, 10**20, 10**400,
]  # fmt: skip
OTHERS = [
    None, True, False, "", "0", "1", "NaN", "x", "ä€😀", "\ud800", "a\0b", "../../etc/passwd", "x" * 5000, [], {}, [[]],
    [None], {"a": 1}, [1, 2], [0.0] * 4, [[1, 2, 3, 4]], list(range(1000)), {str(i): i for i in range(300)},
]  # fmt: skip
RAWS = [
    Raw("1e400"), Raw("-0"), Raw("01"), Raw("+1"), Raw("1" * 5000), Raw("0x10"), Raw("nan"), Raw("undefined"), Raw("'a'"),
    Raw('"\\ud800"'), Raw('"\\x"'), Raw("1 2"), Raw("/*c*/1"), Raw('{"id":1,"id":2}'), Raw("[" * DEPTH + "]" * DEPTH),
    Raw('{"a":' * DEPTH + "1" + "}" * DEPTH), Raw("[" * 100 * DEPTH), Raw(""), Raw("1,"), Raw('"\t"'),
]  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """A number, something that is no number, or no JSON at all."""
    return rng.choice(rng.choice([NUMBERS, NUMBERS, OTHERS, OTHERS, RAWS]))


def some_place(tree: Any, rng: random.Random) -> tuple:
    """The path of a value inside a tree of dictionaries and lists; none is missed for another list's length."""
    place: tuple = ()
    while isinstance(tree, dict | list) and tree and (not place or rng.random() < 0.75):
        key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        place, tree = (*place, key), tree[key]
    return place


def replaced(tree: Any, place: tuple, value: Any) -> Any:
    """A copy of the tree with another value at one place."""
    tree = copy.deepcopy(tree)
    _owner(tree, place)[place[-1]] = value
    return tree


def changed(tree: Any, rng: random.Random, value: Callable[[random.Random], Any] = odd_value) -> tuple[str, Any]:
    """What was done to a value of a tree, and the new tree."""
    tree = copy.deepcopy(tree)
    place, other = some_place(tree, rng), some_place(tree, rng)
    owner, key = _owner(tree, place), place[-1]
    found = owner[key]
    match rng.choice(["replace"] * 6 + ["remove", "repeat", "swap", "add", "rename", "text"]):
        case "remove":
            del owner[key]
            return f"{_dotted(place)} removed", tree
        case "repeat" if isinstance(owner, list):
            owner.insert(key, copy.deepcopy(found))
            return f"{_dotted(place)} twice", tree
        case "swap" if place != other[: len(place)] and other != place[: len(other)]:
            there = _owner(tree, other)
            owner[key], there[other[-1]] = there[other[-1]], found
            return f"{_dotted(place)} and {_dotted(other)} exchanged", tree
        case "add" if isinstance(found, dict):
            found["something"] = new = value(rng)
            return f"{_dotted(place)} with another key: {_short(new)}", tree
        case "rename" if isinstance(owner, dict):
            owner[new := rng.choice([key.upper(), f" {key}", f"{key}\0", "", "ключ"])] = owner.pop(key)
            return f"{_dotted(place)} renamed {new!r}", tree
        case "text" if not isinstance(found, str):
            owner[key] = str(found)
            return f"{_dotted(place)} as text", tree
    owner[key] = new = value(rng)
    return f"{_dotted(place)} = {_short(new)}", tree


def dumped(tree: Any, **options: Any) -> bytes:
    """A tree as JSON, in which each Raw stands as it is."""
    raws: list[str] = []

    def known(value: Any) -> Any:
        if isinstance(value, Raw):
            raws.append(value.text)
            return f"@raw {len(raws) - 1}@"
        if isinstance(value, dict):
            return {key: known(entry) for key, entry in value.items()}
        return [known(entry) for entry in value] if isinstance(value, list | tuple) else value

    text = json.dumps(known(tree), **options)
    for number, raw in enumerate(raws):
        text = text.replace(f'"@raw {number}@"', raw)
    return text.encode(errors="surrogatepass")


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What was done to the bytes of a file, and the new ones."""
    start, length = rng.randrange(len(content)), rng.choice([1, 1, 2, 4, 16, 100, len(content) // 3 + 1])
    part, rest = content[start : start + length], content[start + length :]
    where = f"{len(part)} bytes at {start}"
    match rng.randrange(14):
        case 0 | 1:
            return f"cut off after {start} bytes", content[:start]
        case 2 | 3 | 4:
            bits = [rng.randrange(8 * len(content)) for _ in range(rng.choice([1, 1, 2, 8, 64]))]
            spoiled = bytearray(content)
            for bit in bits:
                spoiled[bit // 8] ^= 1 << bit % 8
            return f"bits {bits[:8]} turned over", bytes(spoiled)
        case 5:
            return f"{where} removed", content[:start] + rest
        case 6:
            return f"{where} twice", content[:start] + 2 * part + rest
        case 7:
            return f"{where} made random", content[:start] + rng.randbytes(len(part)) + rest
        case 8:
            return f"{where} made zero", content[:start] + bytes(len(part)) + rest
        case 9:
            return f"random bytes inserted at {start}", content[:start] + rng.randbytes(length) + content[start:]
        case 10:
            other = rng.randrange(len(content))
            return f"{where} moved to {other}", (content[:start] + rest)[:other] + part + (content[:start] + rest)[
                other:
            ]
        case 11:
            byte = rng.choice(b'\0 \n"[{9a\xff').to_bytes()
            return f"{2**18} times {byte!r} at {start}", content[:start] + byte * 2**18 + content[start:]
        case 12:
            return f"{where} replaced by a digit", content[:start] + rng.choice(b"0123456789-.eE,").to_bytes() + rest
    return _dressed(content, rng)


def _dressed(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The whole file in another form."""
    as_text = content.decode("latin-1")
    return rng.choice(
        [
            ("empty", b""), ("one line feed", b"\n"), ("one zero", b"\0"), ("a megabyte of zeros", bytes(2**20)),
            ("with a byte order mark", b"\xef\xbb\xbf" + content), ("as UTF-16", as_text.encode("utf-16")),
            ("as UTF-32", as_text.encode("utf-32-le")), ("compressed by gzip", gzip.compress(content, mtime=0)),
            ("twice in a row", content + content), ("with a zero at its end", content + b"\0"),
            ("with bytes after its end", content + rng.randbytes(100)), ("a page of HTML", b"<!DOCTYPE html><html>404</html>"),
            ("line feeds as CRLF", content.replace(b"\n", b"\r\n")), ("random", rng.randbytes(len(content))),
            ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        ]
    )  # fmt: skip


class Zeros(NamedTuple):
    """Bytes of which most are zero."""

    beginning: bytes
    megabytes: int  # of zeros after it


def zipped(entries: dict[str, bytes | Zeros]) -> bytes:
    """A zip file that stores bytes as they are, and deflates zeros to a thousandth."""
    out, central = bytearray(), bytearray()
    for name, content in entries.items():
        stored = isinstance(content, bytes)
        packed = content if stored else _deflated(content)
        size = len(content) if stored else len(content.beginning) + content.megabytes * 2**20
        method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
        fields = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, _checksum(content), len(packed), size, len(name), 0)
        place = struct.pack("<HHHII", 0, 0, 0, 0, len(out))
        central += b"PK\1\2" + struct.pack("<H", 20) + fields + place + name.encode()
        out += b"PK\3\4" + fields + name.encode() + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(central), len(out), 0)
    return bytes(out + central + b"PK\5\6" + end)


def _deflated(content: Zeros) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = squeeze.compress(content.beginning) + squeeze.flush(zlib.Z_FULL_FLUSH)  # after which the stream begins anew
    again = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return first + again * content.megabytes + squeeze.flush()


def _checksum(content: bytes | Zeros) -> int:
    if isinstance(content, bytes):
        return zlib.crc32(content)
    checksum, block = zlib.crc32(content.beginning), bytes(2**20)
    for _ in range(content.megabytes):
        checksum = zlib.crc32(block, checksum)
    return checksum


def _owner(tree: Any, place: tuple) -> Any:
    for key in place[:-1]:
        tree = tree[key]
    return tree


def _dotted(place: tuple) -> str:
    return ".".join(map(str, place))


def _short(value: Any) -> str:
    text = str(value)[:5000] if isinstance(value, int) and value < 10**4000 else repr(value)
    return text if len(text) < 60 else f"{text[:50]}… ({len(text)} characters)"
