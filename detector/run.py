"""A whole training run: the run folder, resuming, training, evaluation, and the table at the end."""

import json
import os
from functools import partial
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
import yaml
from PIL import Image

from .build import (
    Data,
    build_data,
    build_evaluation,
    build_pictures,
    build_run,
    build_schedule,
    build_training_loader,
    images_per_pass,
)
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
from .distributed import Process, barrier, from_rank_zero, share_buffers
from .evaluation.metrics import table
from .evaluation.predict import Evaluation
from .training.engine import Run, train
from .training.run_log import RunLog, environment
from .yaml_files import ConfigError, differences

_FORMAT = "longshot 1"


def run_training(config: Config, process: Process, resume: str | None = None) -> None:
    """Train as `config` says, evaluate, and print the table; every process of the run calls this.

    Args:
        resume: None for a new run; "auto" to go on from the newest checkpoint in the run folder, or to start if there
            is none; or the path of a checkpoint. What the folder holds of later steps is removed.

    Raises:
        ConfigError: the run folder holds another run, or the configuration does not fit data, machine or checkpoint.
        DataError, CheckpointError, FloatingPointError: with what is wrong, where, and what to do.
    """
    folder = Path(config.output)
    state = from_rank_zero(_state_to_resume(folder, resume) if process.rank == 0 else None)
    _set_seed(config)
    data = build_data(config, process)
    schedule = build_schedule(config, data.stream)
    per_pass = images_per_pass(config, process)
    evaluation = build_evaluation(config, data.val, data.classes, process)
    run = build_run(config, data.classes, process)
    warnings = _restore(run, state, data, config) if state else []
    if process.rank == 0:
        later = discard_later(folder / "checkpoints", run.step)
        warnings += [f"removed {path}, since the run goes on from step {run.step}" for path in later]
    log = RunLog(
        folder, step=run.step, frequencies=data.classes.frequencies,
        log_every=config.train.log_every, enabled=process.rank == 0,
    )  # fmt: skip
    warnings += [*evaluation.caveats(), *_batch_norm_caveats(config, per_pass)]
    _introduce(log, config, data, run, schedule.total_steps, warnings)
    save = partial(_save, run, data, config, process)
    evaluate = partial(_evaluate, run, evaluation, log, data, config)
    every = schedule.evaluate_every
    due = run.step >= schedule.total_steps or (every and run.step > 0 and run.step % every == 0)
    # A run may have been stopped between a checkpoint and the evaluation of the same step.
    if from_rank_zero(due and run.step not in log.evaluations()):
        evaluate()
    batches = build_training_loader(config, data, process, first=run.step, total=schedule.total_steps)
    train(
        run, batches, process,
        total_steps=schedule.total_steps, learning_rate=schedule.learning_rate,
        images_per_pass=per_pass, precision=config.train.precision, clip_norm=config.optimizer.clip_norm,
        log=log, save=save, evaluate=evaluate, save_every=schedule.save_every, evaluate_every=every,
    )  # fmt: skip
    _conclude(log)
    log.close()


def _state_to_resume(folder: Path, resume: str | None) -> dict | None:
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


def _set_seed(config: Config) -> None:
    torch.manual_seed(config.seed)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _save(run: Run, data: Data, config: Config, process: Process) -> None:
    """Write a checkpoint; returns when it is there, in every process."""
    if process.rank == 0:
        folder = Path(config.output) / "checkpoints"
        save_checkpoint(step_path(folder, run.step), _content(run, data, config))
        prune(folder, config.train.keep_checkpoints)
    barrier()


def _evaluate(run: Run, evaluation: Evaluation, log: RunLog, data: Data, config: Config) -> None:
    """Evaluate, write the result down, and draw detections if the configuration asks for pictures."""
    share_buffers(run.evaluated_network)
    result = evaluation.run(run.evaluated_network)
    if result is not None:
        _record(log, run.step, result, config.eval.best_metric)
        if config.eval.pictures:
            _show(log, run.step, build_pictures(config, data, run.evaluated_network))


