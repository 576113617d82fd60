"""From a checkpoint to its result, and to the page about it."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ...datasets.annotations.annotations import Annotations
from ..build import build_evaluation
from ..build_data import build_val
from ..config.schema import Config, Model
from ..config.yaml_files import differences as config_differences
from ..errors import ConfigError
from ..evaluation.ground_truth import GroundTruth, Protocol, choose_protocol
from ..inference import load_model
from ..results.columns import DetectionColumns
from ..results.files import check_suffix, read_results, write_results
from ..results.parts import part_path, record, recorded, remove_parts
from ..scoring import warn_of_few_detections
from ..system.distributed import Process, on_rank_zero, this_process
from .report import write_report
from .validation_set import ValidationSet, ids_of

_log = logging.getLogger(__name__)


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
        with_fixed_ap: "Fixed AP" too (see `GroundTruth.with_fixed_ap_rules`).

    Raises:
        ConfigError: the configuration describes another model.
        CheckpointError, DataError, ResultsError: a file that cannot be used, or another that has other classes.
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
    if process.rank == 0:
        _warn_of_caveats(config, evaluation.protocol)
    detections: Iterable[DetectionColumns] = evaluation.detections(model.network)
    if detections_path:
        detections = record(detections, part_path(detections_path, process.rank))
    result = evaluation.score(detections, with_fixed_ap=with_fixed_ap)
    if result is not None:
        warn_of_few_detections(result)
        if detections_path:  # all that they record is recorded: rank 0 has scored it
            _join(detections_path, process.world_size, known)
    return result


def _warn_of_caveats(config: Config, protocol: Protocol) -> None:
    test = config.test
    for caveat in protocol.caveats(
        score_threshold=test.score_threshold, detections_per_image=test.detections_per_image
    ):
        _log.warning(caveat)


def _check_same_model(ours: Model, theirs: Model, checkpoint: Path) -> None:
    # Where the weights came from, which of them were trained and how makes no difference to the trained network.
    training_only = {"backbone": {"weights", "frozen_stages"}, "head": {"recompute"}}
    changed = config_differences(*({"model": m.model_dump(mode="json", exclude=training_only)} for m in (theirs, ours)))
    if changed:
        raise ConfigError(
            f"{checkpoint}: the checkpoint of another model than the configuration's (checkpoint -> configuration): "
            f"{'; '.join(changed)}. Name the config.yaml of the checkpoint's run, or give the overrides of its training"
        )


def _join(path: Path, num_processes: int, annotations: Annotations) -> None:
    """Write to `path` what the processes have recorded, and remove their parts."""
    try:
        parts = [part_path(path, rank) for rank in range(num_processes)]
        write_results(path, recorded(parts), **ids_of(annotations))
    finally:
        remove_parts(path)


def report_checkpoint(config: Config, checkpoint: Path, detections: Path, folder: Path) -> Path:
    """The path of a report in `folder` about what `score_checkpoint` has scored. For one process, after it.

    Args:
        detections: the file that it kept the detections in.
    """
    val, classes = build_val(config, this_process()), load_model(checkpoint).classes
    truth = GroundTruth.from_annotations(val.annotations, choose_protocol(config.eval.protocol, val.annotations))
    validation = ValidationSet(val.annotations, truth, classes)
    return write_report(
        folder,
        validation,
        read_results(detections, **validation.ids),
        source={"checkpoint": str(checkpoint), "results": str(detections)},
        images=val.images,
        score_threshold=config.test.score_threshold,
    )
