"""The optimizer, and the learning rate as a pure function of the step."""

import bisect
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def build_optimizer(
    model: nn.Module,
    *,
    name: Literal["sgd", "adamw"],
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    decay_norm_and_bias: bool = True,
) -> Optimizer:
    """SGD or AdamW over the trainable parameters of `model`.

    Args:
        momentum: of SGD; AdamW keeps its usual betas.
        decay_norm_and_bias: apply weight decay to vectors (norm parameters, biases) too, as torchvision, detectron2 and
            the EFL authors do for detectors.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": weight_decay if decay_norm_and_bias else 0.0}]
    groups = [group for group in groups if group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


def learning_rate(
    step: int,
    *,
    lr: float,
    total_steps: int,
    name: Literal["multi_step", "cosine"],
    milestones: tuple[int, ...] = (),
    factor: float = 0.1,
    final_factor: float = 0.0,
    warmup_steps: int = 0,
    warmup_factor: float = 0.001,
) -> float:
    """The learning rate of a step in [0, total_steps).

    The warm-up is linear from `warmup_factor` and multiplies the schedule below it, so that the two meet without a jump.

    Args:
        lr: learning rate after the warm-up.
        milestones: multi_step: steps from which on the rate is multiplied by `factor` once more.
        final_factor: cosine: the rate at total_steps is lr * final_factor.
    """
    if name == "multi_step":
        rate = lr * factor ** bisect.bisect_right(milestones, step)
    else:
        remaining = 0.5 * (1 + math.cos(math.pi * step / total_steps))
        rate = lr * (final_factor + (1 - final_factor) * remaining)
    if step < warmup_steps:
        rate *= warmup_factor + (1 - warmup_factor) * step / warmup_steps
    return rate


def moving_average(averaged: Tensor, current: Tensor, steps: Tensor | int, *, decay: float) -> Tensor:
    """The exponential moving average of a weight after one more step, for torch's AveragedModel.

    The decay is at most (1 + steps) / (10 + steps), so that a short run is not the average of its first weights.

    Args:
        steps: how many times it was averaged before.
    """
    momentum = 1 - torch.as_tensor((1 + steps) / (10 + steps)).clamp(max=decay)
    return torch.lerp(averaged, current, momentum.to(averaged))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
