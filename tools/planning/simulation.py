"""An optimizer step of the model itself on fake tensors, which have shapes and types but no content, and what it takes.

N images, R_l anchors on level l, K classes.
"""

from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from longshot.detector.model.retinanet import RetinaNet
from longshot.tools.planning.fake_loss import FakeLoss
from longshot.tools.planning.ledger import Ledger
from longshot.tools.planning.meter import (
    AVERAGE,
    BOXES,
    BUCKETS,
    FEATURES_GRADIENT,
    FORWARD,
    GRADIENTS,
    LOGITS_GRADIENT,
    LOSSES,
    OPTIMIZER,
    PIXELS,
    TARGETS,
    TEMPORARY,
    UPDATE,
    WEIGHTS,
    Flops,
    Meter,
    watch,
)


class Simulated(NamedTuple):
    """Of one optimizer step."""

    peak: Counter[str]  # bytes by account, when there are most
    peak_phase: str
    kept: Counter[str]  # bytes by component that forward leaves to backward, outputs included
    flops: Counter[str]  # of one pass, forward and backward, by component; a multiplication and an addition are two
    forward_flops: int  # of one pass
    rows: tuple[int, ...]  # R_l


def simulate_step(
    make_network: Callable[[], RetinaNet],
    make_optimizer: Callable[[nn.Module], Optimizer],
    *,
    num_images: int,
    image_size: tuple[int, int],
    precision: Literal["fp32", "bf16"],
    passes: int = 1,
    parallel: bool = False,
    averaged: bool = False,
    on_gpu: bool = True,
) -> Simulated:
    """Memory and FLOPs of a step that is not the first: the optimizer has its state.

    Args:
        num_images: of one pass, in one process.
        image_size: (height, width) of the images and, being their padded size, of the batch.
        passes: over which gradients are accumulated.
        parallel: under DistributedDataParallel, which keeps a second copy of the gradients.
        averaged: with a moving average of the weights.
        on_gpu: the optimizer goes over all weights at once, and autocast is that of GPUs; on CPUs neither is so.
    """
    network = _without_content(make_network, on_gpu)
    with FakeTensorMode():
        _to_fake(network)
        optimizer = _with_state(make_optimizer(network), on_gpu)
        ledger, flops = Ledger(PIXELS, FORWARD), Flops()
        meter = Meter(ledger, flops)
        copies = _copies(network, parallel=parallel, averaged=averaged)
        _book_what_stays(network, optimizer, copies, ledger)
        watch(network, meter)
        with ledger, flops:
            images = [torch.empty(3, *image_size, dtype=torch.uint8) for _ in range(num_images)]
            for _ in range(min(passes, 2)):  # the third pass is like the second
                meter.flops.clear()
                rows = _pass(network, images, image_size, precision, meter)
            ledger.phase, ledger.account = UPDATE, TEMPORARY
            optimizer.step()
    return Simulated(ledger.peak, ledger.peak_phase, meter.kept, meter.flops, meter.forward_flops, rows)


def _without_content(make_network: Callable[[], RetinaNet], on_gpu: bool) -> RetinaNet:
    """The network on the meta device, in training mode; GroupNorm in float32, if that is how autocast has it.

    On GPUs it is. Autocast does the same there with the interpolation of the pyramid, whose result nobody keeps.
    """
    with torch.device("meta"):
        network = make_network().train()
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    for norm in norms if on_gpu else []:
        norm.register_forward_pre_hook(lambda _, inputs: inputs[0].float())
    return network


def _to_fake(network: RetinaNet) -> None:
    """Fake tensors on a CPU in place of those on the meta device, for which there is no autocast."""
    for module in network.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(_fake(old), requires_grad=old.requires_grad))
        for name, old in list(module.named_buffers(recurse=False)):
            setattr(module, name, _fake(old))


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def _with_state(optimizer: Optimizer, at_once: bool) -> Optimizer:
    """The optimizer after a step."""
    for group in optimizer.param_groups:
        group["foreach"] = at_once
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _copies(network: RetinaNet, *, parallel: bool, averaged: bool) -> dict[str, list[Tensor]]:
    """What others keep that has the size of the network, by account."""
    weights = [*network.parameters(), *network.buffers()]
    copied = {AVERAGE: weights if averaged else [], BUCKETS: _trained(network) if parallel else []}
    return {account: [torch.empty_like(tensor) for tensor in tensors] for account, tensors in copied.items()}


def _book_what_stays(network: RetinaNet, optimizer: Optimizer, copies: dict[str, list[Tensor]], ledger: Ledger) -> None:
    """Book what is there before the step begins, and gradients of weights as soon as they are there."""
    ledger.book([*network.parameters(), *network.buffers()], WEIGHTS)
    states = (value for state in optimizer.state.values() for value in state.values())
    ledger.book((value for value in states if isinstance(value, Tensor)), OPTIMIZER)
    for account, tensors in copies.items():
        ledger.book(tensors, account)
    for parameter in _trained(network):
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.book([p.grad], GRADIENTS))


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _pass(
    network: RetinaNet, images: list[Tensor], size: tuple[int, int], precision: str, meter: Meter
) -> tuple[int, ...]:
    """Forward, a fake loss, backward; returns R_l."""
    ledger = meter.ledger
    ledger.phase, ledger.account = FORWARD, PIXELS
    pixels = network.preprocess(images, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        outputs = network(pixels)
    meter.end_forward()
    ledger.phase, ledger.account = LOSSES, TARGETS
    rows = tuple(level.shape[1] for level in outputs.logits)
    # Anchors are kept from step to step; a label is an int64.
    targets = [torch.empty(sum(rows), 4), torch.empty(len(images), sum(rows), dtype=torch.int64)]
    loss = sum(FakeLoss.apply(level, ledger, LOGITS_GRADIENT) for level in outputs.logits)
    for of_boxes in (outputs.deltas, outputs.quality or []):
        loss = loss + sum(FakeLoss.apply(level, ledger, FEATURES_GRADIENT) for level in of_boxes)
    del outputs
    loss.backward()
    meter.enter(BOXES)  # charges the last part of backward
    del targets
    return rows
