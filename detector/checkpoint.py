"""Checkpoints: one file of tensors and plain values, written whole or not at all, read without running code from it."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

BEST = "best.pt"


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used, and why."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`: to a temporary name, synced to disk, then renamed, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises CheckpointError for a missing, truncated or foreign file, and for one that holds anything but tensors and
    plain values: such a file could run code when it is read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values: {error}") from error
    except (RuntimeError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint (truncated or another format?): {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}")
    return content


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder / f"step_{step:08d}.pt"


def saved_steps(folder: Path) -> list[Path]:
    """The checkpoints of steps in a folder, oldest first."""
    return sorted(folder.glob("step_" + "[0-9]" * 8 + ".pt"))


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints of steps; the best is another file and stays."""
    for path in saved_steps(folder)[:-keep]:
        path.unlink()


def mark_best(path: Path) -> None:
    """Make the folder's best checkpoint that of `path`, by a link so that it costs no space while both are there."""
    temporary = path.with_name(f"{BEST}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        temporary.write_bytes(path.read_bytes())
    os.replace(temporary, path.with_name(BEST))
