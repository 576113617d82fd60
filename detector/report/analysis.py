"""The numbers of a report as rows of plain values, ready for JSON, CSV and HTML; None where there is no number.

R recall points, K classes, D detections that count.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..evaluation.columnar import RECALL_POINTS, Curves
from .error_kinds import KINDS, MISSED, Errors, ap_without_error, confusions
from .operating_point import OperatingPoints
from .validation_set import ValidationSet, mean_of, plain
from .verdicts import Verdicts

Row = dict[str, Any]

MOST_CONFUSED = 200
_CURVES_PER_GROUP = 2


class PrecisionRecall(NamedTuple):
    """Interpolated precision (R,) at RECALL_POINTS, by name."""

    at_50: dict[str, NDArray[np.float64]]  # mean over the classes of each group at IoU 0.5
    at_50_95: dict[str, NDArray[np.float64]]  # and over IoU 0.50:0.95
    classes: dict[str, NDArray[np.float64]]  # at IoU 0.5, of the classes with most objects in each group


def class_rows(validation: ValidationSet, result: dict, curves: Curves, points: OperatingPoints) -> list[Row]:
    """The rows of `summarize` with AP50, AR (at the protocol's limit), images that hold the class, and its best F1."""
    truth = validation.ground_truth
    precision, recall = curves.precision[0, :, :, 0, -1], curves.recall[:, :, 0, -1]
    held = np.unique(truth.cell[~truth.ignored[:, 0]]) % truth.num_classes
    images = np.bincount(held, minlength=truth.num_classes)
    supported = curves.num_objects[:, 0] > 0

    def percent(values: NDArray, k: int) -> float | None:
        return 100 * float(values[:, k].mean()) if supported[k] else None

    return [
        row
        | {
            "AP50": percent(precision, k),
            "AR": percent(recall, k),
            "threshold": plain(points.threshold[k]),
            "precision": plain(100 * points.precision[k]),
            "recall": plain(100 * points.recall[k]),
            "num_images": int(images[k]),
        }
        for k, row in enumerate(result["classes"])
    ]


def precision_recall(validation: ValidationSet, curves: Curves) -> PrecisionRecall:
    """The curves that AP is the area under; a group without objects has none."""
    precision, num_objects = curves.precision[..., 0, -1], curves.num_objects[:, 0]
    supported = {name: members & (num_objects > 0) for name, members in validation.groups.items()}
    supported = {name: members for name, members in supported.items() if members.any()}
    chosen = [
        k
        for name, members in supported.items()
        if name != "all" or len(supported) == 1
        for k in np.argsort(-num_objects * members, kind="stable")[: min(_CURVES_PER_GROUP, members.sum())]
    ]
    return PrecisionRecall(
        {name: precision[0][:, members].mean(axis=1) for name, members in supported.items()},
        {name: precision[:, :, members].mean(axis=(0, 2)) for name, members in supported.items()},
        {validation.classes.names[k]: precision[0, :, k] for k in chosen},
    )


def precision_recall_rows(curves: PrecisionRecall) -> list[Row]:
    """A row per recall point."""
    columns = {f"{name}, IoU 0.50": values for name, values in curves.at_50.items()}
    columns |= {f"{name}, IoU 0.50:0.95": values for name, values in curves.at_50_95.items()}
    columns |= {f"class {name}, IoU 0.50": values for name, values in curves.classes.items()}
    return [
        {"recall": float(point)} | {name: float(values[r]) for name, values in columns.items()}
        for r, point in enumerate(RECALL_POINTS)
    ]


def error_rows(validation: ValidationSet, verdicts: Verdicts, errors: Errors, shown: NDArray[np.bool_]) -> list[Row]:
    """For each kind of error the gain in AP50 by fixing it, how many of it are `shown`, and how many there are in all.

    Keys that end in _r, _c, _f are about a group: of classes with an AP, of detections, of missed objects.

    Args:
        shown: (D,) detections that a user would see.
    """
    truth, groups = validation.ground_truth, validation.groups
    fixed = ap_without_error(verdicts, errors, truth)
    as_it_is = fixed.pop("")
    rows = []
    for name, ap in fixed.items():
        row = {"error": name}
        row |= {f"dAP{_suffix(group)}": mean_of(ap - as_it_is, members) for group, members in groups.items()}
        if name in KINDS[:MISSED]:
            of_kind = errors.kind == KINDS.index(name)
            counts = {"shown": verdicts.label[of_kind & shown], "count": verdicts.label[of_kind]}
        elif name == KINDS[MISSED]:
            counts = {"count": (truth.cell % truth.num_classes)[errors.missed]}
        else:
            counts = {}
        for key in ("shown", "count"):
            row |= {
                f"{key}{_suffix(group)}": int(members[counts[key]].sum()) if key in counts else None
                for group, members in groups.items()
            }
        rows.append(row)
    return rows


def confusion_rows(
    validation: ValidationSet, verdicts: Verdicts, errors: Errors, shown: NDArray[np.bool_]
) -> list[Row]:
    """The most confused pairs of classes, by falling numbers of `shown` (D,) detections."""
    names, groups = validation.classes.names, validation.classes.frequencies
    pairs = confusions(verdicts, errors, validation.ground_truth, shown=shown)[:MOST_CONFUSED]
    return [
        {
            "detected": names[detected],
            "detected_group": groups[detected] if groups else None,
            "object": names[actual],
            "object_group": groups[actual] if groups else None,
            "shown": seen,
            "count": count,
        }
        for detected, actual, seen, count in pairs.tolist()
    ]


def _suffix(group: str) -> str:
    return "" if group == "all" else f"_{group}"
