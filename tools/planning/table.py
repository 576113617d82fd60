"""A plan as text."""

from collections.abc import Callable, Sequence

from longshot.tools.planning.meter import ACCOUNTS
from longshot.tools.planning.plan import FRAGMENTS, RESERVED, Plan

_MB = 2**20


def table(plans: Sequence[Plan]) -> str:
    """Memory and communication of plans that differ in precision, a column for each."""
    lines = [_line("memory per GPU when most is in use, MB", [plan.precision for plan in plans])]
    lines += _memory(plans)
    if plans[0].collectives:
        lines += ["", _communication(plans[0])]
    return "\n".join(lines)


def warnings(plans: Sequence[Plan]) -> list[str]:
    """What will not work, a line each."""
    return [
        f"warning: {plan.precision} does not fit: {plan.needed / _MB:.0f} MB of {plan.gpu_memory / _MB:.0f} MB; a smaller "
        "train.images_per_pass, model.head.recompute=true or fewer anchors need less"
        for plan in plans
        if plan.needed > plan.gpu_memory
    ]


def assumptions() -> str:
    """What the numbers rest on."""
    return f"""\
Counted on the model itself, on tensors without content: memory of tensors in an ordinary step (not the first), FLOPs of
convolutions forward and backward, messages. MB: 2^20 bytes. All images have the size above: the largest. fp16 needs what
bf16 needs. torch.compile, which may need less, is left out. Assumed, not measured: {FRAGMENTS:.0%} more memory for fragments
and {RESERVED / _MB:.0f} MB for CUDA, its libraries and NCCL; messages go around a ring."""


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
        f"  fits in {plans[0].gpu_memory / 2**30:g} GiB": lambda plan: (
            "yes" if plan.needed <= plan.gpu_memory else "NO"
        ),
        "  TFLOP of convolutions per step": lambda plan: f"{plan.passes * plan.simulated.flops.total() / 1e12:.2f}",
    }
    return lines + _rows(columns, plans)


def _communication(plan: Plan) -> str:
    lines = [f"{'communication per step':<28}{'':12}{'calls':>7}{'bytes':>15}{'a GPU sends':>15}"]
    for message in plan.collectives:
        lines.append(
            f"  {message.name:<26}{message.kind:<12}{message.count:>7}{message.size:>15,}"
            f"{message.sent(plan.gpus):>15,.0f}"
        )
    return "\n".join(lines)


def _rows(columns: dict[str, Callable[[Plan], str]], plans: Sequence[Plan]) -> list[str]:
    return [_line(name, [column(plan) for plan in plans]) for name, column in columns.items()]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<42}" + "".join(f"{cell:>18}" for cell in cells)
