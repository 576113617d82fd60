"""Resident memory of one training step on a CPU, by what it is spent on. N = 1 image, R anchors, K classes."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from longshot.datasets.loading.batches import Batch
from longshot.datasets.loading.dataset import Targets
from longshot.detector.build import build_criterion, build_network
from longshot.detector.config.schema import Config, parse_config
from longshot.detector.system.distributed import Process
from longshot.detector.system.progress import progress_bar
from longshot.detector.training.optim import build_optimizer
from longshot.detector.training.state import Run
from longshot.detector.training.step import optimize
from longshot.tools.benchmarks import memory

LIMIT = 8e9  # bytes
STEPS = 2  # momentum is there from the second one on

TARGETS, FEATURES, LOGITS = "old gradients freed, matching", "trunk, FPN, towers, deltas", "logits"
LOSS, LOSS_BACKWARD = "losses", "losses backward: gradient of logits"
LOGITS_BACKWARD, FEATURES_BACKWARD = "logits backward", "towers, FPN, trunk backward"
UPDATE, END = "optimizer", "end of the step"
PHASES = (TARGETS, FEATURES, LOGITS, LOSS, LOSS_BACKWARD, LOGITS_BACKWARD, FEATURES_BACKWARD, UPDATE, END)


@dataclass
class Usage:
    """Resident memory over a phase, in bytes. A phase may come in several stretches, one for each pyramid level."""

    change: int = 0
    after: int = 0
    peak: int = 0


@dataclass
class Meter:
    """Charges what happens to resident memory to the phase in work."""

    usage: dict[str, Usage] = field(default_factory=dict)
    phase: str | None = None
    _before: int = 0

    def enter(self, phase: str | None) -> None:
        """Ends the phase in work and begins another; None begins none."""
        now, peak = memory.resident(), memory.peak_resident()
        if self.phase is not None:
            usage = self.usage.setdefault(self.phase, Usage())
            usage.change, usage.after, usage.peak = usage.change + now - self._before, now, max(usage.peak, peak)
        memory.reset_peak()
        self.phase, self._before = phase, now


class StepMemory(NamedTuple):
    """All in bytes."""

    at_start: int  # resident before there is a network: Python and its libraries
    built: Usage  # of making network, criterion and optimizer
    steps: list[dict[str, Usage]]  # by phase
    seconds: list[float]
    tensors: dict[str, int]  # what tensors need by their shapes alone
    logits_shape: tuple[int, int]  # R, K
    padded_size: tuple[int, int]

    @property
    def peak(self) -> int:
        """The most that was resident at once."""
        return max(usage.peak for usages in [{"": self.built}, *self.steps] for usage in usages.values())

    @property
    def peak_of_tensors(self) -> int:
        """The peak without what is resident at the end beyond weights, gradients and momentum: libraries, freed blocks."""
        staying = sum(self.tensors[name] for name in ("weights", "gradients of weights", "momentum"))
        return self.peak - (self.steps[-1][END].after - staying)


def step_config(*, backbone: str, num_anchors: int) -> Config:
    """A RetinaNet with square anchors and Equalized Focal Loss. Raises ConfigError for an unknown backbone."""
    scales = [2 ** (i / num_anchors) for i in range(num_anchors)]
    return parse_config(
        {
            "model": {
                "backbone": {"name": backbone},
                "anchors": {"base_size": 8.0, "ratios": [1.0], "scales": scales},
            },
            "matching": {"matcher": {"name": "atss"}},
            "loss": {"classification": {"name": "equalized_focal"}, "box": {"name": "giou"}},
            # Weights drawn at random under frozen norm layers would soon diverge; the memory is the same.
            "optimizer": {"lr": 1e-8},
        },
        where="bench step",
    )


def measure_step(config: Config, *, num_classes: int, image_size: tuple[int, int]) -> StepMemory:
    """Takes training steps on one image of noise, and watches resident memory phase by phase."""
    torch.manual_seed(0)
    meter, process = Meter(), Process(0, 1, torch.device("cpu"))
    at_start = memory.resident()
    meter.enter("built")
    run, batch = _run(config, num_classes), _batch(image_size, num_classes, config.data.pad_multiple)
    meter.enter(None)
    _watch(run, meter)
    built, steps, seconds = meter.usage["built"], [], []
    for _ in progress_bar(range(STEPS), desc="training", unit="step"):
        meter.usage, start = {}, time.perf_counter()
        meter.enter(TARGETS)
        optimize(run, run.network, batch, process, images_per_pass=1, precision="fp32", clip_norm=None)
        meter.enter(None)
        steps.append(meter.usage)
        seconds.append(time.perf_counter() - start)
    rows = sum(len(level) for level in run.network.anchors(batch.padded_size))
    logits = rows * num_classes * 4
    tensors = _sizes(run) | {"logits": logits, "gradient of logits": logits}
    return StepMemory(at_start, built, steps, seconds, tensors, (rows, num_classes), batch.padded_size)


def _run(config: Config, num_classes: int) -> Run:
    """As `build_run` makes it; that refuses frozen norm layers without pretrained weights, which memory does not need."""
    network = build_network(config.model, num_classes, pretrained=False).train()
    optimizer = build_optimizer(
        network,
        name="sgd",
        lr=config.optimizer.learning_rate(config.train.batch_size),
        momentum=config.optimizer.momentum,
    )
    return Run(network, build_criterion(config, [1] * num_classes, 1), optimizer, GradScaler("cpu", enabled=False))


def _batch(size: tuple[int, int], num_classes: int, multiple: int, *, num_objects: int = 8) -> Batch:
    """An image of noise with square objects anywhere in it."""
    height, width = size
    side = min(size) * (0.1 + 0.4 * torch.rand(num_objects))
    left, top = torch.rand(num_objects) * (width - side), torch.rand(num_objects) * (height - side)
    boxes = torch.stack([left, top, left + side, top + side], dim=1)
    targets = Targets(boxes, torch.randint(num_classes, (num_objects,)), torch.zeros(0, 4))
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    padded = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    return Batch([image], [targets], [0], [0], [size], [padded])


def _watch(run: Run, meter: Meter) -> None:
    """Have the meter told where a step is."""

    def at(phase: str) -> Callable:
        return lambda *_: meter.enter(phase)

    def at_gradient_of_output(phase: str) -> Callable:
        def watch_gradient(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            output.register_hook(at(phase))

        return watch_gradient

    network, head = run.network, run.network.head
    network.register_forward_pre_hook(at(FEATURES))
    head.logits.register_forward_pre_hook(at(LOGITS))
    head.box_tower.register_forward_pre_hook(at(FEATURES))
    run.criterion.register_forward_pre_hook(at(LOSS))
    run.criterion.register_forward_hook(at(LOSS_BACKWARD))
    head.deltas.register_forward_hook(at_gradient_of_output(FEATURES_BACKWARD))
    head.logits.register_forward_hook(at_gradient_of_output(LOGITS_BACKWARD))
    head.class_tower.register_forward_hook(at_gradient_of_output(FEATURES_BACKWARD))
    run.optimizer.register_step_pre_hook(at(UPDATE))
    run.optimizer.register_step_post_hook(at(END))


def _sizes(run: Run) -> dict[str, int]:
    parameters = list(run.network.parameters())
    return {
        "weights": _bytes([*parameters, *run.network.buffers()]),
        "gradients of weights": _bytes(p.grad for p in parameters if p.grad is not None),
        "momentum": _bytes(state["momentum_buffer"] for state in run.optimizer.state.values()),
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def table(measured: StepMemory) -> str:
    """A line for each phase, with both steps side by side; MB."""
    mb = memory.MB
    lines = [
        f"{'resident, MB':38}" + "".join(f"{f'step {i + 1}: change':>18}{'after':>8}{'peak':>8}" for i in range(STEPS))
    ]
    lines.append(f"{'Python and libraries':38}{'':18}{measured.at_start / mb:>8.0f}")
    rows = {"network, criterion, optimizer": [measured.built]}
    rows |= {phase: [step[phase] for step in measured.steps] for phase in PHASES}
    for name, usages in rows.items():
        cells = (f"{u.change / mb:>+18.0f}{u.after / mb:>8.0f}{u.peak / mb:>8.0f}" for u in usages)
        lines.append(f"{name:38}" + "".join(cells))
    return "\n".join(lines)


def comparison(measured: StepMemory, planned: int) -> str:
    """The memory of tensors as planned, bytes at the peak, beside what was measured."""
    found = measured.peak_of_tensors
    return (
        f"tensors, as tools/plan.py counts them: {planned / memory.MB:.0f} MB; measured: {found / memory.MB:.0f} MB; "
        f"difference {planned / found - 1:+.1%}"
    )


def target(measured: StepMemory) -> str:
    """Whether the peak is as low as it should be, and which phase has it."""
    peaks = {(i + 1, phase): usage.peak for i, step in enumerate(measured.steps) for phase, usage in step.items()}
    step, phase = max(peaks, key=peaks.get)
    verdict = "met" if measured.peak < LIMIT else "NOT met"
    return f"target: peak under {LIMIT / 1e9:g} GB: {measured.peak / 1e9:.2f} GB, in step {step}, {phase}: {verdict}"
