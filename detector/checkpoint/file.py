"""Checkpoints: one file of tensors and plain values, written whole or not at all, read without running code from it.

A checkpoint is what torch.save writes: a zip file, which has a CRC of each of its parts. Reading compares them, as torch.load
does not. Older checkpoints have a SHA-256 in the zip's comment, which is not looked at.
"""

import errno
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..system.files import rename
from .content import archive_damage, strange_tensor, wrong_entries

# What torch.load raises for truncated, damaged and foreign files of one kind or another.
_DAMAGED = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, struct.error,
    pickle.UnpicklingError, OverflowError, MemoryError, zipfile.BadZipFile,
)  # fmt: skip

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

_END_OF_ZIP = b"PK\x05\x06"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`, so that neither a reader nor a machine that stops ever leaves half a file there.

    To a temporary name, synced to disk, read back and checked, then renamed.

    Raises CheckpointError, with `path` as it was before, for a disk that is full, read-only or fails.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, content)
        if _is_damaged(temporary):
            raise CheckpointError(
                f"{path}: cannot be written: the disk does not give back what it was given; replace it"
            )
        rename(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}{_remedy(path, error)}") from error
    finally:
        with suppress(OSError):  # of a disk that has failed already
            temporary.unlink(missing_ok=True)


class _Out:
    """A file to write to, that keeps the error which torch.save makes a riddle of."""

    def __init__(self, file: BinaryIO):
        self._file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint to the disk."""
    with open(path, "wb") as file:
        out = _Out(file)
        try:
            torch.save(content, out)
        except RuntimeError as error:
            raise out.error or error from error
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # what is read back then comes from the disk, not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _is_damaged(path: Path) -> bool:
    try:
        return bool(archive_damage(path))
    except zipfile.BadZipFile:
        return True


def _remedy(path: Path, error: OSError) -> str:
    if error.errno in _FULL:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free / 2**20
        return f" ({free:,.0f} MB are free there); free some space, or keep less by train.keep_checkpoints"
    if error.errno in _READ_ONLY:
        return f"; make {path.parent} writable, or write elsewhere"
    return "; is the disk there, and healthy?"


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises CheckpointError for a missing, truncated, damaged or foreign file, and for one that holds anything but tensors
    and plain values: such a file could run code when it is read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    _check_whole(path)
    try:
        damage = archive_damage(path)
        content = None if damage else torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        # Torch's own text is pages long and tells how to switch its safety off.
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path}: refused: it holds {foreign[1]}, and reading that could run code of the file; expected tensors "
                "and plain values only"
            ) from error
        raise CheckpointError(
            f"{path}: not a readable checkpoint; is it truncated, or a file of another kind?"
        ) from error
    if damage:
        raise CheckpointError(f"{path}: {damage}")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}")
    if shape := strange_tensor(content):
        raise CheckpointError(
            f"{path}: refused: a tensor of shape {shape} is not there number by number; save clones of tensors that are "
            "sparse, expanded or without content"
        )
    return content


def check_entries(state: Mapping[str, Any], whose: str, *, needed: Set[str] = frozenset()) -> None:
    """Raise CheckpointError for entries of another kind than a training run writes, and for `needed` ones not there.

    Args:
        state: the content of a checkpoint.
        whose: begins the message: "a.pt: its".
    """
    if wrong := [*wrong_entries(state), *sorted(needed - state.keys())]:
        raise CheckpointError(f"{whose} {', '.join(wrong)} are not as a training run writes them")


def _check_whole(path: Path) -> None:
    """Raise CheckpointError if the file cannot be read, or is a zip file whose end is missing."""
    try:
        with open(path, "rb") as file:
            begin = file.read(2)
            file.seek(-min(path.stat().st_size, 2**16), os.SEEK_END)
            end = file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if begin == b"PK" and _END_OF_ZIP not in end:
        raise CheckpointError(
            f"{path}: truncated: it ends after {path.stat().st_size:,} bytes without the end of a checkpoint. Take the "
            "checkpoint before it, or copy it again"
        )


def network_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights to use of a training run's checkpoint: the averaged ones if the run kept them, as it evaluated them."""
    if not state.get("ema"):
        return state["model"]
    averaged = {key.removeprefix("module."): value for key, value in state["ema"].items()}
    return {key: averaged[key] for key in state["model"]}
