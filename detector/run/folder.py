"""What a run leaves in its folder."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from torch import nn

from ...datasets.loading.batches import Batch
from ...datasets.loading.dataset import Splits
from ...losses import GradientGuidedLoss
from ..checkpoint.file import save_checkpoint
from ..checkpoint.folder import mark_best, prune, step_path
from ..config.schema import Config
from ..errors import CheckpointError
from ..evaluation.metrics import line, table
from ..system.distributed import Process, on_rank_zero
from ..system.environment import environment
from ..system.files import write_text
from ..system.processes import elastic_job
from ..training.nonfinite import MOST_WRITTEN, NonFiniteStep, batch_content
from ..training.state import Run
from .dataset_summary import describe
from .lock import Lease
from .log import RunLog

FORMAT = "longshot 1"


class Saver:
    """Writes the checkpoints of a run. Every process has one and calls it at the same steps.

    A write that fails (a full disk, say) is warned of, and the run goes on with the checkpoints that are there: it is
    tried again at the next interval, and by `finish` for the last.
    """

    def __init__(self, run: Run, data: Splits, config: Config, process: Process, lease: Lease, log: RunLog):
        self._run, self._data, self._config = run, data, config
        self._process, self._lease, self._log = process, lease, log
        self._failed = False

    def __call__(self) -> None:
        """Write a checkpoint; returns when it is there, or cannot be written, in every process.

        Raises ConfigError, in every process, if another run has taken the folder over.
        """
        self._failed = on_rank_zero(self._process, self._fails)

    def finish(self) -> None:
        """Write the last checkpoint again if it failed. Raises CheckpointError, in every process, if it still does."""
        if self._failed:
            on_rank_zero(self._process, self._write)

    def _fails(self) -> bool:
        try:
            self._write()
        except CheckpointError as error:
            self._log.say(
                f"warning: no checkpoint of step {self._run.step}: {error}. Training goes on; the one before it stays"
            )
            return True
        return False

    def _write(self) -> None:
        self._lease.check()
        folder = Path(self._config.output) / "checkpoints"
        path = step_path(folder, self._run.step)
        if not self._run.norm().isfinite():  # or good ones would make room for it
            raise CheckpointError(f"{path}: not written, since weights or state are not finite")
        save_checkpoint(path, _content(self._run, self._data, self._config))
        try:
            prune(folder, self._config.train.keep_checkpoints)
        except OSError as error:
            self._log.say(f"warning: {error.filename}: cannot be removed: {error.strerror}; older checkpoints stay")


def keep_sick_step(run: Run, config: Config, process: Process, log: RunLog, step: NonFiniteStep, batch: Batch) -> None:
    """Write down a step that is not finite: this process's batch, and on rank 0 the state that it began in."""
    folder = Path(config.output) / "nonfinite"
    log.say(f"warning: step {run.step} is not finite and was not taken: {step.numbers}; see {folder}")
    if len(list(folder.glob(f"step_*_process_{process.rank}.pt"))) >= MOST_WRITTEN:
        return
    content = {"step": run.step, "numbers": step.numbers, "batch": batch_content(batch)}
    if process.rank == 0:
        content |= {"config": config.model_dump(mode="json"), "state": run.state_dict()}
    try:
        save_checkpoint(folder / f"step_{run.step:08d}_process_{process.rank}.pt", content)
    except CheckpointError as error:
        log.say(f"warning: {error}")


def _content(run: Run, data: Splits, config: Config) -> dict:
    """What a checkpoint holds: enough to go on, and enough to use the model without anything else."""
    return {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "classes": data.classes._asdict(),
        **run.state_dict(),
    }


def introduce(log: RunLog, config: Config, data: Splits, run: Run, total_steps: int, notes: list[str]) -> None:
    """Write down what is about to be trained, on what, with what, and the lines of `notes`."""
    if not log.enabled:
        return
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    here = {"step": run.step, "job": elastic_job(), **environment(run.network.device)}
    # First: from config.yaml on, the folder holds a run, and a restart must find that it is its own.
    _append(log.folder / "environment.json", here)
    write_text(log.folder / "config.yaml", resolved)
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
    write_text(path, json.dumps([*entries, entry], indent=2) + "\n")


def record(log: RunLog, step: int, result: dict, best_metric: str) -> None:
    """Write an evaluation down, and keep its checkpoint if it is the best so far."""
    log.say(f"step {step}: {line(result)}")
    with log.best_effort():
        write_text(log.folder / "metrics.json", json.dumps({"step": step, **result}, indent=1) + "\n")
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
    with log.best_effort():
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    log.picture(step, "detections", picture)


def conclude(log: RunLog, step: int) -> None:
    """The last words: the table, a picture to look at, the command that shows the curves."""
    if not log.enabled:
        return
    path = log.folder / "metrics.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if result.get("step") != step:
        log.say(f"warning: {path} could not be written; tools/eval.py scores the checkpoint of step {step}")
        return
    log.say(f"\n{table(result)}")
    pictures = sorted((log.folder / "pictures").glob("*.png"))
    if pictures:
        log.say(f"detections beside ground truth: {pictures[-1]}")
    log.say(f"curves and pictures: tensorboard --logdir {log.folder}")
