"""The same steps by one process in one pass, and by several in several passes: how far apart they end.

S steps, M numbers that a step tells, K classes, W weights, P processes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longshot.datasets.classes import Classes
from longshot.detector.build import build_run
from longshot.detector.system.distributed import Process, all_sum, from_rank_zero
from longshot.detector.training.step import optimize, parallel
from longshot.losses.gradient_collection import GradientGuidedLoss
from longshot.tools.checks.equality_cases import CASES, Data, Precision, case_config

# In float64, a sum over processes that is left out shows a hundred times larger. There too, boxes, their losses and those
# of quality are float32. In float32, a ReLU here and there falls on the other side of zero.
TOLERANCES: dict[Precision, float] = {"float64": 1e-5, "float32": 1e-2}


class Trace(NamedTuple):
    """What a process has come to; float64, on the CPU."""

    numbers: Tensor  # (S, M) losses, norm of the gradient and positives of each step
    sums: Tensor  # (S, 2, K) EFL's positive and negative gradient after each step; (0,) for a loss that has none
    ratio: Tensor  # (S, K) EFL's g; likewise
    weights: Tensor  # (W,) after the last step
    change: Tensor  # (W,) of the weights since the start


class Difference(NamedTuple):
    """The largest differences of two traces, over all steps."""

    losses: float  # and the other numbers; relative
    sums: float  # relative
    g: float  # which is between 0 and 1
    weights: float  # relative to the largest change


class Row(NamedTuple):
    """How a case that is divided in a way differs from the same case in one process and one pass."""

    case: str
    images_per_pass: int
    differences: dict[Precision, Difference]

    @property
    def is_equal(self) -> bool:
        """Whether all differences are within the tolerances; NaN is not."""
        return all(
            number <= TOLERANCES[precision]
            for precision, difference in self.differences.items()
            for number in difference
        )


def references(data: Data, precisions: Sequence[Precision], device: torch.device) -> dict[tuple[str, Precision], Trace]:
    """What one process comes to that takes each batch in one pass, of all cases. There must be no process group yet."""
    alone, everything = Process(0, 1, device), data.stream.batch_size
    return {
        (case, precision): take_steps(case, data, alone, images_per_pass=everything, precision=precision)
        for case in CASES
        for precision in precisions
    }


def compare(
    expected: dict[tuple[str, Precision], Trace] | None, data: Data, precisions: Sequence[Precision], process: Process
) -> Iterator[Row]:
    """A row for each case and each way to divide the images of a process into passes. Every process calls this.

    Args:
        expected: of `references`; on rank 0.
    """
    for case in CASES:
        traces = {p: from_rank_zero(expected[case, p] if process.rank == 0 else None) for p in precisions}
        # Weighting boxes, several passes come to a slightly different result, see Criterion.
        weighted = case_config(case, data, precisions[0]).loss.box_weighting != "none"
        for images_per_pass in passes(data, process)[: 1 if weighted else None]:
            differences = {}
            for precision, trace in traces.items():
                ours = take_steps(case, data, process, images_per_pass=images_per_pass, precision=precision)
                of_all = _of_all(torch.tensor(difference(ours, trace), dtype=torch.float64), process)
                differences[precision] = Difference(*of_all.amax(dim=0).tolist())
            yield Row(case, images_per_pass, differences)


def passes(data: Data, process: Process) -> list[int]:
    """All numbers of images per pass that divide those of a process, the largest first."""
    mine = data.stream.batch_size // process.world_size
    return [n for n in range(mine, 0, -1) if mine % n == 0]


def take_steps(case: str, data: Data, process: Process, *, images_per_pass: int, precision: Precision) -> Trace:
    """Train from the same start as ever through all steps of the data."""
    config = case_config(case, data, precision)
    torch.manual_seed(config.seed)
    classes = Classes.from_annotations(data.dataset.annotations)
    run = build_run(config, classes, process, num_images=len(data.dataset))
    run.network.train()
    if precision == "float64":
        run.network.double().register_forward_pre_hook(lambda network, images: (images[0].double(),))
    start, model, loss = _weights(run.network), parallel(run.network, process), run.criterion.classification
    numbers, sums, ratio = [], [], []
    for batch in data.loader(process, images_per_pass):
        told = optimize(
            run, model, batch, process,
            images_per_pass=images_per_pass, precision="fp32", clip_norm=config.optimizer.clip_norm,
        )  # fmt: skip
        numbers.append(torch.tensor(list(told.values()), dtype=torch.float64))
        if isinstance(loss, GradientGuidedLoss):
            sums.append(torch.stack([loss.positive_gradient, loss.negative_gradient]).cpu())
            ratio.append(loss.gradient_ratio.cpu())
    weights = _weights(run.network)
    stacked = (torch.stack(values) if values else torch.zeros(0) for values in (numbers, sums, ratio))
    return Trace(*stacked, weights, weights - start)


def _weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten().cpu() for parameter in network.parameters()])


def difference(ours: Trace, theirs: Trace) -> Difference:
    """How far `ours` lies from `theirs`."""
    return Difference(
        losses=_largest(_relative(ours.numbers, theirs.numbers)),
        sums=_largest(_relative(ours.sums, theirs.sums)),
        g=_largest(ours.ratio - theirs.ratio),
        weights=_largest(ours.weights - theirs.weights) / _largest(theirs.change),
    )


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    return torch.where(ours == theirs, 0.0, (ours - theirs) / theirs)


def _largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0


def _of_all(values: Tensor, process: Process) -> Tensor:
    """(P, …) the values of every process, on the CPU."""
    gathered = values.new_zeros(process.world_size, *values.shape, device=process.device)
    gathered[process.rank] = values
    return all_sum(gathered).cpu()


def emptiness(data: Data, process: Process, images_per_pass: int) -> str:
    """Which steps have no object on how many of the processes. Every process calls this."""
    objects = [sum(len(target.boxes) for target in batch.targets) for batch in data.loader(process, images_per_pass)]
    empty = (_of_all(torch.tensor(objects), process) == 0).sum(dim=0)
    told = []
    for count in sorted(set(empty[empty > 0].tolist())):
        who = "all" if count == process.world_size else f"{count} process{'es' * (count > 1)}"
        steps = (empty == count).nonzero().flatten() + 1
        told.append(f"{who} without objects in steps {', '.join(map(str, steps.tolist()))}")
    return f"{images_per_pass} per pass: {'; '.join(told) or 'none without objects'}"


def heading(precisions: Sequence[Precision]) -> str:
    """The two lines above the rows."""
    columns = "".join(f"{name:>9}" for name in Difference._fields)
    above = "".join(f"{precision:>39}" for precision in precisions)
    return f"{'':38}{above}\n{'':30}{'per pass':>8}" + f"   {columns}" * len(precisions)


def line(row: Row) -> str:
    """A row of the table."""
    numbers = "".join("   " + "".join(map(_cell, difference)) for difference in row.differences.values())
    return f"{row.case:30}{row.images_per_pass:>8}{numbers}{'' if row.is_equal else '   DIFFERS'}"


def _cell(number: float) -> str:
    return f"{number:>9.1e}" if number else f"{0:>9}"
