"""The training loop."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch

from ...datasets.loading.batches import Batch
from ..system.distributed import Process
from ..training.nonfinite import MOST_IN_A_ROW, NonFiniteStep
from ..training.optim import set_learning_rate
from ..training.state import Run, StopRequest
from ..training.step import optimize, parallel
from .log import RunLog


def train(
    run: Run,
    batches: Iterable[Batch],
    process: Process,
    *,
    total_steps: int,
    learning_rate: Callable[[int], float],
    images_per_pass: int,
    precision: Literal["fp32", "bf16", "fp16"],
    clip_norm: float | None,
    compiled: bool,
    log: RunLog,
    save: Callable[[], None],
    evaluate: Callable[[], None],
    save_every: int,
    evaluate_every: float | None,
    stop: StopRequest,
    on_nonfinite: Literal["stop", "skip"] = "stop",
    inspect: Callable[[NonFiniteStep, Batch], None] | None = None,
) -> None:
    """Train from `run.step` to `total_steps`, in place. Saves and evaluates at the end, whatever the intervals.

    What is evaluated is saved first: it may be the best, and evaluating it may take long. If the processes are to stop,
    saves after the step, evaluates nothing more and returns with `stop.agreed`.

    Args:
        batches: this process's share of the batches of steps run.step, run.step + 1, …
        total_steps: of the whole run, the steps done before included.
        learning_rate: of a step.
        images_per_pass: images of one forward and backward pass; divides the images of a batch.
        precision: of the network; fp16 scales its gradients. Losses are computed in float32.
        clip_norm: largest L2 norm of the whole gradient; None leaves it as it is.
        compiled: run the network through torch.compile.
        save, evaluate: called by every process, after the step is counted; both may look at `run`.
        save_every, evaluate_every: steps; evaluate_every may be a fraction (see `is_due`), or None: only at the end.
        stop: asked to stop by whoever holds it, on whichever process.
        on_nonfinite: "skip" goes on with the next batch, MOST_IN_A_ROW times in a row.
        inspect: called by every process with a step that is not finite, before it is left out or ends the run.

    Raises:
        NonFiniteStep: on all processes, before the weights change, if a loss, a gradient or the state is not finite, and
            that is not to be skipped, or too often.
    """
    model = parallel(run.network, process)
    if compiled:
        model = torch.compile(model)
    run.network.train()
    for batch in log.progress(batches, first=run.step, total=total_steps):
        rate = learning_rate(run.step)
        set_learning_rate(run.optimizer, rate)
        try:
            numbers = optimize(
                run, model, batch, process,
                images_per_pass=images_per_pass, precision=precision, clip_norm=clip_norm, stop=stop,
            )  # fmt: skip
            run.skipped_in_a_row = 0
        except NonFiniteStep as sick:
            if inspect:
                inspect(sick, batch)
            if on_nonfinite == "stop" or run.skipped_in_a_row == MOST_IN_A_ROW:
                raise
            run.skipped, run.skipped_in_a_row = run.skipped + 1, run.skipped_in_a_row + 1
            numbers = sick.numbers | {"skipped": run.skipped}
        run.step += 1
        log.training(run.step, {**numbers, "learning_rate": rate}, run.criterion.classification)
        due = run.step == total_steps or is_due(run.step, evaluate_every)
        if due or stop.agreed or run.step % save_every == 0:
            save()
        if stop.agreed:
            return
        if due:
            evaluate()
            run.network.train()


def is_due(step: int, every: float | None) -> bool:
    """Whether step is the first that is not before a multiple of `every`; never for None.

    Epochs are seldom a whole number of steps. If six of them were rounded to steps, the fourth evaluation of a run of 24
    could come a step before its end, and the same model, nearly, would be evaluated twice.
    """
    return every is not None and int(step / every) > int((step - 1) / every)
