"""A whole training run: the run folder, resuming, training, evaluation, and the table at the end."""

import json
import logging
from pathlib import Path

import torch
import yaml

from .build import Data, build_data, build_evaluation, build_run, build_schedule, build_training_loader
from .checkpoint import CheckpointError, load_checkpoint, mark_best, prune, save_checkpoint, saved_steps, step_path
from .config import Config
from .distributed import Process, barrier, from_rank_zero
from .evaluation.metrics import table
from .evaluation.predict import Evaluation
from .training.engine import Run, train
from .training.run_log import RunLog, environment
from .yaml_files import ConfigError

_FORMAT = "longshot 1"


def run_training(config: Config, process: Process, resume: str | None = None) -> None:
    """Train as `config` says, evaluate, and print the table; every process of the run calls this.

    Args:
        resume: None for a new run; "auto" to go on from the newest checkpoint in the run folder, or to start if there
            is none; or the path of a checkpoint of this run.

    Raises:
        ConfigError: the run folder holds another run, or the configuration does not fit data, machine or checkpoint.
        DataError, CheckpointError, FloatingPointError: with what is wrong, where, and what to do.
    """
    folder = Path(config.output)
    state = from_rank_zero(_state_to_resume(folder, resume) if process.rank == 0 else None)
    _set_seed(config)
    data = build_data(config, process)
    run = build_run(config, data.classes, process)
    if state is not None:
        _restore(run, state, data, config)
    schedule = build_schedule(config, data)
    log = RunLog(
        folder, step=run.step, frequencies=data.classes.frequencies,
        log_every=config.train.log_every, enabled=process.rank == 0,
    )  # fmt: skip
    _introduce(log, config, data, run, schedule.total_steps)
    evaluation = build_evaluation(config, data, process)
    checkpoints = folder / "checkpoints"

    def save() -> None:
        if process.rank == 0:
            save_checkpoint(step_path(checkpoints, run.step), _content(run, data, config))
            prune(checkpoints, config.train.keep_checkpoints)
        barrier()

    def evaluate() -> None:
        _evaluate(run, evaluation, log, config.eval.best_metric, checkpoints)

    # A run may have been killed between a checkpoint and the evaluation of the same step.
    due = run.step > 0 and (run.step == schedule.total_steps or run.step % (schedule.evaluate_every or run.step + 1) == 0)
    if from_rank_zero(due and run.step not in log.evaluations()):
        evaluate()
    train(
        run,
        build_training_loader(config, data, process, first=run.step, total=schedule.total_steps),
        process,
        total_steps=schedule.total_steps,
        learning_rate=schedule.learning_rate,
        images_per_pass=schedule.images_per_pass,
        precision=config.train.precision,
        clip_norm=config.optimizer.clip_norm,
        log=log,
        save=save,
        evaluate=evaluate,
        save_every=schedule.save_every,
        evaluate_every=schedule.evaluate_every,
    )
    _conclude(log, folder)
    log.close()


def _state_to_resume(folder: Path, resume: str | None) -> dict | None:
    """The content of the checkpoint to go on from, or None for a new run in a folder that is free for it."""
    if resume is not None and resume != "auto":
        return load_checkpoint(resume)
    newest_first = saved_steps(folder / "checkpoints")[::-1]
    if resume is None:
        if newest_first or (folder / "config.yaml").exists():
            raise ConfigError(
                f"{folder}: holds a run already; go on with it by --resume auto, choose another folder by output=FOLDER, "
                "or delete it"
            )
        return None
    for path in newest_first:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logging.getLogger(__name__).warning("%s; going back to the checkpoint before it", error)
    if newest_first:
        raise CheckpointError(f"{folder / 'checkpoints'}: none of its {len(newest_first)} checkpoints can be read")
    return None


def _set_seed(config: Config) -> None:
    torch.manual_seed(config.seed)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _content(run: Run, data: Data, config: Config) -> dict:
    return {"format": _FORMAT, **run.state_dict(), "config": config.model_dump(mode="json"), "classes": data.classes.plain()}


def _restore(run: Run, state: dict, data: Data, config: Config) -> None:
    if state.get("format") != _FORMAT:
        raise CheckpointError(f"--resume: format {state.get('format')!r}, expected {_FORMAT!r}: no checkpoint of a training run")
    data.classes.check_same(state["classes"], "the checkpoint")
    try:
        run.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"--resume: this checkpoint belongs to another model or optimizer: {error}") from error
    before, now = _flat(state["config"]), _flat(config.model_dump(mode="json"))
    changed = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in sorted(before | now) if before.get(key) != now.get(key)]
    if changed:
        logging.getLogger(__name__).warning("resuming with a changed configuration: %s", "; ".join(changed))


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _introduce(log: RunLog, config: Config, data: Data, run: Run, total_steps: int) -> None:
    if not log.enabled:
        return
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (log.folder / "config.yaml").write_text(resolved, encoding="utf-8")
    (log.folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
    log.say(resolved)
    log.say(data.describe())
    parameters = sum(p.numel() for p in run.network.parameters() if p.requires_grad)
    log.say(f"{parameters / 1e6:.2f} M trainable parameters; steps {run.step} to {total_steps}; run folder {log.folder}")


def _evaluate(run: Run, evaluation: Evaluation, log: RunLog, best_metric: str, checkpoints: Path) -> None:
    result = evaluation.run(run.evaluated_network)
    if result is None:  # not rank 0
        return
    values = {key: value for key, value in result.items() if isinstance(value, float | None)}
    log.evaluation(run.step, values)
    (log.folder / "metrics.json").write_text(json.dumps({"step": run.step, **result}, indent=1) + "\n", encoding="utf-8")
    log.say(f"step {run.step}\n{table(result)}")
    best = max(((r[best_metric] or 0.0), step) for step, r in log.evaluations().items())
    if best[1] == run.step and step_path(checkpoints, run.step).exists():
        mark_best(step_path(checkpoints, run.step))
    picture = evaluation.picture(run.evaluated_network)
    if picture is not None:
        path = evaluation.save_picture(picture, log.folder / "pictures" / f"step_{run.step:08d}.png")
        log.picture(run.step, "detections", picture)
        log.say(f"detections beside ground truth: {path}")


def _conclude(log: RunLog, folder: Path) -> None:
    if not log.enabled:
        return
    result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    pictures = sorted((folder / "pictures").glob("*.png"))
    log.say(f"\n{table(result)}")
    if pictures:
        log.say(f"detections beside ground truth: {pictures[-1]}")
    log.say(f"curves and pictures: tensorboard --logdir {folder}")
