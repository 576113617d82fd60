"""From saved detections to results and pages, without torch. What runs a model is in report/checkpoints.py."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..datasets.annotations.annotations import Annotations, read_annotations
from ..datasets.classes import Classes
from .evaluation.columnar import ColumnarEvaluator, Curves
from .evaluation.ground_truth import GroundTruth, Protocol, choose_protocol
from .evaluation.metrics import summarize, summarize_fixed_ap
from .evaluation.open_images import OpenImagesEvaluator, open_images_truth
from .evaluation.open_images_metrics import summarize_open_images
from .report import ValidationSet, write_comparison, write_report
from .report.validation_set import ids_of
from .results.columns import DetectionColumns
from .results.files import read_results

_log = logging.getLogger(__name__)


def read_validation_set(
    annotations_path: Path, *, protocol: str = "auto", train_annotations: Path | None = None
) -> ValidationSet:
    """What saved detections are scored with.

    Args:
        protocol: "lvis", "coco", or "auto" for what the annotations are made for.
        train_annotations: take the classes' frequencies from this file, counting its images if it does not state them;
            None: from `annotations_path`, if it states them.

    Raises:
        DataError: a file that cannot be used, or two that do not fit together.
    """
    annotations = read_annotations(annotations_path)
    ground_truth = GroundTruth.from_annotations(annotations, choose_protocol(protocol, annotations))
    classes = Classes.of_file(annotations)
    if train_annotations:
        classes = Classes.from_annotations(_training_set(train_annotations, annotations))
    return ValidationSet(annotations, ground_truth, classes)


def _training_set(path: Path, annotations: Annotations) -> Annotations:
    """The training set that goes with a validation set. Raises DataError unless they have the same classes."""
    train = read_annotations(path)
    classes = Classes.of_file(train)
    classes.check_same(annotations.category_ids, annotations.class_names, here=str(path), there=str(annotations.path))
    return train


class Scored(NamedTuple):
    """What `score_saved` finds."""

    protocol: Protocol
    curves: Curves
    result: dict[str, Any]  # of `summarize`


def score_saved(validation: ValidationSet, detections: DetectionColumns, *, with_fixed_ap: bool = False) -> Scored:
    """The score of detections on a validation set.

    Args:
        with_fixed_ap: "Fixed AP" too (see `GroundTruth.with_fixed_ap_rules`).
    """
    truth, classes = validation.ground_truth, validation.classes
    evaluator = ColumnarEvaluator(truth)
    evaluator.add(*detections)
    curves = evaluator.accumulate()
    result = summarize(curves, truth, classes)
    if with_fixed_ap:
        fixed = ColumnarEvaluator(truth.with_fixed_ap_rules())
        fixed.add(*detections)
        result |= summarize_fixed_ap(fixed, classes.frequencies)
        warn_of_few_detections(result)
    return Scored(truth.protocol, curves, result)


def score_open_images(
    annotations_path: Path, results_path: Path, *, train_annotations: Path | None = None
) -> dict[str, Any]:
    """The result (`summarize_open_images`) of saved detections on a file that `datasets.convert` made of Open Images.

    Args:
        train_annotations: count the boxes of each class in this file, for AP50 of five groups of classes.

    Raises DataError, ResultsError: a file that cannot be used, or two that do not fit together.
    """
    annotations, counts = read_annotations(annotations_path), None
    if train_annotations:
        train = _training_set(train_annotations, annotations)
        counts = np.bincount(train.labels, minlength=len(train.category_ids))  # with group-of boxes: `instance_groups`
    evaluator = OpenImagesEvaluator(open_images_truth(annotations))
    evaluator.add(*read_results(results_path, **ids_of(annotations)))
    return summarize_open_images(evaluator, Classes.of_file(annotations), train_instance_counts=counts)


def compare_saved(
    annotations: Path,
    results: Sequence[Path],
    folder: Path,
    *,
    protocol: str = "auto",
    train_annotations: Path | None = None,
) -> Path:
    """The path of a page in `folder` that compares files of detections, all with the first.

    Args:
        protocol, train_annotations: see `read_validation_set`.
    """
    validation = read_validation_set(annotations, protocol=protocol, train_annotations=train_annotations)
    return write_comparison(folder, validation, _runs(validation, results))


def _runs(validation: ValidationSet, results: Sequence[Path]) -> Iterator[tuple[str, DetectionColumns]]:
    """Names and detections, read one after the other; files of the same name go by their paths."""
    names = [path.stem for path in results]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")) for path in results]
    for name, path in zip(names, results, strict=True):
        yield name, read_results(path, **validation.ids)


def report_saved(
    validation: ValidationSet, detections: DetectionColumns, results: Path, folder: Path, *, images: Path | None = None
) -> Path:
    """The path of a report in `folder` about saved detections, with pictures if the folder of `images` is given.

    Raises DataError for images that are missing or cannot be read.
    """
    return write_report(folder, validation, detections, source={"results": str(results)}, images=images)


def warn_of_few_detections(result: dict[str, Any]) -> None:
    """Warn if Fixed AP, where the result has it, would be over more detections than there are."""
    rule = result.get("fixed_ap")
    if rule and rule["classes_with_fewer"]:
        _log.warning(
            f"Fixed AP is over {rule['detections_per_class']} detections of each class, and "
            f"{rule['classes_with_fewer']} of {rule['classes']} classes have fewer; the model must give more in an image: "
            "raise test.detections_per_image and test.candidates_per_level, set test.score_threshold to 0"
        )
