"""A plan of training: memory and communication of an optimizer step on one of N GPUs."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from longshot.datasets.loading.batches import padded_size
from longshot.detector.build import build_criterion, build_network
from longshot.detector.build_data import images_per_pass
from longshot.detector.config.schema import Config
from longshot.detector.errors import ConfigError
from longshot.detector.system.distributed import Process
from longshot.detector.training.optim import build_optimizer
from longshot.tools.planning.communication import Collective, collectives
from longshot.tools.planning.simulation import Simulated, simulate_step

# Judgment: what GPUs are seen to need beyond tensors, for fragments between them, CUDA, cuDNN's workspaces and NCCL.
FRAGMENTS, RESERVED = 0.1, 2 * 2**30


@dataclass(frozen=True)
class Plan:
    """Of one precision. Bytes of an optimizer step, of one GPU."""

    precision: str
    num_images: int  # of a pass
    passes: int
    gpus: int
    gpu_memory: float  # bytes
    simulated: Simulated
    collectives: list[Collective]

    @property
    def needed(self) -> float:
        """Memory that the GPU must have."""
        return self.simulated.peak.total() * (1 + FRAGMENTS) + RESERVED


def largest_image(config: Config) -> tuple[int, int]:
    """(height, width) of the largest images that training may show, and so of its largest batch, before padding."""
    data = config.data
    sizes = [(min(max(data.short_sides), data.long_side), data.long_side)]
    if data.large_scale_jitter:
        sizes = [data.large_scale_jitter.size]
    if data.mosaic:
        sizes.append(data.mosaic.size)
    height, width = map(max, zip(*sizes, strict=True))
    # Without grouping, tall and wide images come in one batch; but where each is padded by itself, they do not meet.
    alone = (data.pad_together or config.train.batch_size) == 1
    return (height, width) if data.aspect_grouping or alone else (max(height, width),) * 2


def make_plan(
    config: Config,
    *,
    gpus: int,
    num_classes: int,
    image_size: tuple[int, int],
    precision: Literal["fp32", "bf16"],
    gpu_memory: float = 80 * 2**30,
) -> Plan:
    """The plan of a run on images which, padded, all have the same size.

    Raises ConfigError if the batch cannot be divided among the GPUs, for options that do not go together, and for numbers
    beyond reason.
    """
    num_images = images_per_pass(config, Process(0, gpus, torch.device("cpu")))
    _check(num_images, num_classes, image_size)
    passes = config.train.batch_size // (num_images * gpus)
    simulated = simulate(
        config, num_classes=num_classes, image_size=image_size, precision=precision,
        num_images=num_images, passes=passes, parallel=gpus > 1,
    )  # fmt: skip
    with torch.device("meta"):
        network = build_network(config.model, num_classes, pretrained=False).train()
    criterion = build_criterion(config, [1] * num_classes, 1)
    messages = collectives(network, criterion, passes=passes) if gpus > 1 else []
    return Plan(precision, num_images, passes, gpus, gpu_memory, simulated, messages)


def _check(num_images: int, num_classes: int, image_size: tuple[int, int]) -> None:
    # Sizes of tensors are counted in 63 bits, and what has K entries in the loss is really made.
    for number, most, name in (
        (num_images, 2**10, "images per pass"), (num_classes, 10**6, "classes"), (max(image_size), 2**15, "pixels a side")
    ):  # fmt: skip
        if number > most:
            raise ConfigError(f"{number} {name}: plans are made for at most {most}")


def simulate(
    config: Config,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    precision: Literal["fp32", "bf16"] = "fp32",
    num_images: int = 1,
    passes: int = 1,
    parallel: bool = False,
    on_gpu: bool = True,
) -> Simulated:
    """A step of the configured model on images of this size, see `simulate_step`."""
    return simulate_step(
        partial(build_network, config.model, num_classes, pretrained=False), partial(_optimizer, config),
        num_images=num_images, image_size=padded_size([image_size], config.data.pad_multiple), precision=precision,
        passes=passes, parallel=parallel, averaged=config.train.ema_decay is not None, on_gpu=on_gpu,
    )  # fmt: skip


def _optimizer(config: Config, network: nn.Module) -> Optimizer:
    options = config.optimizer
    return build_optimizer(
        network, name=options.name, lr=1.0, momentum=options.momentum, weight_decay=options.weight_decay
    )
