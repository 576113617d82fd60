"""What was read from an annotation file, kept in one file that all processes map into memory and share.

Its first line is the CRC-32 of all that follows it and the version of this code, its second the manifest in JSON. Then come the
arrays as they lie in memory, each at a multiple of 64 bytes. It may be deleted at any time.

Not safetensors: its numpy reader copies what it reads, and the one that maps needs torch, which tools that check a dataset or
score detections do without.
"""

import hashlib
import json
import logging
import mmap
import os
import secrets
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_ENDS = 2**16  # bytes
_ALIGNMENT = 64
_FIRST_LINE = 8 + 1 + 32 + 1  # bytes: CRC-32, space, version, line feed
# What these modules make of a file is in the cache. A version number would have to be remembered at each change.
_CODE = ("cache.py", "annotations.py", "coco.py", "coco_stream.py")


class Key(NamedTuple):
    """By what an unchanged annotation file is recognized at a glance."""

    size: int
    modified: int  # nanoseconds
    ends: str  # hash of the first and the last 64 KiB


class Texts(Sequence[str]):
    """Texts one after the other in an array of bytes: a Python object each would be copied into every worker process."""

    def __init__(self, content: NDArray[np.uint8], offsets: NDArray[np.int64]):
        self.content, self.offsets = content, offsets  # UTF-8 of all; text i is content[offsets[i] : offsets[i + 1]]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """The texts as columns."""
        # JSON can hold half of a surrogate pair, which strict UTF-8 cannot.
        encoded = [text.encode(errors="surrogatepass") for text in texts]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = range(len(self))[index]  # negative ones count from the end, and those beyond it are an IndexError
        content = self.content[self.offsets[start] : self.offsets[start + 1]]
        return content.tobytes().decode(errors="surrogatepass")


class Cached(NamedTuple):
    """What the cache holds of an annotation file."""

    file: Path
    digest: str  # of the annotation file
    details: dict[str, Any]  # as JSON keeps them
    arrays: dict[str, NDArray]  # memory-mapped, read-only


def key_of(path: Path) -> Key:
    """The key of an annotation file as it is now. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        ends = hashlib.blake2b(file.read(_ENDS))
        file.seek(max(0, status.st_size - _ENDS))
        ends.update(file.read(_ENDS))
    return Key(status.st_size, status.st_mtime_ns, ends.hexdigest())


def digest_of(path: Path) -> str:
    """The hash of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def load(path: Path, key: Key) -> Cached | None:
    """What `save` has kept of this very file, by this very code; None if that is not there, whole and up to date.

    A file whose time of modification alone has changed is hashed, and the cache is kept if it is the same file.
    """
    place = cache_path(path)
    try:
        manifest, arrays = _opened(place) if place else ({}, {})
    except (OSError, ValueError):  # not there, or not as we wrote it
        return None
    if not manifest:
        return None
    stored, digest, details = Key(*manifest["key"]), manifest["digest"], manifest["details"]
    if stored == key:
        return Cached(place, digest, details, arrays)
    if stored._replace(modified=key.modified) != key or digest != digest_of(path):
        return None
    return _written(path, key, digest, arrays, details) or Cached(place, digest, details, arrays)


def save(path: Path, key: Key, arrays: Mapping[str, NDArray], details: Mapping[str, Any]) -> Cached | None:
    """What was read from a file, now from the cache; None if the file has changed since it had `key`, or no folder takes it.

    The cache replaces an older one in one step: of processes that write at the same time one wins, and all are served.
    """
    digest = digest_of(path)
    return _written(path, key, digest, arrays, details) if key_of(path) == key else None


def cache_path(path: Path) -> Path | None:
    """Where the cache of an annotation file lies, in the user's folder of caches; None if there is no such folder.

    Not beside the file: data folders are tracked, shared and read-only.
    """
    folder = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/.cache")
    if not os.path.isabs(folder):  # there is no home, or a setting that the XDG standard says to ignore
        return None
    whose = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=8).hexdigest()
    return Path(folder) / "longshot" / "annotations" / f"{path.name}.{whose}"


def _written(
    path: Path, key: Key, digest: str, arrays: Mapping[str, NDArray], details: Mapping[str, Any]
) -> Cached | None:
    columns = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    manifest = {"key": key, "digest": digest, "columns": columns, "details": details}
    place, problem = cache_path(path), "there is no folder for caches"
    if place:
        # Not the process's id: processes on different machines may share the folder.
        temporary = place.with_name(f"{place.name}.{secrets.token_hex(4)}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary, manifest, arrays)
            kept, mapped = _opened(temporary)
            os.replace(temporary, place)
            return Cached(place, digest, kept["details"], mapped)
        except (OSError, ValueError) as error:
            problem = f"{place}: {error}"
        finally:
            with suppress(OSError):  # on a read-only file system even where there is nothing to remove
                temporary.unlink(missing_ok=True)
    _log.warning(
        f"{path}: cannot be cached, so that every process reads it anew and holds a copy of its own ({problem}); make that "
        "folder writable, or set XDG_CACHE_HOME to one that is"
    )
    return None


def _write(file: Path, manifest: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
    checksum = 0
    with open(file, "xb") as out:
        out.write(bytes(_FIRST_LINE))
        for piece in (json.dumps(manifest).encode() + b"\n", *map(np.ascontiguousarray, arrays.values())):
            for part in (piece, bytes(-(out.tell() + memoryview(piece).nbytes) % _ALIGNMENT)):
                out.write(part)
                checksum = zlib.crc32(part, checksum)
        out.seek(0)
        out.write(_first_line(checksum))


def _opened(file: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """The manifest and the arrays.

    Raises OSError or ValueError if a byte is missing or has changed since `_write`, or another version wrote it.
    """
    with open(file, "rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if mapped[:_FIRST_LINE] != _first_line(zlib.crc32(memoryview(mapped)[_FIRST_LINE:])):
        raise ValueError(f"{file}: damaged, or of another version")
    mapped.seek(_FIRST_LINE)
    manifest, arrays = json.loads(mapped.readline()), {}
    position = mapped.tell()
    for name, (dtype, shape) in manifest["columns"].items():
        position += -position % _ALIGNMENT
        arrays[name] = np.ndarray(shape, dtype, buffer=mapped, offset=position)
        position += arrays[name].nbytes
    return manifest, arrays


def _first_line(checksum: int) -> bytes:
    return f"{checksum:08x} {_code()}\n".encode()


@cache
def _code() -> str:
    """What tells this version of the code that fills the cache from others."""
    sources = [Path(__file__).with_name(name).read_bytes() for name in _CODE]
    return hashlib.blake2b(b"\0".join(sources), digest_size=16).hexdigest()
