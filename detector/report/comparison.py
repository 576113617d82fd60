"""One page about the detections of several models in the same images."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..evaluation.columnar import ColumnarEvaluator
from ..evaluation.metrics import summarize
from ..results.columns import DetectionColumns
from . import explanations, page, plots
from .analysis import Row
from .bootstrap import COVERAGE, RESAMPLES, Resampler, bootstrap, interval
from .page import Column
from .validation_set import ValidationSet, mean_of
from .writing import versions, write_files

_KEYS = {"AP": "all", "APr": "r", "APc": "c", "APf": "f"}  # with intervals


def write_comparison(
    folder: Path,
    validation: ValidationSet,
    runs: Iterable[tuple[str, DetectionColumns]],
    *,
    resamples: int = RESAMPLES,
) -> Path:
    """Write compare.html, compare.json and the tables as CSV; returns the path of the page.

    Args:
        runs: names and detections; the first run is what the others are compared with. Each is dropped once it is
            matched, so that an iterator that reads them one by one saves memory.
    """
    results, resamplers = {}, []
    for name, detections in runs:
        evaluator = ColumnarEvaluator(validation.ground_truth)
        evaluator.add(*detections)
        results[name] = summarize(evaluator.accumulate(), validation.ground_truth, validation.classes)
        resamplers.append(Resampler.of(evaluator.state(), validation.ground_truth))
    resampled = bootstrap(resamplers, validation.ground_truth.num_images, resamples=resamples)
    summary = _summary_rows(validation, results, resampled)
    differences = _difference_rows(validation, results, resampled)
    classes = _class_rows(results, resampled)
    sections = [
        ("AP", _ap_table(summary, "run")),
        ("Differences", _ap_table(differences, "difference") + page.note(explanations.DIFFERENCES)),
        *_difference_plots(classes, list(results)),
        ("Classes", _class_table(classes, list(results))),
    ]
    header = {
        "runs": ", ".join(results),
        "annotations": validation.description,
        "protocol": validation.ground_truth.protocol.name,
        "bootstrap": f"{resamples} resamples of the images",
        "computed by": versions(),
    }
    document = page.page("Comparison", page.definitions(header), sections)
    tables = {"summary": summary, "differences": differences, "classes": classes}
    return write_files(folder, document, "compare", {"header": header}, tables)


def _group_means(validation: ValidationSet, values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """(B, K) AP of classes -> the (B,) mean of each group that has any."""
    groups = validation.groups
    means = {
        key: np.array([mean_of(row, groups[group]) for row in values], float)
        for key, group in _KEYS.items()
        if group in groups
    }
    return {key: mean for key, mean in means.items() if not np.isnan(mean).all()}


def _summary_rows(validation: ValidationSet, results: dict[str, dict], resampled: NDArray) -> list[Row]:
    """A row per run: its numbers, and the intervals of some as KEY_low and KEY_high."""
    return [
        {"run": name}
        | {key: value for key, value in result.items() if key.startswith("A")}
        | _intervals(result, _group_means(validation, resampled[:, r]))
        for r, (name, result) in enumerate(results.items())
    ]


def _difference_rows(validation: ValidationSet, results: dict[str, dict], resampled: NDArray) -> list[Row]:
    """A row for each run but the first."""
    (first, base), *others = results.items()
    base_means = _group_means(validation, resampled[:, 0])
    rows = []
    for r, (name, result) in enumerate(others, start=1):
        means = _group_means(validation, resampled[:, r])
        row = {"difference": f"{name} - {first}"}
        row |= {
            key: None if value is None else value - base[key] for key, value in result.items() if key.startswith("A")
        }
        rows.append(row | _intervals(row, {key: mean - base_means[key] for key, mean in means.items()}))
    return rows


def _class_rows(results: dict[str, dict], resampled: NDArray) -> list[Row]:
    """A row per class: its AP in each run, and the differences from the first with their intervals."""
    first, *others = results
    rows = []
    for k, row in enumerate(results[first]["classes"]):
        row = {key: value for key, value in row.items() if key != "AP"}
        ap = {name: result["classes"][k]["AP"] for name, result in results.items()}
        row |= {f"AP {name}": value for name, value in ap.items()}
        for r, name in enumerate(others, start=1):
            row[f"{name} - {first}"] = None if ap[name] is None else ap[name] - ap[first]
            row |= _intervals(row, {f"{name} - {first}": resampled[:, r, k] - resampled[:, 0, k]})
        rows.append(row)
    return rows


def _intervals(estimates: Row, resampled: dict[str, NDArray[np.float64]]) -> Row:
    """KEY_low and KEY_high for each of the (B,) `resampled` values."""
    row = {}
    for key, values in resampled.items():
        row[f"{key}_low"], row[f"{key}_high"] = interval(estimates[key], values) or (None, None)
    return row


def _ap_table(rows: Sequence[Row], name: str) -> str:
    """The AP of the rows, each with its interval beside it."""
    if not rows:
        return page.note("There is one run only.")
    spec = "+z.1f" if name == "difference" else ".1f"
    keys = [key for key in rows[0] if key.startswith("AP") and not key.endswith(("_low", "_high"))]
    columns = [Column(name, name)]
    for key in keys:
        columns += [Column(key, key, spec), Column(f"{key} interval", f"{COVERAGE:.0%}")]
    brackets = [{f"{key} interval": _brackets(row, key, spec) for key in keys if f"{key}_low" in row} for row in rows]
    return page.table([row | more for row, more in zip(rows, brackets, strict=True)], columns)


def _brackets(row: Row, key: str, spec: str) -> str | None:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return None if low is None else f"[{low:{spec}}, {high:{spec}}]"


def _difference_plots(classes: Sequence[Row], names: list[str]) -> list[tuple[str, str]]:
    """A section for each run but the first."""
    first, *others = names
    return [
        (
            f"{name} - {first}, by class",
            page.figure(
                plots.against_frequency(classes, f"{name} - {first}", f"AP of {name} - {first}"),
                explanations.points(classes),
            ),
        )
        for name in others
    ]


def _class_table(rows: Sequence[Row], names: list[str]) -> str:
    first, *others = names
    columns = [
        Column("name", "class"), Column("frequency", "group"), Column("train_images", "train images", "d"),
        Column("num_objects", "val objects", "d"), *(Column(f"AP {name}", f"AP {name}", ".1f") for name in names),
    ]  # fmt: skip
    for name in others:
        key = f"{name} - {first}"
        columns += [Column(key, key, "+z.1f"), Column(f"{key} interval", f"{COVERAGE:.0%}")]
        rows = [row | {f"{key} interval": _brackets(row, key, "+z.1f")} for row in rows]
    return page.table(rows, columns) + page.note(explanations.SORTING)
