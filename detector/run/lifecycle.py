"""A training run: what is set up before its first step, and what is done between steps."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ...datasets.loading.batches import Batch
from ...datasets.loading.dataset import Splits
from ..build import Schedule, build_evaluation, build_pictures, build_run, build_schedule
from ..build_data import build_data, build_training_loader, images_per_pass
from ..config.schema import Config
from ..errors import CheckpointError
from ..evaluation.evaluate import Evaluation
from ..system.distributed import Process, elastic_job, from_rank_zero, on_rank_zero, share_buffers
from ..system.stopping import StopRequest, stop_on_signals
from ..training.state import Run
from ..training.step import MOST_IN_A_ROW, NonFiniteStep, parallel
from . import folder, resume
from .initial_weights import start_from
from .lock import RunLock
from .log import RunLog, warnings_in


@dataclass
class Session:
    """A run under way: all that `loop.train` works with. Every process has one, and calls its methods at the same steps."""

    config: Config
    process: Process
    run: Run  # what changes, and so what checkpoints hold
    model: nn.Module  # run.network, wrapped for several processes, compiled if configured
    data: Splits
    schedule: Schedule
    images_per_pass: int
    evaluation: Evaluation
    log: RunLog
    lock: RunLock
    stop: StopRequest
    save_failed: bool = False

    def batches(self) -> Iterator[Batch]:
        """This process's share of the batches of the steps that are left, with a progress bar."""
        first, total = self.run.step, self.schedule.total_steps
        loader = build_training_loader(self.config, self.data, self.process, first=first, total=total)
        return self.log.progress(loader, first=first, total=total)

    def evaluation_was_missed(self) -> bool:
        """Whether the run was stopped between a checkpoint and the evaluation of the same step."""
        due = self.run.step > 0 and self.schedule.evaluates_after(self.run.step)
        return from_rank_zero(due and self.run.step not in self.log.evaluations())

    def evaluate(self) -> None:
        """Evaluate, write the result down, and draw detections if the configuration asks for pictures."""
        run, network = self.run, self.run.evaluated_network
        share_buffers(network)
        result = self.evaluation.run(network)
        if result is not None:
            self.lock.check()  # it may have taken long
            folder.record(self.log, run, result, self.config.eval.best_metric)
            if self.config.eval.pictures:
                folder.save_picture(self.log, run.step, build_pictures(self.config, self.data, network))

    def save(self) -> None:
        """Write a checkpoint; returns when it is there, or cannot be written, in every process.

        A write that fails (a full disk, say) is warned of, and the run goes on with the checkpoints that are there: it is
        tried again at the next interval, and by `finish` for the last.

        Raises ConfigError, in every process, if another run has taken the folder over.
        """
        self.save_failed = on_rank_zero(self.process, self._save_or_warn)

    def _save_or_warn(self) -> bool:
        try:
            self._write_checkpoint()
        except CheckpointError as error:
            step = self.run.step
            self.log.write(f"warning: no checkpoint of step {step}: {error}. Training goes on; the one before it stays")
            return True
        return False

    def _write_checkpoint(self) -> None:
        self.lock.check()
        folder.write_checkpoint(self.log, self.run, self.data.classes, self.config)

    def skip_or_raise(self, step: NonFiniteStep, batch: Batch) -> dict[str, float]:
        """Keep a step that is not finite for inspection; returns its numbers if it may be left out, else raises it."""
        run, train = self.run, self.config.train
        self.lock.check()
        folder.keep_nonfinite_step(self.log, run, self.config, self.process, step, batch)
        if train.on_nonfinite == "stop" or run.skipped_in_a_row == MOST_IN_A_ROW:
            raise step
        run.skipped, run.skipped_in_a_row = run.skipped + 1, run.skipped_in_a_row + 1
        return step.numbers | {"skipped": run.skipped}

    def finish(self) -> None:
        """Write what is left to write, and how the run ended.

        Raises CheckpointError, in every process, if the last checkpoint still cannot be written.
        """
        if self.save_failed:
            on_rank_zero(self.process, self._write_checkpoint)
        if not self.stop.agreed:
            folder.conclude(self.log, self.run.step)
        elif self.process.rank == 0:
            resume.mark_stopped(self.log.folder, self.run.step, self.stop.signal)
            self.log.write(f"asked to stop, saved step {self.run.step}: the same command goes on from there")


@contextmanager
def open_run(config: Config, process: Process, resume_from: str | None) -> Iterator[Session]:
    """Hold the run folder and set up all that training needs, at the step to go on from; see `loop.train`."""
    stop, output = StopRequest(), Path(config.output)
    with RunLock(output, on_loss=stop.ask) as lock:
        state = on_rank_zero(process, partial(_claim, lock, config, resume_from))
        _set_seed(config)
        data = build_data(config, process)
        evaluation = build_evaluation(config, data.val, data.classes, process)
        run = build_run(config, data.classes, process, num_images=len(data.train.annotations.image_ids))
        notes = []
        if state:
            notes = resume.restore(run, state, data, config)
        elif config.init_from:
            notes = [start_from(run, config.init_from, data.classes)]
        del state  # a copy of all weights, gone before training needs the memory
        schedule, per_pass = build_schedule(config, data.stream), images_per_pass(config, process)
        if process.rank == 0:
            notes += resume.discard_future(output, run.step)
        notes += [f"warning: {caveat}" for caveat in _caveats(config, evaluation, per_pass, process)]
        log = RunLog(
            output, run.step, data.classes.frequencies, config.train.log_every,
            enabled=process.rank == 0, may_write=lock.is_ours,
        )  # fmt: skip
        model = parallel(run.network, process)
        if config.train.compile:
            model = torch.compile(model)
        with warnings_in(log, process.rank):
            folder.introduce(log, config, data, run, schedule.total_steps, notes)
            (output / resume.MARKER).unlink(missing_ok=True)
            with stop_on_signals(
                stop
            ):  # to the end: a second signal must not come between the checkpoint and the marker
                yield Session(config, process, run, model, data, schedule, per_pass, evaluation, log, lock, stop)
        log.close()


def _claim(lock: RunLock, config: Config, resume_from: str | None) -> dict | None:
    """Hold the run folder; returns the state to go on from."""
    output = Path(config.output)
    find = partial(resume.what_to_resume, output, resume_from, config, elastic_job())
    find()  # refuses at once what need not wait for the lock
    lock.acquire(goes_on=resume.is_of_job(output, elastic_job()))
    return resume.state_to_resume(output, find())


def _set_seed(config: Config) -> None:
    torch.manual_seed(config.seed)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _caveats(config: Config, evaluation: Evaluation, per_pass: int, process: Process) -> Iterable[str]:
    """What may surprise about this configuration."""
    test = config.test
    yield from evaluation.protocol.caveats(
        score_threshold=test.score_threshold, detections_per_image=test.detections_per_image
    )
    norm, batch = config.model.backbone.norm, config.train.batch_size
    together = {"bn": per_pass, "sync_bn": per_pass * process.world_size}.get(norm, batch)
    if together != batch:
        yield (
            f"model.backbone.norm {norm} takes its statistics from {together} images at a time, so that the result depends "
            f"on how the batch of {batch} is divided; with gn and frozen_bn it does not"
        )
    if config.schedule.unit == "steps" and config.train.checkpoint_every < 10:
        yield (
            f"schedule.unit is steps, so that train.checkpoint_every {config.train.checkpoint_every:g} and eval.every are "
            "steps too"
        )
