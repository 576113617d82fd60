"""Whether a run goes on, and from where."""

import json
import time
from pathlib import Path
from textwrap import shorten

import yaml

from ...datasets.loading.dataset import Splits
from ..checkpoint.file import check_entries, load_checkpoint
from ..checkpoint.folder import discard_later, saved_steps
from ..config.schema import Config
from ..config.yaml_files import differences
from ..errors import CheckpointError, ConfigError
from ..system.files import write_text
from ..training.state import Run
from .folder import FORMAT

MARKER = "preempted.json"  # in the folder of a run that was asked to stop, until it goes on


def what_to_resume(folder: Path, resume: str | None, config: Config, job: str | None) -> str | None:
    """What was asked for; or "auto" where a run goes on without being asked.

    That is a run which this very torchrun job has begun or gone on with before (the last entry of environment.json says
    so), or one which was asked to stop (it has left preempted.json) and has the same configuration.

    Args:
        resume: see `loop.train`.
        job: see `distributed.elastic_job`.

    Raises ConfigError if the folder holds another run.
    """
    checkpoints = folder / "checkpoints"
    saved = saved_steps(checkpoints)
    if resume == "auto" or not (saved or (folder / "config.yaml").exists()):
        return resume
    if is_of_job(folder, job):
        return "auto" if saved or resume is None else resume
    if resume is not None and Path(resume).resolve().parent == checkpoints.resolve():
        return resume
    changes = None
    if (folder / MARKER).exists():
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if not (changes := _changes(before, config)):
            return "auto"
    raise ConfigError(_refusal(folder, changes))


def _refusal(folder: Path, changes: list[str] | None) -> str:
    refusal = f"{folder}: holds a run already; go on with it by --resume auto, choose another folder by output=FOLDER, or delete it"
    if changes:
        refusal += ". It was asked to stop, and would go on by itself if its configuration were the same: " + "; ".join(
            changes
        )
    return refusal


def is_of_job(folder: Path, job: str | None) -> bool:
    """Whether the last start of the folder's run was by this torchrun job, see `distributed.elastic_job`."""
    path = folder / "environment.json"
    if job is None or not path.exists():
        return False
    return json.loads(path.read_text(encoding="utf-8"))[-1].get("job") == job


def mark_stopped(folder: Path, step: int, signal: str) -> None:
    """Leave the marker of a run that was asked to stop, and that the same command goes on with."""
    marker = {"step": step, "signal": signal or None, "time": time.strftime("%Y-%m-%d %H:%M:%S%z")}
    write_text(folder / MARKER, json.dumps(marker) + "\n")


def state_to_resume(folder: Path, resume: str | None) -> dict | None:
    """The content of the checkpoint to go on from, or None for a new run."""
    if resume is None:
        return None
    return _newest(folder) if resume == "auto" else load_checkpoint(resume)


def _newest(folder: Path) -> dict | None:
    """The content of the newest checkpoint that can be read. Raises CheckpointError if there are some, and none can be."""
    newest_first = saved_steps(folder / "checkpoints")[::-1]
    for path in newest_first:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            print(f"warning: {error}; trying the checkpoint before it", flush=True)
    if newest_first:
        raise CheckpointError(f"{folder / 'checkpoints'}: none of its {len(newest_first)} checkpoints can be read")
    return None


def _changes(before: dict, config: Config) -> list[str]:
    return differences(before, config.model_dump(mode="json"), defaults=Config().model_dump(mode="json"))


def restore(run: Run, state: dict, data: Splits, config: Config) -> list[str]:
    """Put a checkpoint's state into `run`; returns a line for each option that has changed."""
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"--resume: found format {state.get('format')!r}, expected {FORMAT!r}: not a checkpoint of a training run. "
            "To start from a detector's weights, set init_from"
        )
    needed = {"config", "classes", "step", "model", "ema", "criterion", "optimizer", "scaler", "random"}
    check_entries(state, "--resume: the checkpoint's", needed=needed)
    theirs = state["classes"]
    data.classes.check_same(theirs["ids"], theirs["names"], here="the training set", there="the checkpoint to resume")
    changes = _changes(state["config"], config)
    another = "--resume: the checkpoint is of another model, loss or optimizer (init_from takes the weights alone)"
    if state["config"]["optimizer"]["name"] != config.optimizer.name:
        raise CheckpointError(f"{another}: {'; '.join(c for c in changes if c.startswith('optimizer.'))}")
    try:
        run.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        told = [c for c in changes if c.startswith(("model.", "loss.", "optimizer."))]
        raise CheckpointError(f"{another}: {'; '.join([*told, shorten(str(error), 300)])}") from error
    return [f"warning: resumed with a changed configuration: {change}" for change in changes]


def discard_future(folder: Path, step: int) -> list[str]:
    """Delete the checkpoints of steps after `step`, the best among them; returns a line for each."""
    later = discard_later(folder / "checkpoints", step)
    return [f"warning: removed {path}, since the run goes on from step {step}" for path in later]
