"""Time and memory of one forward and backward pass of classification losses, ours beside other people's."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import torch

from longshot.detector.system.environment import progress_bar
from longshot.losses.kernel import CHUNK
from longshot.tools.benchmarks import memory
from longshot.tools.benchmarks.harness import in_new_process, peak_above, verdict
from longshot.tools.benchmarks.loss_contenders import CONTENDERS, Case, Contender, Inputs, one_pass


class Cost(NamedTuple):
    """Of one contender."""

    seconds: float
    extra: int | None  # bytes above the inputs, the gradient included; None: not measured


def costs(case: Case, *, repeats: int) -> dict[str, Cost]:
    """The cost of each contender: the shortest of `repeats` times, and the peak of a process of its own."""
    rounds = repeats + 1 + memory.is_measurable()
    with progress_bar(total=rounds * len(CONTENDERS), desc="losses", unit="pass") as bar:
        extra = {}
        for name in CONTENDERS if memory.is_measurable() else ():
            extra[name] = extra_memory(case, name)
            bar.update()
        torch.set_num_threads(case.threads)
        inputs, seconds = case.inputs(), {name: [] for name in CONTENDERS}
        # In turn, so that whatever else the machine does hits all alike. The first round warms up: on some processors
        # PyTorch's log1p, which cross entropy needs too, is slow before the first call of ours, see losses/kernel.py.
        for _ in range(repeats + 1):
            for name, contender in CONTENDERS.items():
                seconds[name].append(_seconds(contender, inputs))
                bar.update()
    return {name: Cost(min(times[1:]), extra.get(name)) for name, times in seconds.items()}


def _seconds(contender: Contender, inputs: Inputs) -> float:
    _wait_for(inputs)
    start = time.perf_counter()
    one_pass(contender, inputs)
    _wait_for(inputs)
    return time.perf_counter() - start


def _wait_for(inputs: Inputs) -> None:
    if inputs.logits.is_cuda:
        torch.cuda.synchronize()


def extra_memory(case: Case, name: str) -> int:
    """Bytes at the peak of one pass of a contender above what there was before, the logits among it.

    Of a new process, whose allocators have nothing left over.
    """
    what = f"the memory of {name!r} on {case.rows} x {case.classes} logits"
    return in_new_process(_extra_memory_here, case, CONTENDERS[name], what=what)


def _extra_memory_here(case: Case, contender: Contender) -> int:
    torch.set_num_threads(case.threads)
    one_pass(contender, case._replace(rows=min(case.rows, 200)).inputs())  # loads what is loaded once
    inputs = case.inputs()
    if inputs.logits.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one_pass(contender, inputs)
        return torch.cuda.max_memory_allocated() - before
    return peak_above(lambda: one_pass(contender, inputs))


def table(case: Case, measured: Mapping[str, Cost]) -> str:
    """A line for each contender: seconds and memory, and both relative to what they should be compared with."""
    entries, cross_entropy, direct = case.rows * case.classes, *_yardsticks(measured)
    lines = [f"{'':22}{'seconds':>10}{'/ BCE':>8}{'/ direct':>10}{'MB':>10}{'/ fp32 copy':>13}{'/ gradient':>12}"]
    for name, (seconds, extra) in measured.items():
        line = f"{name:22}{seconds:>10.4g}{seconds / cross_entropy:>8.3f}{seconds / direct:>10.3f}"
        if extra is None:
            lines.append(line + f"{'not measured':>35}")
        else:
            copies, gradients = extra / (4 * entries), extra / (case.dtype.itemsize * entries)
            lines.append(line + f"{extra / memory.MB:>10.2f}{copies:>13.3f}{gradients:>12.3f}")
    return "\n".join(lines)


def targets(case: Case, measured: Mapping[str, Cost]) -> str:
    """What our Equalized Focal Loss may cost, and whether it keeps to it."""
    (seconds, extra), (cross_entropy, direct) = measured["ours: equalized focal"], _yardsticks(measured)
    entries, full = case.rows * case.classes, case.dtype == torch.float32
    what = "peak memory / fp32 copy of the logits" if full else "peak memory beyond the gradient / fp32 chunk"
    lines = [
        verdict("time / BCE", seconds / cross_entropy, 1, digits=".3f"),
        verdict("time / direct formula", seconds / direct, 1 / 6, digits=".3f"),
    ]
    if extra is None:
        lines.append(f"target: {what}: not measured")
    elif full:
        lines.append(verdict(what, extra / (4 * entries), 1.15, digits=".3f"))
    else:
        lines.append(verdict(what, (extra - case.dtype.itemsize * entries) / (4 * CHUNK), 1, digits=".3f"))
    return "\n".join(lines)


def _yardsticks(measured: Mapping[str, Cost]) -> tuple[float, float]:
    return measured["torch cross entropy"].seconds, measured["direct equalized focal"].seconds
