"""The training loop, and one optimizer step. N images, R_l anchors on level l, K classes."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from datasets.loader import Batch, Targets

from ..distributed import Process, all_sum
from ..model.retinanet import RetinaNet
from .criterion import Criterion
from .optim import set_learning_rate
from .run_log import RunLog

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """Everything that changes while training goes on, and so everything that a checkpoint must hold."""

    network: RetinaNet
    criterion: Criterion
    optimizer: Optimizer
    scaler: GradScaler  # disabled unless precision is fp16
    ema: AveragedModel | None = None
    step: int = 0  # optimizer steps done

    def state_dict(self) -> dict:
        """The state as tensors and plain values."""
        return {
            "step": self.step,
            "model": self.network.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go back to a state which `state_dict` returned, of a run with the same model, loss and optimizer.

        The optimizer's settings (weight decay, momentum) stay those of this run; averaging and loss scaling begin here
        if the other run had none.
        """
        self.step = state["step"]
        self.network.load_state_dict(state["model"])
        if self.ema and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        elif self.ema:
            self.ema.module.load_state_dict(state["model"])
        self.criterion.load_state_dict(state["criterion"])
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])  # takes the other run's settings too
        for group, setting in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(setting)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])

    @property
    def evaluated_network(self) -> RetinaNet:
        """The network to evaluate and to hand out: the averaged one, if there is one."""
        return self.ema.module if self.ema else self.network


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
    evaluate_every: int | None,
) -> None:
    """Train from `run.step` to `total_steps`, in place. Saves and evaluates at the end, whatever the intervals.

    What is evaluated is saved first: it may be the best, and evaluating it may take long.

    Args:
        batches: this process's share of the batches of steps run.step, run.step + 1, …
        total_steps: of the whole run, the steps done before included.
        learning_rate: of a step.
        images_per_pass: images of one forward and backward pass; divides the images of a batch.
        precision: of the network; fp16 scales its gradients. Losses are computed in float32.
        clip_norm: largest L2 norm of the whole gradient; None leaves it as it is.
        compiled: run the network through torch.compile.
        save, evaluate: called by every process, after the step is counted; both may look at `run`.
        save_every, evaluate_every: steps; evaluate_every None: only at the end.

    Raises:
        FloatingPointError: on all processes, before the weights change, if a loss or gradient is not finite.
    """
    model = parallel(run.network, process)
    if compiled:
        model = torch.compile(model)
    run.network.train()
    for batch in log.progress(batches, first=run.step, total=total_steps):
        rate = learning_rate(run.step)
        set_learning_rate(run.optimizer, rate)
        numbers = optimize(
            run, model, batch, process, images_per_pass=images_per_pass, precision=precision, clip_norm=clip_norm
        )
        run.step += 1
        log.training(run.step, {**numbers, "learning_rate": rate}, run.criterion.classification)
        due = run.step == total_steps or (evaluate_every and run.step % evaluate_every == 0)
        if due or run.step % save_every == 0:
            save()
        if due:
            evaluate()
            run.network.train()


def optimize(
    run: Run,
    model: nn.Module,
    batch: Batch,
    process: Process,
    *,
    images_per_pass: int,
    precision: Literal["fp32", "bf16", "fp16"],
    clip_norm: float | None,
) -> dict[str, float]:
    """One optimizer step on a batch, in passes; returns the losses of the whole step and the gradient's norm.

    All images are matched first, so that the positives of all passes and processes are counted before the first loss:
    passes and processes then add up to the gradient of the big batch.

    Args:
        run: changed in place; its step is left to the caller.
        model: `run.network`, wrapped by `parallel`.
        batch: this process's share of the step.
        images_per_pass, precision, clip_norm: see `train`.

    Raises:
        FloatingPointError: on all processes, before the weights change, if a loss or gradient is not finite.
    """
    run.criterion.begin_step()
    run.optimizer.zero_grad()
    anchors = run.network.anchors(batch.padded_size)
    passes = list(_passes(batch, images_per_pass, process.device))
    assignments = [run.criterion.assign(anchors, targets, sizes) for _, targets, sizes in passes]
    positives = all_sum(torch.tensor(float(sum(len(a.boxes) for a in assignments)), device=process.device))
    sums: dict[str, Tensor] = {}
    for i, ((images, _, _), assignment) in enumerate(zip(passes, assignments, strict=True)):
        synchronize = process.world_size == 1 or i == len(passes) - 1
        with nullcontext() if synchronize else model.no_sync():
            pixels = run.network.preprocess(images, batch.padded_size)
            with torch.autocast(process.device.type, _AUTOCAST[precision], enabled=precision != "fp32"):
                outputs = model(pixels)
            losses = run.criterion(outputs, anchors, assignment, positives.clamp(min=1))
            del outputs  # or the logits would stay while the layers below go backward
            # DDP averages gradients over processes, but the normalizer is already that of all of them.
            run.scaler.scale(sum(losses.values()) * process.world_size).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach()
    values = all_sum(torch.stack([loss.float() for loss in sums.values()])).tolist()
    numbers = dict(zip(sums, values, strict=True))
    numbers["gradient_norm"] = _step(run, numbers, batch, process, precision, clip_norm)
    return {"loss": sum(values), **numbers, "positives": positives.item()}


def parallel(network: nn.Module, process: Process) -> nn.Module:
    """The network as it is in a single process, else wrapped so that backward averages gradients over processes."""
    if process.world_size == 1:
        return network
    return DistributedDataParallel(
        network, device_ids=[process.device.index] if process.device.type == "cuda" else None
    )


def _passes(batch: Batch, size: int, device: torch.device) -> Iterator[tuple[list[Tensor], list[Targets], list]]:
    for start in range(0, len(batch.images), size):
        images = batch.images[start : start + size]
        targets = [Targets(*(t.to(device) for t in target)) for target in batch.targets[start : start + size]]
        yield images, targets, [tuple(image.shape[-2:]) for image in images]


def _step(
    run: Run, losses: dict[str, float], batch: Batch, process: Process, precision: str, clip_norm: float | None
) -> float:
    """Update weights, EFL's state and the average from the gradients that are there; returns the gradient's norm."""
    scale = run.scaler.get_scale()
    run.scaler.unscale_(run.optimizer)
    parameters = [p for p in run.network.parameters() if p.requires_grad]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf).item()
    # Losses and gradients are sums over all processes here, so all of them come to the same verdict.
    # Under fp16 an overflowing gradient is ordinary: the scaler leaves the step out and tries a smaller scale. A gradient
    # that overflows without any scale never will be finite.
    finite = math.isfinite(norm)
    ordinary = precision == "fp16" and scale >= 1
    if not all(map(math.isfinite, losses.values())) or not (finite or ordinary):
        raise FloatingPointError(
            f"step {run.step}: loss {losses}, norm of the gradient {norm}: not finite. Process {process.rank} had the "
            f"images {batch.image_ids}. The weights were not changed and no checkpoint was written; resume from the last "
            "one with a lower learning rate, a longer warm-up, optimizer.clip_norm or fp32, or look at these images"
        )
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.criterion.after_backward(gradient_scale=scale * process.world_size, step_taken=finite)
    if run.ema and finite:
        run.ema.update_parameters(run.network)
    return norm
