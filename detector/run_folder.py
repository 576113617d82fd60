"""What a run leaves in its folder, and how it goes on from there."""

import json
from pathlib import Path
from textwrap import shorten

import numpy as np
import yaml
from PIL import Image
from torch import nn

from losses import GradientGuidedLoss

from .build import Data
from .checkpoint import (
    CheckpointError,
    discard_later,
    load_checkpoint,
    mark_best,
    prune,
    save_checkpoint,
    saved_steps,
    step_path,
)
from .config import Config
from .dataset_report import describe
from .distributed import Process, barrier
from .evaluation.metrics import line, table
from .training.engine import Run
from .training.run_log import RunLog, environment
from .yaml_files import ConfigError, differences

_FORMAT = "longshot 1"


def state_to_resume(folder: Path, resume: str | None) -> dict | None:
    """The content of the checkpoint to go on from, or None for a new run in a folder that is free for it."""
    newest_first = saved_steps(folder / "checkpoints")[::-1]
    named = resume not in (None, "auto")
    another = resume is None or (named and Path(resume).resolve().parent != (folder / "checkpoints").resolve())
    if another and (newest_first or (folder / "config.yaml").exists()):
        raise ConfigError(
            f"{folder}: holds a run already; go on with it by --resume auto, choose another folder by output=FOLDER, "
            "or delete it"
        )
    if named:
        return load_checkpoint(resume)
    for path in newest_first:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            print(f"warning: {error}; trying the checkpoint before it", flush=True)
    if newest_first:
        raise CheckpointError(f"{folder / 'checkpoints'}: none of its {len(newest_first)} checkpoints can be read")
    return None


def restore(run: Run, state: dict, data: Data, config: Config) -> list[str]:
    """Put a checkpoint's state into `run`; returns a line for each option that has changed."""
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            f"--resume: found format {state.get('format')!r}, expected {_FORMAT!r}: not a checkpoint of a training run. "
            "To start from a detector's weights, set init_from"
        )
    theirs = state["classes"]
    data.classes.check_same(theirs["ids"], theirs["names"], here="the training set", there="the checkpoint to resume")
    changes = differences(state["config"], config.model_dump(mode="json"))
    another = "--resume: the checkpoint is of another model, loss or optimizer (init_from takes the weights alone)"
    if state["config"]["optimizer"]["name"] != config.optimizer.name:
        raise CheckpointError(f"{another}: {'; '.join(c for c in changes if c.startswith('optimizer.'))}")
    try:
        run.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        told = [c for c in changes if c.startswith(("model.", "loss.", "optimizer."))]
        raise CheckpointError(f"{another}: {'; '.join([*told, shorten(str(error), 300)])}") from error
    return [f"warning: resumed with a changed configuration: {change}" for change in changes]


def discard_future(folder: Path, step: int) -> list[str]:
    """Delete the checkpoints of steps after `step`, the best among them; returns a line for each."""
    later = discard_later(folder / "checkpoints", step)
    return [f"warning: removed {path}, since the run goes on from step {step}" for path in later]


def save(run: Run, data: Data, config: Config, process: Process) -> None:
    """Write a checkpoint; returns when it is there, in every process."""
    if process.rank == 0:
        folder = Path(config.output) / "checkpoints"
        save_checkpoint(step_path(folder, run.step), _content(run, data, config))
        prune(folder, config.train.keep_checkpoints)
    barrier()


def _content(run: Run, data: Data, config: Config) -> dict:
    """What a checkpoint holds: enough to go on, and enough to use the model without anything else."""
    return {
        "format": _FORMAT,
        "config": config.model_dump(mode="json"),
        "classes": data.classes._asdict(),
        **run.state_dict(),
    }


def introduce(log: RunLog, config: Config, data: Data, run: Run, total_steps: int, notes: list[str]) -> None:
    """Write down what is about to be trained, on what, with what, and the lines of `notes`."""
    if not log.enabled:
        return
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (log.folder / "config.yaml").write_text(resolved, encoding="utf-8")
    _append(log.folder / "environment.json", {"step": run.step, **environment(run.network.device)})
    log.say(resolved)
    for note in notes:
        log.say(note)
    log.say(describe(data))
    parameters = sum(p.numel() for p in run.network.parameters() if p.requires_grad)
    log.say(
        f"{parameters / 1e6:.2f} M trainable parameters; steps {run.step} to {total_steps}; run folder {log.folder}"
    )


def _append(path: Path, entry: dict) -> None:
    """Add an entry to a JSON list: a resumed run may go on with another commit, on another machine."""
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*entries, entry], indent=2) + "\n", encoding="utf-8")


def record(log: RunLog, step: int, result: dict, best_metric: str) -> None:
    """Write an evaluation down, and keep its checkpoint if it is the best so far."""
    (log.folder / "metrics.json").write_text(json.dumps({"step": step, **result}, indent=1) + "\n", encoding="utf-8")
    log.say(f"step {step}: {line(result)}")
    checkpoint = step_path(log.folder / "checkpoints", step)
    best_before = max((record[best_metric] or 0.0 for record in log.evaluations().values()), default=0.0)
    if (result[best_metric] or 0.0) >= best_before and checkpoint.exists():
        mark_best(checkpoint)
    # Last: a resumed run evaluates this step again unless it finds the record.
    log.evaluation(step, {key: value for key, value in result.items() if isinstance(value, float | None)})


def tell_gradient_ratio(log: RunLog, classification: nn.Module) -> None:
    """Write down how a loss like EFL tells the classes apart: median (min..max) of its gradient ratio g per group."""
    if isinstance(classification, GradientGuidedLoss):
        ratio = classification.gradient_ratio.cpu().numpy()
        of_groups = {group: ratio[classes] for group, classes in log.groups.items()}
        told = [f"{group} {np.median(g):.2f} ({g.min():.2f}..{g.max():.2f})" for group, g in of_groups.items()]
        log.say(f"gradient ratio g: {', '.join(told)}")


def show(log: RunLog, step: int, picture: np.ndarray) -> None:
    """Keep an (H, W, 3) uint8 picture of detections, as a file and in TensorBoard."""
    path = log.folder / "pictures" / f"step_{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)
    log.picture(step, "detections", picture)


def conclude(log: RunLog) -> None:
    """The last words: the table, a picture to look at, the command that shows the curves."""
    if not log.enabled:
        return
    log.say(f"\n{table(json.loads((log.folder / 'metrics.json').read_text(encoding='utf-8')))}")
    pictures = sorted((log.folder / "pictures").glob("*.png"))
    if pictures:
        log.say(f"detections beside ground truth: {pictures[-1]}")
    log.say(f"curves and pictures: tensorboard --logdir {log.folder}")
