"""Try spoiled files of every kind, and count what became of them; `--number` replays one.

Each is a function of its kind, its number and the seed. The test suite runs seed 0; others are for a long evening:
`python tests/fuzz/fuzz.py --seed 7 --inputs 2000 annotations results`.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import harness
from annotation_inputs import AnnotationFiles, Caches
from checkpoint_inputs import Checkpoints
from config_inputs import Overrides, Texts
from foreign_inputs import ForeignFiles
from image_inputs import Images
from misbehaving import Misbehaving
from result_inputs import JsonResults, NpzResults

KINDS: dict[str, type[harness.Kind]] = {
    "annotations": AnnotationFiles,
    "caches": Caches,
    "results.json": JsonResults,
    "results.npz": NpzResults,
    "checkpoints": Checkpoints,
    "configs": Texts,
    "overrides": Overrides,
    "images": Images,
    "foreign": ForeignFiles,
}


def main() -> None:
    given = _arguments()
    warnings.simplefilter("ignore")
    outcomes, kinds = [], KINDS | {"misbehaving": Misbehaving}
    harness.limit_addresses()
    with tempfile.TemporaryDirectory() as caches:
        os.environ["XDG_CACHE_HOME"] = caches
        for name in given.kinds or KINDS:
            numbers = range(given.inputs or kinds[name].inputs) if given.number is None else [given.number]
            outcomes += harness.try_kind(
                name, kinds[name], seed=given.seed, numbers=numbers, seconds=given.seconds, report=_report(given.now)
            )
    for outcome in outcomes:
        if outcome.outcome == "failure" or given.verbose:
            print(
                f"{outcome.kind} {outcome.number}, seed {given.seed}, {outcome.what}: {outcome.outcome}: {outcome.detail}\n"
            )
    print(table(outcomes))
    if given.out:
        given.out.write_text(json.dumps([outcome._asdict() for outcome in outcomes]), encoding="utf-8")
    sys.exit(any(outcome.outcome == "failure" for outcome in outcomes))


def table(outcomes: Sequence[harness.Outcome]) -> str:
    """Kinds by outcomes."""
    counts = Counter((outcome.kind, outcome.outcome) for outcome in outcomes)
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    rows = [[kind, *(counts[kind, outcome] for outcome in harness.OUTCOMES)] for kind in kinds]
    rows.append(["all", *(sum(counts[kind, outcome] for kind in kinds) for outcome in harness.OUTCOMES)])
    lines = [f"{'kind':<14}{'inputs':>8}" + "".join(f"{outcome:>14}" for outcome in harness.OUTCOMES)]
    lines += [f"{kind:<14}{sum(numbers):>8}" + "".join(f"{n:>14}" for n in numbers) for kind, *numbers in rows]
    return "\n".join(lines)


def _report(path: Path | None):
    return path.write_text if path else lambda text: None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, metavar="N", help="of each kind; default: as many as in the test suite")
    parser.add_argument("--number", type=int, help="try this one alone")
    parser.add_argument("--seconds", type=float, default=30, help="for an input; they take milliseconds (%(default)g)")
    parser.add_argument("--verbose", action="store_true", help="tell of every input, not of failures alone")
    parser.add_argument("--now", type=Path, metavar="FILE", help="write here which input is tried, before it is")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the outcomes here as JSON")
    given = parser.parse_args()
    if unknown := set(given.kinds) - KINDS.keys() - {"misbehaving"}:
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}")
    return given


if __name__ == "__main__":
    main()