def _content(run: Run, data: Data, config: Config) -> dict:
    """What a checkpoint holds: enough to go on, and enough to use the model without anything else."""
    return {
        "format": _FORMAT,
        "config": config.model_dump(mode="json"),
        "classes": data.classes._asdict(),
        **run.state_dict(),
    }


def _restore(run: Run, state: dict, data: Data, config: Config) -> list[str]:
    """Put a checkpoint's state into `run`; returns a warning for each option that has changed."""
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            f"--resume: found format {state.get('format')!r}, expected {_FORMAT!r}: not a checkpoint of a training run. "
            "To start from a detector's weights, set model.weights"
        )
    theirs = state["classes"]
    data.classes.check_same(theirs["ids"], theirs["names"], here="the training set", there="the checkpoint to resume")
    changes = differences(state["config"], config.model_dump(mode="json"))
    another = "--resume: the checkpoint is of another model, loss or optimizer"
    if state["config"]["optimizer"]["name"] != config.optimizer.name:
        raise CheckpointError(f"{another}: {'; '.join(c for c in changes if c.startswith('optimizer.'))}")
    try:
        run.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        told = [c for c in changes if c.startswith(("model.", "loss.", "optimizer."))]
        raise CheckpointError(f"{another}: {'; '.join([*told, shorten(str(error), 300)])}") from error
    return [f"resumed with a changed configuration: {change}" for change in changes]


def _batch_norm_caveats(config: Config, images_per_pass: int) -> list[str]:
    norm, batch = config.model.backbone.norm, config.train.batch_size
    if norm != "bn" or images_per_pass == batch:
        return []
    return [
        f"model.backbone.norm bn takes its statistics from the {images_per_pass} images of one pass of one process, so "
        f"that the result depends on how the batch of {batch} is divided; with gn and frozen_bn it does not"
    ]


def _introduce(log: RunLog, config: Config, data: Data, run: Run, total_steps: int, warnings: list[str]) -> None:
    """Write down what is about to be trained, on what, with what."""
    if not log.enabled:
        return
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (log.folder / "config.yaml").write_text(resolved, encoding="utf-8")
    (log.folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
    log.say(resolved)
    for warning in warnings:
        log.say(f"warning: {warning}")
    log.say(describe(data))
    parameters = sum(p.numel() for p in run.network.parameters() if p.requires_grad)
    log.say(
        f"{parameters / 1e6:.2f} M trainable parameters; steps {run.step} to {total_steps}; run folder {log.folder}"
    )


def _record(log: RunLog, step: int, result: dict, best_metric: str) -> None:
    """Write an evaluation down, and keep its checkpoint if it is the best so far."""
    (log.folder / "metrics.json").write_text(json.dumps({"step": step, **result}, indent=1) + "\n", encoding="utf-8")
    log.say(f"step {step}\n{table(result)}")
    checkpoint = step_path(log.folder / "checkpoints", step)
    best_before = max((record[best_metric] or 0.0 for record in log.evaluations().values()), default=0.0)
    if (result[best_metric] or 0.0) >= best_before and checkpoint.exists():
        mark_best(checkpoint)
    # Last: a resumed run evaluates this step again unless it finds the record.
    log.evaluation(step, {key: value for key, value in result.items() if isinstance(value, float | None)})


def _show(log: RunLog, step: int, picture: np.ndarray) -> None:
    path = log.folder / "pictures" / f"step_{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)
    log.picture(step, "detections", picture)
    log.say(f"detections beside ground truth: {path}")


def _conclude(log: RunLog) -> None:
    """The last words: the table, a picture to look at, the command that shows the curves."""
    if not log.enabled:
        return
    log.say(f"\n{table(json.loads((log.folder / 'metrics.json').read_text(encoding='utf-8')))}")
    pictures = sorted((log.folder / "pictures").glob("*.png"))
    if pictures:
        log.say(f"detections beside ground truth: {pictures[-1]}")
    log.say(f"curves and pictures: tensorboard --logdir {log.folder}")
