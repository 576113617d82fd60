"""A plan as text."""

from collections.abc import Callable, Sequence

from longshot.tools.planning.meter import ACCOUNTS, COMPONENTS
from longshot.tools.planning.plan import FRAGMENTS, LOSSES, RESERVED, UPDATE, Gpu, Plan

_MB = 2**20


def table(plans: Sequence[Plan]) -> str:
    """Memory, time and communication of plans that differ in precision, a column for each."""
    lines = [_line("memory per GPU when most is in use, MB", [plan.precision for plan in plans])]
    lines += _memory(plans)
    lines += ["", _line("seconds per step", [plan.precision for plan in plans])]
    lines += _time(plans)
    if plans[0].collectives:
        lines += ["", _communication(plans[0])]
    return "\n".join(lines)


def warnings(plans: Sequence[Plan]) -> list[str]:
    """What will not work, a line each."""
    return [
        f"warning: {plan.precision} does not fit: {plan.needed / _MB:.0f} MB of {plan.gpu.memory / _MB:.0f} MB; a smaller "
        "train.images_per_pass, model.head.recompute=true or fewer anchors need less"
        for plan in plans
        if plan.needed > plan.gpu.memory
    ]


def assumptions(gpu: Gpu) -> str:
    """What the numbers rest on."""
    return f"""\
Counted on the model itself, on tensors without content: memory of tensors in an ordinary step (not the first), FLOPs of
convolutions forward and backward, operators of the loss, messages. MB: 2^20 bytes. All images have the size above: the
largest. fp16 needs what bf16 needs. torch.compile, which may need less, is left out.
Assumed, not measured: {FRAGMENTS:.0%} more memory for fragments and {RESERVED / _MB:.0f} MB for CUDA, its libraries and NCCL;
convolutions with all that is around them run at {gpu.fp32 / 1e12:g} TFLOP/s in fp32 (TF32) and {gpu.bf16 / 1e12:g} in bf16; small operators
start every {gpu.launch * 1e6:g} us, large ones move {gpu.memory_bandwidth / 1e9:g} GB/s; GPUs send each other {gpu.bandwidth / 1e9:g} GB/s in a ring, and every message
takes {gpu.latency * 1e6:g} us more; data are there in time. Layers beside convolutions are in the sustained rate, matching is left out."""


def _memory(plans: Sequence[Plan]) -> list[str]:
    lines = [
        _line(f"  {account}", [f"{plan.simulated.peak[account] / _MB:.1f}" for plan in plans])
        for account in ACCOUNTS
        if any(plan.simulated.peak[account] for plan in plans)
    ]
    columns: dict[str, Callable[[Plan], str]] = {
        "  all tensors": lambda plan: f"{plan.simulated.peak.total() / _MB:.1f}",
        "  that is in": lambda plan: plan.simulated.peak_phase,
        "  GPU memory needed": lambda plan: f"{plan.needed / _MB:.0f}",
        f"  fits in {plans[0].gpu.memory / 2**30:g} GiB": lambda plan: (
            "yes" if plan.needed <= plan.gpu.memory else "NO"
        ),
    }
    return lines + _rows(columns, plans)


def _time(plans: Sequence[Plan]) -> list[str]:
    lines = [
        _line(f"  {name}", [f"{plan.compute[name]:.4f}" for plan in plans]) for name in (*COMPONENTS, LOSSES, UPDATE)
    ]
    images = plans[0].num_images * plans[0].passes * plans[0].gpus
    columns: dict[str, Callable[[Plan], str]] = {
        "  computation": lambda plan: f"{plan.compute.total():.4f}",
        "  TFLOP of convolutions": lambda plan: f"{plan.passes * plan.simulated.flops.total() / 1e12:.2f}",
        "  step, communication hidden": lambda plan: f"{plan.seconds()[0]:.4f}",
        "  step, not hidden": lambda plan: f"{plan.seconds()[1]:.4f}",
        "  images per second, all GPUs": lambda plan: " - ".join(f"{images / s:.1f}" for s in plan.seconds()[::-1]),
    }
    return lines + _rows(columns, plans)


def _communication(plan: Plan) -> str:
    lines = [f"{'communication per step':<28}{'':12}{'calls':>7}{'bytes':>15}{'a GPU sends':>15}{'seconds':>10}"]
    for message in plan.collectives:
        lines.append(
            f"  {message.name:<26}{message.kind:<12}{message.count:>7}{message.size:>15,}"
            f"{message.sent(plan.gpus):>15,.0f}{plan.seconds_of(message):>10.5f}"
        )
    return "\n".join(lines)


def _rows(columns: dict[str, Callable[[Plan], str]], plans: Sequence[Plan]) -> list[str]:
    return [_line(name, [column(plan) for plan in plans]) for name, column in columns.items()]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<42}" + "".join(f"{cell:>18}" for cell in cells)
