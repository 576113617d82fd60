"""One page about the detections of one model."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...datasets.images.reading import check_images
from ..evaluation.metrics import summarize
from ..evaluation.metrics import table as text_table
from ..results.columns import DetectionColumns
from . import analysis, crops, explanations, page, plots
from .analysis import Row
from .calibration_rows import Calibration, bin_rows, calibrate
from .error_kinds import Errors, find_errors
from .operating_point import best_f1, shown
from .page import Column
from .validation_set import GROUPS, ValidationSet
from .verdicts import Verdicts, find_verdicts
from .writing import versions, write_files

_CLASS_COLUMNS = (
    Column("name", "class"), Column("frequency", "group"), Column("AP", "AP", ".1f"), Column("AP50", "AP50", ".1f"),
    Column("AR", "AR", ".1f"), Column("threshold", "best-F1 score", ".3f"), Column("precision", "precision", ".1f"),
    Column("recall", "recall", ".1f"), Column("num_objects", "val objects", "d"),
    Column("num_images", "val images", "d"), Column("train_images", "train images", "d"),
    Column("category_id", "id", "d"),
)  # fmt: skip
_CONFUSION_COLUMNS = (
    Column("detected", "detected as"), Column("detected_group", "group"), Column("object", "object is"),
    Column("object_group", "group"), Column("shown", "above threshold", "d"), Column("count", "at any score", "d"),
)  # fmt: skip
_CALIBRATION_COLUMNS = (
    Column("group", "classes"), Column("detections", "detections", "d"),
    Column("D-ECE before", "D-ECE before", ".4f"), Column("class mean before", "class mean before", ".4f"),
    Column("D-ECE after", "D-ECE after", ".4f"), Column("class mean after", "class mean after", ".4f"),
)  # fmt: skip


class _Findings(NamedTuple):
    """Everything that a report tells."""

    result: dict[str, Any]  # of `summarize`
    verdicts: Verdicts
    errors: Errors
    curves: analysis.PrecisionRecall
    calibration: Calibration | None
    class_rows: list[Row]
    error_rows: list[Row]
    confusion_rows: list[Row]


def write_report(
    folder: Path,
    validation: ValidationSet,
    detections: DetectionColumns,
    *,
    source: dict[str, str],
    images: Path | None = None,
    score_threshold: float | None = None,
) -> Path:
    """Write report.html, report.json and the tables as CSV; returns the path of the page.

    Args:
        source: what the page says at its top about where the detections come from.
        images: the folder of the images, to show the worst mistakes; None leaves the pictures out.
        score_threshold: which the detections had passed, if that is known.

    Raises:
        DataError: `images` lacks images of the annotations, or one cannot be read.
    """
    if images is not None:
        check_images(validation.annotations, images)  # now, and not after minutes
    found = _find(validation, detections, score_threshold)
    header = source | _header(validation, found.verdicts, detections, score_threshold) | {"computed by": versions()}
    document = page.page("Detection report", page.definitions(header), _sections(validation, found, images))
    numbers = {"header": header} | {key: value for key, value in found.result.items() if key != "classes"}
    return write_files(folder, document, "report", numbers, _tables(found))


def _find(validation: ValidationSet, detections: DetectionColumns, score_threshold: float | None) -> _Findings:
    verdicts, evaluator = find_verdicts(validation.ground_truth, detections)
    curves = evaluator.accumulate()
    result = summarize(curves, validation.ground_truth, validation.classes, score_threshold=score_threshold)
    points = best_f1(verdicts, curves.num_objects[:, 0])
    visible, errors = shown(verdicts, points), find_errors(verdicts, validation.ground_truth)
    return _Findings(
        result,
        verdicts,
        errors,
        analysis.precision_recall(validation, curves),
        calibrate(validation, verdicts, detections),
        analysis.class_rows(validation, result, curves, points),
        analysis.error_rows(validation, verdicts, errors, visible),
        analysis.confusion_rows(validation, verdicts, errors, visible),
    )


def _sections(validation: ValidationSet, found: _Findings, images: Path | None) -> list[tuple[str, str]]:
    """Headings and HTML."""
    wrong = missed = None
    if images is not None:
        wrong = crops.worst_false_positives(validation, found.verdicts, found.errors, images)
        missed = crops.worst_misses(validation, found.verdicts, images)
    by_frequency = plots.against_frequency(found.class_rows, "AP", "AP")
    curves = page.figure(plots.precision_recall_plot(found.curves), "Interpolated as AP is.")
    confusions = page.table(found.confusion_rows, _CONFUSION_COLUMNS)
    classes = page.table(found.class_rows, _CLASS_COLUMNS)
    return [
        ("AP", _result(found.result)),
        ("AP by frequency", page.figure(by_frequency, explanations.points(found.class_rows))),
        ("Precision and recall", curves),
        ("Errors", _errors(found.error_rows)),
        ("Most confused classes", confusions + page.note(explanations.CONFUSIONS)),
        ("Calibration", _calibration(found.calibration)),
        ("Worst false positives", _pictures(wrong)),
        ("Worst misses", _pictures(missed)),
        ("Classes", classes + page.note(explanations.CLASSES)),
    ]


def _tables(found: _Findings) -> dict[str, list[Row]]:
    tables = {
        "classes": found.class_rows,
        "errors": found.error_rows,
        "confusions": found.confusion_rows,
        "precision_recall": analysis.precision_recall_rows(found.curves),
    }
    if found.calibration:
        tables |= {"calibration": found.calibration.rows, "reliability": bin_rows(found.calibration)}
    return tables


def _header(
    validation: ValidationSet, verdicts: Verdicts, detections: DetectionColumns, score_threshold: float | None
) -> dict[str, Any]:
    scores, truth = detections.scores, validation.ground_truth
    per_image = np.bincount(detections.image_index, minlength=truth.num_images)
    return {
        "annotations": validation.description,
        "number of detections": f"{len(scores)}: {per_image.mean():.1f} per image ({per_image.min()} to "
        f"{per_image.max()}); {len(verdicts.score)} count, {verdicts.ignored.sum()} of them neither right nor wrong",
        "scores": f"{scores.min():.3g} to {scores.max():.3g}" if len(scores) else None,
        "score threshold": score_threshold,
    }  # fmt: skip


def _result(result: dict[str, Any]) -> str:
    keys = [key for key in result if key.startswith("A")]
    columns = [Column("set", "percent"), *(Column(key, key, ".1f") for key in keys)]
    support = [
        {"set": what} | {key: result["support"][key][what] for key in keys if result["support"].get(key)}
        for what in ("classes", "objects")
    ]
    values = page.table([{"set": "value"} | {key: result[key] for key in keys}], columns)
    means = [Column("set", "mean of"), *(Column(key, key, "d") for key in support[0] if key != "set")]
    rule = text_table(result).splitlines()[0]
    return page.note(rule) + values + page.table(support, means)


def _errors(rows: Sequence[Row]) -> str:
    groups = [("", ""), *((f"_{group}", f" {group}") for group in GROUPS if f"dAP_{group}" in rows[0])]

    def columns(key: str, head: str, spec: str) -> list[Column]:
        return [Column(f"{key}{suffix}", f"{head}{name}", spec) for suffix, name in groups]

    gains = [Column("error", "error"), *columns("dAP", "gain in AP50", "+z.2f")]
    counts = [
        Column("error", "number"),
        *columns("shown", "above threshold", "d"),
        *columns("count", "at any score", "d"),
    ]
    counted = [row for row in rows if row["count"] is not None]
    tables = page.table(rows, gains) + page.table(counted, counts)
    return page.figure(plots.error_plot(rows), "") + tables + page.note(explanations.ERRORS)


def _calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return page.note(explanations.NO_PROBABILITIES)
    fitted = f"Fitted on {calibration.fitting_images} images, reported on the other {calibration.reported_images}: "
    fitted += "no temperature" if calibration.temperature is None else f"temperature {calibration.temperature:.3f}"
    shown = page.figure(plots.reliability_plot(calibration), f"{fitted}.")
    return shown + page.table(calibration.rows, _CALIBRATION_COLUMNS) + page.note(explanations.CALIBRATION)


def _pictures(shown: Iterable[tuple[bytes, str]] | None) -> str:
    if shown is None:
        return page.note(explanations.NO_IMAGES)
    found = list(shown)
    return page.pictures(found) if found else page.note("There are none.")
