"""The training loop, and one optimizer step. N images, R_l anchors on level l, K classes."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...datasets.loading.batches import Batch
from ...datasets.loading.dataset import Targets
from ..system.distributed import Process, all_sum
from .nonfinite import MovingStatistics, NonFiniteStep
from .state import Run, StopRequest

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def optimize(
    run: Run,
    model: nn.Module,
    batch: Batch,
    process: Process,
    *,
    images_per_pass: int,
    precision: Literal["fp32", "bf16", "fp16"],
    clip_norm: float | None,
    stop: StopRequest | None = None,
) -> dict[str, float]:
    """One optimizer step on a batch, in passes; returns the losses of the whole step and the gradient's norm.

    All images are matched first, so that the positives of all passes and processes are counted before the first loss:
    passes and processes then add up to the gradient of the big batch (nearly, where the criterion weights boxes).

    Args:
        run: changed in place; its step is left to the caller.
        model: `run.network`, wrapped by `parallel`.
        batch: this process's share of the step.
        images_per_pass, precision, clip_norm: see `train`.
        stop: learns in `agreed` whether any process was asked to stop.

    Raises:
        NonFiniteStep: on all processes, before anything changes, if a loss, a gradient or the state is not finite.
    """
    run.criterion.begin_step()
    run.optimizer.zero_grad()
    statistics = MovingStatistics.of(run.network)
    losses, counts = _backward(run, model, batch, process, images_per_pass, precision)
    scale = run.scaler.get_scale()
    run.scaler.unscale_(run.optimizer)
    parameters = [p for p in run.network.parameters() if p.requires_grad]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf)
    losses, norm, state = _agree(losses, norm, run.norm(), stop)
    positives, unreadable = counts.tolist()
    run.unreadable += int(unreadable)
    finite = math.isfinite(norm)
    # By what all processes have agreed on: the scaler itself looks at the gradient of its own process alone.
    run.scaler.update(None if finite else scale / 2)
    # Under fp16 an overflowing gradient is ordinary: the step is left out, and a smaller scale is tried. A gradient that
    # overflows without any scale never will be finite.
    ordinary = precision == "fp16" and scale >= 1
    if not all(map(math.isfinite, [*losses.values(), state])) or not (finite or ordinary):
        statistics.restore()
        raise NonFiniteStep(run.step, losses, norm, state, rank=process.rank, image_ids=batch.image_ids)
    if finite:
        run.optimizer.step()  # not by the scaler: the gradient is unscaled
    run.criterion.after_backward(gradient_scale=scale * process.world_size, step_taken=finite)
    if run.ema and finite:
        run.ema.update_parameters(run.network)
    numbers = {"loss": sum(losses.values()), **losses, "gradient_norm": norm, "positives": positives}
    return numbers | ({"unreadable": run.unreadable} if run.unreadable else {})


def parallel(network: nn.Module, process: Process) -> nn.Module:
    """The network as it is in a single process, else wrapped so that backward averages gradients over processes."""
    if process.world_size == 1:
        return network
    return DistributedDataParallel(
        network, device_ids=[process.device.index] if process.device.type == "cuda" else None
    )


def _passes(batch: Batch, size: int, device: torch.device) -> Iterator[tuple[list[Tensor], list[Targets], tuple]]:
    """Images, targets on the device, and padded size of each pass."""
    for start in range(0, len(batch.images), size):
        images = batch.images[start : start + size]
        targets = [Targets(*(t.to(device) for t in target)) for target in batch.targets[start : start + size]]
        yield images, targets, batch.padded_sizes[start]


def _backward(
    run: Run, model: nn.Module, batch: Batch, process: Process, images_per_pass: int, precision: str
) -> tuple[dict[str, Tensor], Tensor]:
    """This process's share of the losses, their gradients left in the parameters; and two counts over all processes.

    These are of the positives, and of the images that could not be read: (2,) float32.
    """
    passes = list(_passes(batch, images_per_pass, process.device))
    anchors = [run.network.anchors(padded_size) for _, _, padded_size in passes]
    assignments = [
        run.criterion.assign(of_pass, targets, [tuple(image.shape[-2:]) for image in images])
        for of_pass, (images, targets, _) in zip(anchors, passes, strict=True)
    ]
    own = [float(sum(len(a.boxes) for a in assignments)), float(len(batch.unreadable))]
    counts = all_sum(torch.tensor(own, device=process.device))
    sums: dict[str, Tensor] = {}
    for i, (images, _, padded_size) in enumerate(passes):
        synchronize = process.world_size == 1 or i == len(passes) - 1
        with nullcontext() if synchronize else model.no_sync():
            pixels = run.network.preprocess(images, padded_size)
            with torch.autocast(process.device.type, _AUTOCAST[precision], enabled=precision != "fp32"):
                outputs = model(pixels)
            losses = run.criterion(outputs, anchors[i], assignments[i], counts[0].clamp(min=1))
            del outputs  # or the logits would stay while the layers below go backward
            # DDP averages gradients over processes, but the normalizer is already that of all of them.
            run.scaler.scale(sum(losses.values()) * process.world_size).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach()
    return sums, counts


def _agree(
    losses: dict[str, Tensor], norm: Tensor, state: Tensor, stop: StopRequest | None
) -> tuple[dict[str, float], float, float]:
    """The losses of all processes, the norms of gradient and state; also settles whether to stop. One all-reduce.

    What is not finite on one process is not finite on all, so that all of them come to the same verdict.
    """
    asked = norm.new_tensor(float(stop is not None and stop.requested))
    own = torch.stack([*(loss.float() for loss in losses.values()), asked.float(), norm.float(), state.float()])
    *values, norm_sum, state_sum, own_norm, own_state = torch.cat([all_sum(own.clone()), own[-2:]]).tolist()
    if stop is not None:
        stop.agreed = values[-1] > 0
    return (
        dict(zip(losses, values[:-1], strict=True)),
        own_norm if math.isfinite(norm_sum) else norm_sum,
        own_state if math.isfinite(state_sum) else state_sum,
    )
