"""Checkpoints: one file of tensors and plain values, written whole or not at all, read without running code from it."""

import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BEST = "best.pt"

# What torch.load raises for truncated, damaged and foreign files of one kind or another.
_DAMAGED = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, struct.error,
    pickle.UnpicklingError,
)  # fmt: skip


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
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}")
    return content


def network_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights to use of a training run's checkpoint: the averaged ones if the run kept them, as it evaluated them."""
    if not state.get("ema"):
        return state["model"]
    averaged = {key.removeprefix("module."): value for key, value in state["ema"].items()}
    return {key: averaged[key] for key in state["model"]}


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder / f"step_{step:08d}.pt"


def saved_steps(folder: Path) -> list[Path]:
    """The checkpoints of steps in a folder, oldest first."""
    return sorted(folder.glob("step_" + "[0-9]" * 8 + ".pt"))


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints of steps, and what killed writers left; the best stays."""
    for path in [*saved_steps(folder)[:-keep], *folder.glob("*.tmp")]:
        path.unlink()


def discard_later(folder: Path, step: int) -> list[Path]:
    """Delete the checkpoints of steps after `step`, the best if it is one of them; returns where they were."""
    later = [path for path in saved_steps(folder) if path > step_path(folder, step)]
    best = folder / BEST
    if best.exists() and _step_of(best) > step:
        later.append(best)
    for path in later:
        path.unlink()
    return later


def _step_of(path: Path) -> int:
    try:
        return load_checkpoint(path)["step"]
    except CheckpointError:  # what cannot be read is not ours to delete
        return 0


def mark_best(path: Path) -> None:
    """Make the folder's best checkpoint that of `path`, by a link so that it costs no space while both are there."""
    temporary = path.with_name(f"{BEST}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        temporary.write_bytes(path.read_bytes())
    os.replace(temporary, path.with_name(BEST))
