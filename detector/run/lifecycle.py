"""A whole training run, from a configuration to the table at the end."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from ...datasets.loading.dataset import Splits
from ..build import Schedule, build_evaluation, build_pictures, build_run, build_schedule
from ..build_data import build_data, build_training_loader, images_per_pass
from ..config.schema import Config
from ..evaluation.evaluate import Evaluation
from ..system.distributed import Process, from_rank_zero, on_rank_zero, share_buffers
from ..system.processes import elastic_job
from ..training.state import Run, StopRequest
from . import folder as run_folder
from . import resume as resuming
from .initial_weights import start_from
from .lock import Lease
from .log import RunLog
from .loop import is_due, train
from .preemption import stop_on_signals


def run_training(config: Config, process: Process, resume: str | None = None) -> bool:
    """Train as `config` says, evaluate, and print the table; every process of the run calls this.

    Args:
        resume: None for a new run, or one that goes on without being asked (see `resuming.what_to_resume`); "auto" to go
            on from the newest checkpoint in the run folder, or to start if there is none; or the path of a checkpoint.
            What the folder holds of later steps is removed.

    Returns:
        Whether the run is complete: False if a process was asked to stop (see `preemption`) and it can be gone on with.

    Raises:
        ConfigError: the run folder holds another run, or the configuration does not fit data, machine or checkpoint.
        DataError, CheckpointError, FloatingPointError: with what is wrong, where, and what to do.
    """
    stop = StopRequest()
    with Lease(Path(config.output), job=elastic_job(), on_loss=stop.ask) as lease:
        state = on_rank_zero(process, partial(_claim, lease, config, resume))
        _set_seed(config)
        data = build_data(config, process)
        evaluation = build_evaluation(config, data.val, data.classes, process)
        run = build_run(config, data.classes, process, num_images=len(data.train.annotations.image_ids))
        if state:
            notes = resuming.restore(run, state, data, config)
        else:
            notes = [start_from(run, config.init_from, data.classes)] if config.init_from else []
        del state  # a copy of all weights, gone before training needs the memory
        return _run(run, config, data, evaluation, process, lease, stop, notes)


def _claim(lease: Lease, config: Config, resume: str | None) -> dict | None:
    """Hold the run folder; returns the state to go on from."""
    folder = Path(config.output)
    find = partial(resuming.what_to_resume, folder, resume, config, elastic_job())
    find()  # refuses at once what need not wait for the lease
    lease.acquire()
    return resuming.state_to_resume(folder, find())


def _run(
    run: Run, config: Config, data: Splits, evaluation: Evaluation, process: Process, lease: Lease, stop: StopRequest,
    notes: list[str],
) -> bool:  # fmt: skip
    """Train, and say and write what there is to tell; returns whether the run is complete."""
    folder = Path(config.output)
    schedule, per_pass = build_schedule(config, data.stream), images_per_pass(config, process)
    if process.rank == 0:
        notes += resuming.discard_future(folder, run.step)
    log = RunLog(
        folder, step=run.step, frequencies=data.classes.frequencies,
        log_every=config.train.log_every, enabled=process.rank == 0,
    )  # fmt: skip
    notes += [f"warning: {caveat}" for caveat in (*evaluation.caveats(), *_caveats(config, per_pass, process))]
    with _warnings_in(log):
        run_folder.introduce(log, config, data, run, schedule.total_steps, notes)
        (folder / resuming.MARKER).unlink(missing_ok=True)
        save = run_folder.Saver(run, data, config, process, lease, log)
        with stop_on_signals(stop):  # a second signal must not come between the checkpoint and the marker
            _train(run, config, data, schedule, evaluation, process, log, save, stop)
            save.finish()
            if stop.agreed and process.rank == 0:
                resuming.mark_stopped(folder, run.step, stop.signal)
                log.say(f"asked to stop, saved step {run.step}: the same command goes on from there")
        if not stop.agreed:
            run_folder.conclude(log, run.step)
    log.close()
    return not stop.agreed


def _train(
    run: Run, config: Config, data: Splits, schedule: Schedule, evaluation: Evaluation, process: Process, log: RunLog,
    save: run_folder.Saver, stop: StopRequest,
) -> None:  # fmt: skip
    """Train to the end, with the evaluations on the way, among them one that was missed when the run was stopped."""
    evaluate = partial(_evaluate, run, evaluation, log, data, config)
    every = schedule.evaluate_every
    due = run.step >= schedule.total_steps or (run.step > 0 and is_due(run.step, every))
    # A run may have been stopped between a checkpoint and the evaluation of the same step.
    if from_rank_zero(due and run.step not in log.evaluations()):
        evaluate()
    batches = build_training_loader(config, data, process, first=run.step, total=schedule.total_steps)
    train(
        run, batches, process,
        total_steps=schedule.total_steps, learning_rate=schedule.learning_rate,
        images_per_pass=images_per_pass(config, process), precision=config.train.precision,
        clip_norm=config.optimizer.clip_norm, compiled=config.train.compile,
        log=log, save=save, evaluate=evaluate, save_every=schedule.save_every, evaluate_every=every,
        stop=stop, on_nonfinite=config.train.on_nonfinite,
        inspect=partial(run_folder.keep_sick_step, run, config, process, log),
    )  # fmt: skip


class _Teller(logging.Handler):
    """Says warnings in the log of a run."""

    def __init__(self, log: RunLog):
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.say(f"warning: {record.getMessage()}")


@contextmanager
def _warnings_in(log: RunLog) -> Iterator[None]:
    """Say in the run's log what our packages warn of through Python's logging while the block runs."""
    handler = _Teller(log)
    logger = logging.getLogger("longshot")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _set_seed(config: Config) -> None:
    torch.manual_seed(config.seed)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _evaluate(run: Run, evaluation: Evaluation, log: RunLog, data: Splits, config: Config) -> None:
    """Evaluate, write the result down, and draw detections if the configuration asks for pictures."""
    share_buffers(run.evaluated_network)
    result = evaluation.run(run.evaluated_network)
    if result is not None:
        if run.unreadable:
            log.say(f"warning: in place of {run.unreadable} images that could not be read others were shown so far")
        run_folder.record(log, run.step, result, config.eval.best_metric)
        run_folder.tell_gradient_ratio(log, run.criterion.classification)
        if config.eval.pictures:
            run_folder.show(log, run.step, build_pictures(config, data, run.evaluated_network))


def _caveats(config: Config, images_per_pass: int, process: Process) -> list[str]:
    """What may surprise about this configuration."""
    caveats = []
    norm, batch = config.model.backbone.norm, config.train.batch_size
    together = {"bn": images_per_pass, "sync_bn": images_per_pass * process.world_size}.get(norm, batch)
    if together != batch:
        caveats.append(
            f"model.backbone.norm {norm} takes its statistics from {together} images at a time, so that the result depends "
            f"on how the batch of {batch} is divided; with gn and frozen_bn it does not"
        )
    if config.schedule.unit == "steps" and config.train.checkpoint_every < 10:
        caveats.append(
            f"schedule.unit is steps, so that train.checkpoint_every {config.train.checkpoint_every:g} and eval.every are "
            "steps too"
        )
    return caveats
