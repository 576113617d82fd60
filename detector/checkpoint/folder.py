"""The checkpoints of a run in their folder: which are there, which go, which is the best."""

import os
import shutil
from pathlib import Path

from ..errors import CheckpointError
from ..system.files import rename
from .file import load_checkpoint

BEST = "best.pt"


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
        with open(path, "rb") as file, open(temporary, "wb") as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            os.fsync(copy.fileno())
    rename(temporary, path.with_name(BEST))
