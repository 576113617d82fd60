"""Calibration of a verdicts, before and after a temperature that other images gave. D detections."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..results.columns import DetectionColumns
from .analysis import Row
from .calibration import (
    NUM_BINS,
    Reliability,
    calibration_error,
    class_mean_calibration_error,
    fit_temperature,
    in_first_half,
    reliability,
    scaled,
)
from .validation_set import ValidationSet, plain
from .verdicts import Verdicts


class Calibration(NamedTuple):
    """The temperature fitted on one half of the images, and the errors on the other half."""

    temperature: float | None  # None if the fitting half does not determine it; there is nothing "after" then
    fitting_images: int
    reported_images: int
    rows: list[Row]
    before: dict[str, Reliability]  # by group of classes
    after: dict[str, Reliability]


def calibrate(validation: ValidationSet, verdicts: Verdicts, detections: DetectionColumns) -> Calibration | None:
    """None if a score lies outside of [0, 1], and so is no probability."""
    if len(verdicts.score) and not 0 <= verdicts.score.min() <= verdicts.score.max() <= 1:
        return None
    fitting = in_first_half(validation.annotations.image_ids)
    known = ~verdicts.ignored
    fit, report = known & fitting[verdicts.image], known & ~fitting[verdicts.image]
    temperature = fit_temperature(verdicts.score[fit], verdicts.true_positive[fit])
    scores, right, labels = verdicts.score[report], verdicts.true_positive[report], verdicts.label[report]
    changed = None if temperature is None else scaled(scores, temperature)
    of_group = {name: members[labels] for name, members in validation.groups.items()}
    rows = [
        {"group": name, "detections": int(m.sum())}
        | _errors("before", scores[m], right[m], labels[m])
        | ({} if changed is None else _errors("after", changed[m], right[m], labels[m]))
        for name, m in of_group.items()
    ]
    if validation.ground_truth.protocol.federated:
        rows.append(_naive_row(verdicts, detections, fitting, temperature))
    return Calibration(
        temperature, int(fitting.sum()), int((~fitting).sum()), rows,
        {name: reliability(scores[m], right[m]) for name, m in of_group.items()},
        {} if changed is None else {name: reliability(changed[m], right[m]) for name, m in of_group.items()},
    )  # fmt: skip


def bin_rows(calibration: Calibration) -> list[Row]:
    """The reliability diagrams: a row per group and bin."""
    return [
        {
            "temperature": when, "group": name, "from": b / NUM_BINS, "to": (b + 1) / NUM_BINS,
            "detections": int(diagram.count[b]),
            "score": plain(diagram.score[b]), "precision": plain(diagram.precision[b]),
        }
        for when, diagrams in (("before", calibration.before), ("after", calibration.after))
        for name, diagram in diagrams.items()
        for b in range(NUM_BINS)
    ]  # fmt: skip


def _naive_row(
    verdicts: Verdicts, detections: DetectionColumns, fitting: NDArray[np.bool_], temperature: float | None
) -> Row:
    """What a look past federated annotation would give: every detection, those of unchecked classes being wrong."""
    right = np.zeros(len(detections.scores), bool)
    right[verdicts.index[verdicts.true_positive]] = True
    report = ~fitting[detections.image_index]
    scores, right = detections.scores[report].clip(0, 1), right[report]
    after = {} if temperature is None else {"D-ECE after": plain(calibration_error(scaled(scores, temperature), right))}
    return {
        "group": "unchecked as wrong",
        "detections": len(scores),
        "D-ECE before": plain(calibration_error(scores, right)),
    } | after


def _errors(when: str, scores: NDArray, right: NDArray, labels: NDArray) -> Row:
    return {
        f"D-ECE {when}": plain(calibration_error(scores, right)),
        f"class mean {when}": plain(class_mean_calibration_error(scores, right, labels)),
    }
