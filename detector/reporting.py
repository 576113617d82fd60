"""From saved detections, and from those of a checkpoint, to the pages of `report`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..datasets.annotations.annotations import Annotations
from .build_data import build_val
from .config.schema import Config
from .evaluation import DetectionColumns, GroundTruth, choose_protocol, read_results
from .report import Subject, write_comparison, write_report
from .scoring import Saved, read_saved
from .system.distributed import Process


def report_saved(saved: Saved, results: Path, folder: Path, *, images: Path | None = None) -> Path:
    """The path of a report in `folder` about saved detections, with pictures if the folder of `images` is given.

    Raises DataError for images that are missing or cannot be read.
    """
    return write_report(folder, _subject(saved), saved.detections, source={"results": str(results)}, images=images)


def report_checkpoint(config: Config, checkpoint: Path, result: dict[str, Any], detections: Path, folder: Path) -> Path:
    """The path of a report in `folder` about what `score_checkpoint` has scored. For one process, after it.

    Args:
        result: of `score_checkpoint`, which says what is known of the classes.
        detections: the file that it kept the detections in.
    """
    val = build_val(config, Process(0, 1, torch.device("cpu")))
    known = val.annotations
    truth = GroundTruth.from_annotations(known, choose_protocol(config.eval.protocol, known))
    subject = Subject(
        known,
        truth,
        [row["frequency"] for row in result["classes"]],
        [row["train_images"] for row in result["classes"]],
    )
    return write_report(
        folder,
        subject,
        read_results(detections, **_ids(known)),
        source={"checkpoint": str(checkpoint), "results": str(detections)},
        images=val.images,
        score_threshold=config.test.score_threshold,
    )


def compare_saved(
    annotations: Path,
    results: Sequence[Path],
    folder: Path,
    *,
    protocol: str = "auto",
    train_annotations: Path | None = None,
) -> Path:
    """The path of a page in `folder` that compares files of detections, all with the first. See `read_saved`."""
    first = read_saved(annotations, results[0], protocol=protocol, train_annotations=train_annotations)
    return write_comparison(folder, _subject(first), _runs(first, results))


def _runs(first: Saved, results: Sequence[Path]) -> Iterator[tuple[str, DetectionColumns]]:
    """Names and detections, read one after the other; files of the same name go by their paths."""
    names = [path.stem for path in results]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")) for path in results]
    yield names[0], first.detections
    for name, path in zip(names[1:], results[1:], strict=True):
        yield name, read_results(path, **_ids(first.annotations))


def _subject(saved: Saved) -> Subject:
    return Subject(saved.annotations, saved.ground_truth, saved.frequencies, saved.train_image_counts)


def _ids(known: Annotations) -> dict[str, Any]:
    return {"image_ids": known.image_ids, "category_ids": known.category_ids, "class_names": known.class_names}
