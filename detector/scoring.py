"""Two ways to a result: run a checkpoint's model on a dataset, or read detections that were saved."""

import json
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..datasets.annotations.annotations import Annotations, read_annotations
from ..datasets.classes import Classes
from .build import build_evaluation
from .build_data import build_val
from .config.schema import Config, Model
from .config.yaml_files import differences as config_differences
from .errors import ConfigError
from .evaluation import (
    ColumnarEvaluator,
    DetectionColumns,
    GroundTruth,
    choose_protocol,
    fixed_ap,
    read_results,
    summarize,
    summarize_fixed_ap,
    write_results,
)
from .evaluation.official import complete, differences, score_with_official
from .evaluation.open_images import OpenImagesEvaluator, open_images_truth
from .evaluation.open_images_metrics import summarize_open_images
from .inference import load_model
from .results.files import check_suffix
from .results.parts import part_path, record, recorded, remove_parts
from .system.distributed import Process, on_rank_zero

_log = logging.getLogger(__name__)


class Saved(NamedTuple):
    """Saved detections, and all that they are scored with."""

    annotations: Annotations
    ground_truth: GroundTruth
    detections: DetectionColumns
    frequencies: Sequence[str] | None  # "r", "c" or "f" per class
    train_image_counts: Sequence[int] | None


def score_checkpoint(
    config: Config,
    checkpoint: Path,
    process: Process,
    *,
    detections_path: Path | None = None,
    with_fixed_ap: bool = False,
) -> dict[str, Any] | None:
    """The result (`summarize`) of a checkpoint's model, on rank 0; None on other ranks, all of which call this.

    Data, `test` and `eval` are those of the configuration; the network, its classes and their frequencies, which come
    from the training set, are those of the checkpoint.

    Args:
        detections_path: keep all detections here, .npz or .json, from which `score_saved` gets the same numbers. All
            processes must see the folder.
        with_fixed_ap: "Fixed AP" too (see `fixed_ap`).

    Raises:
        ConfigError: the configuration describes another model, or its validation set has other classes.
        CheckpointError, DataError, ResultsError: a file that cannot be used.
    """
    if detections_path:
        check_suffix(detections_path)
        # What a killed run has left could be taken for the part of a process that writes to another folder.
        on_rank_zero(process, partial(remove_parts, detections_path))
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
        detections = record(detections, part_path(detections_path, process.rank))
    result = evaluation.score(detections, with_fixed_ap=with_fixed_ap)
    if result is not None:
        _warn_of_few_detections(result)
        if detections_path:  # all that they record is recorded: rank 0 has scored it
            _join(detections_path, process.world_size, known)
    return result


def read_saved(
    annotations_path: Path, results_path: Path, *, protocol: str = "auto", train_annotations: Path | None = None
) -> Saved:
    """A file of detections with what it is to be scored with.

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
    return Saved(known, ground_truth, read_results(results_path, **_ids(known)), frequencies, train_images)


def score_saved(saved: Saved, *, with_fixed_ap: bool = False, with_official: bool = False) -> dict[str, Any]:
    """The result (`summarize`) of saved detections.

    Args:
        with_fixed_ap: "Fixed AP" too (see `fixed_ap`).
        with_official: have the benchmark's own package score them too, and add `official`: how far it is from ours. It
            needs gigabytes and minutes for thousands of images.

    Raises ResultsError if the official package is not installed, or cannot score the detections.
    """
    known, truth = saved.annotations, saved.ground_truth
    evaluator = ColumnarEvaluator(truth)
    evaluator.add(*saved.detections)
    curves = evaluator.accumulate()
    result = summarize(
        curves, truth,
        category_ids=known.category_ids, class_names=known.class_names,
        frequencies=saved.frequencies, train_image_counts=saved.train_image_counts,
    )  # fmt: skip
    if with_fixed_ap:
        fixed = ColumnarEvaluator(fixed_ap(truth))
        fixed.add(*saved.detections)
        result |= summarize_fixed_ap(fixed, saved.frequencies)
        _warn_of_few_detections(result)
    if with_official:
        dataset = json.loads(known.path.read_bytes())
        complete(dataset, saved.frequencies)
        ids = {"image_ids": known.image_ids, "category_ids": known.category_ids}
        official = score_with_official(truth.protocol, dataset, saved.detections, **ids)
        result["official"] = differences(curves, result, official)
    return result


def score_open_images(
    annotations_path: Path, results_path: Path, *, train_annotations: Path | None = None
) -> dict[str, Any]:
    """The result (`summarize_open_images`) of saved detections on a file that `datasets.convert` made of Open Images.

    Args:
        train_annotations: count the boxes of each class in this file, for AP50 of five groups of classes.

    Raises DataError, ResultsError, ConfigError: a file that cannot be used, or two that do not fit together.
    """
    known, counts = read_annotations(annotations_path), None
    if train_annotations:
        train = read_annotations(train_annotations)
        Classes.from_annotations(train).check_same(
            known.category_ids, known.class_names, here=str(train_annotations), there=str(annotations_path)
        )
        counts = np.bincount(train.labels, minlength=len(train.category_ids))  # with group-of boxes: `instance_groups`
    evaluator = OpenImagesEvaluator(open_images_truth(known))
    evaluator.add(*read_results(results_path, **_ids(known)))
    names = {"category_ids": known.category_ids, "class_names": known.class_names}
    return summarize_open_images(evaluator, **names, train_instance_counts=counts)


def _check_same_model(ours: Model, theirs: Model, checkpoint: Path) -> None:
    # Where the weights came from, which of them were trained and how makes no difference to the trained network.
    training_only = {"backbone": {"weights", "frozen_stages"}, "head": {"recompute"}}
    changed = config_differences(*({"model": m.model_dump(mode="json", exclude=training_only)} for m in (theirs, ours)))
    if changed:
        raise ConfigError(
            f"{checkpoint}: the checkpoint of another model than the configuration's (checkpoint -> configuration): "
            f"{'; '.join(changed)}. Name the config.yaml of the checkpoint's run, or give the overrides of its training"
        )


def _join(path: Path, num_processes: int, known: Annotations) -> None:
    """Write to `path` what the processes have recorded, and remove their parts."""
    try:
        write_results(path, recorded([part_path(path, rank) for rank in range(num_processes)]), **_ids(known))
    finally:
        remove_parts(path)


def _ids(known: Annotations) -> dict[str, Any]:
    return {"image_ids": known.image_ids, "category_ids": known.category_ids, "class_names": known.class_names}


def _warn_of_few_detections(result: dict[str, Any]) -> None:
    rule = result.get("fixed_ap")
    if rule and rule["classes_with_fewer"]:
        _log.warning(
            f"warning: Fixed AP is over {rule['detections_per_class']} detections of each class, and "
            f"{rule['classes_with_fewer']} of {rule['classes']} classes have fewer; the model must give more in an image: "
            "raise test.detections_per_image and test.candidates_per_level, set test.score_threshold to 0"
        )
