"""Two ways to a result: run a checkpoint's model on a dataset, or read detections that were saved."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import read_annotations

from .build import build_evaluation, build_val
from .classes import Classes
from .config import Config, Model
from .distributed import Process, gather_on_rank_zero
from .evaluation import (
    ColumnarEvaluator,
    DetectionColumns,
    GroundTruth,
    choose_protocol,
    read_results,
    summarize,
    write_results,
)
from .inference import load_model
from .yaml_files import ConfigError, differences

_log = logging.getLogger(__name__)


def score_checkpoint(
    config: Config, checkpoint: Path, process: Process, *, detections_path: Path | None = None
) -> dict[str, Any] | None:
    """The result (`summarize`) of a checkpoint's model, on rank 0; None on other ranks, all of which call this.

    Data, `test` and `eval` are those of the configuration; the network, its classes and their frequencies, which come
    from the training set, are those of the checkpoint.

    Args:
        detections_path: write all detections here, from which `score_file` gets the same numbers.

    Raises:
        ConfigError: the configuration describes another model, or its validation set has other classes.
        CheckpointError, DataError, ResultsError: a file that cannot be used.
    """
    model = load_model(checkpoint, device=process.device)
    _check_same_model(config.model, model.config.model, checkpoint)
    val = build_val(config, process)
    known = val.annotations
    model.classes.check_same(known.category_ids, known.class_names, here=str(checkpoint), there=f"{known.path} (val)")
    evaluation = build_evaluation(config, val, model.classes, process)
    for caveat in evaluation.caveats() if process.rank == 0 else []:
        _log.warning(f"warning: {caveat}")
    detections: Iterable[DetectionColumns] = evaluation.detections(model.network)
    if detections_path:
        detections = list(detections)
        parts = gather_on_rank_zero(_joined(detections))
        if parts is not None:
            ids = {"image_ids": known.image_ids, "category_ids": known.category_ids}
            write_results(detections_path, _by_image(_joined(parts)), **ids)
    return evaluation.score(detections)


def score_file(
    annotations_path: Path, results_path: Path, *, protocol: str = "auto", train_annotations: Path | None = None
) -> dict[str, Any]:
    """The result (`summarize`) of a file of detections.

    Args:
        protocol: "lvis", "coco", or "auto" for what the annotations are made for.
        train_annotations: take the classes' frequencies from this file, counting its images if it does not state them;
            None: from `annotations_path`, if it states them.

    Raises:
        DataError, ResultsError, ConfigError: a file that cannot be used, or two that do not fit together.
    """
    known = read_annotations(annotations_path)
    ground_truth = GroundTruth.from_annotations(known, choose_protocol(protocol, known))
    frequencies, train_images = known.frequencies, None
    if train_annotations:
        classes = Classes.from_annotations(read_annotations(train_annotations))
        classes.check_same(
            known.category_ids, known.class_names, here=str(train_annotations), there=str(annotations_path)
        )
        frequencies, train_images = classes.frequencies, classes.train_images
    evaluator = ColumnarEvaluator(ground_truth)
    evaluator.add(*read_results(results_path, image_ids=known.image_ids, category_ids=known.category_ids))
    return summarize(
        evaluator.accumulate(), ground_truth,
        category_ids=known.category_ids, class_names=known.class_names,
        frequencies=frequencies, train_image_counts=train_images,
    )  # fmt: skip


def _check_same_model(ours: Model, theirs: Model, checkpoint: Path) -> None:
    # Where the weights came from, which of them were trained and how makes no difference to the trained network.
    training_only = {"backbone": {"weights", "frozen_stages"}, "head": {"recompute"}}
    changed = differences(*({"model": m.model_dump(mode="json", exclude=training_only)} for m in (theirs, ours)))
    if changed:
        raise ConfigError(
            f"{checkpoint}: the checkpoint of another model than the configuration's (checkpoint -> configuration): "
            f"{'; '.join(changed)}. Name the config.yaml of the checkpoint's run, or give the overrides of its training"
        )


def _joined(parts: Iterable[DetectionColumns]) -> DetectionColumns:
    nothing = DetectionColumns(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
    return DetectionColumns(*(np.concatenate(columns) for columns in zip(nothing, *parts, strict=True)))


def _by_image(detections: DetectionColumns) -> DetectionColumns:
    """In the order of images; those of an image stay as they are, since equal scores rank as they come."""
    order = np.argsort(detections.image_index, kind="stable")
    return DetectionColumns(*(column[order] for column in detections))
