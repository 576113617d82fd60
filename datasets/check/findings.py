"""What is wrong with a dataset: in rows, as a table, in a line."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
KEPT = 10  # examples of a finding
_SHOWN = 3  # of them in the table


class Finding(NamedTuple):
    """A row of the table.

    An error is refused by the other tools, or what was annotated is lost or contradicts itself. A warning can be trained on
    but is seldom meant. A note is only worth knowing.
    """

    split: str  # "train", "val" or "both"
    severity: Severity
    what: str
    count: int
    examples: tuple[str, ...]  # the first ones


def found(
    split: str, severity: Severity, what: str, examples: Sequence[str], count: int | None = None
) -> list[Finding]:
    """The row of a kind of defect, or none if there is no example of it; `count` is needed if `examples` are only some."""
    count = len(examples) if count is None else count
    return [Finding(split, severity, what, count, tuple(examples[:KEPT]))] if count else []


def table(findings: Iterable[Finding]) -> str:
    """The findings as aligned lines under a head, the worst first; "" if there is none."""
    rows = [
        (f.severity, f.split, f"{f.count:,}", f.what, _shown(f)) for f in sorted(findings, key=_by_severity)
    ]  # fmt: skip
    if not rows:
        return ""
    rows = [("severity", "split", "count", "what", "first examples"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{severity:{widths[0]}}  {split:{widths[1]}}  {count:>{widths[2]}}  {what:{widths[3]}}  {examples}".rstrip()
        for severity, split, count, what, examples in rows
    )


def verdict(findings: Iterable[Finding]) -> str:
    """Whether the dataset is good, in a line."""
    kinds = Counter(f.severity for f in findings)
    counted = [f"{kinds[s]} {s}{'s' if kinds[s] > 1 else ''}" for s in SEVERITIES if kinds[s]]
    return f"{'FAILED' if kinds['error'] else 'passed'}: {', '.join(counted) or 'nothing found'}"


def _by_severity(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def _shown(finding: Finding) -> str:
    # Control characters, as a damaged file name may have them, would break the table or the terminal.
    texts = ["".join(c if c.isprintable() else "�" for c in text) for text in finding.examples[:_SHOWN]]
    return "; ".join([*texts, "…"] if finding.count > _SHOWN else texts)
