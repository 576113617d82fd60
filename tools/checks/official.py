"""The official evaluators, `lvis` and `pycocotools`, as they are: to be compared with ours. Neither is needed otherwise."""

import contextlib
import importlib.metadata
import io
import json
import logging
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longshot.datasets.classes import Classes
from longshot.detector.errors import ResultsError
from longshot.detector.evaluation.columnar import Curves
from longshot.detector.evaluation.ground_truth import Protocol
from longshot.detector.results.columns import UNKNOWN, DetectionColumns
from longshot.detector.scoring import Scored

_COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class Official(NamedTuple):
    """What an official package finds; -1 in an array where the ground truth has no object that counts."""

    package: str  # with its version
    precision: NDArray[np.float64]  # (T, R, K, S, M)
    recall: NDArray[np.float64]  # (T, K, S, M)
    numbers: dict[str, float | None]  # percent, under the names of `metrics.summarize`


def score_with_official(
    protocol: Protocol, dataset: dict, detections: DetectionColumns, *, image_ids: ArrayLike, category_ids: ArrayLike
) -> Official:
    """The score of the package that made the protocol.

    Args:
        dataset: the content of an annotation file, made ready by `complete`.
        image_ids, category_ids: rising, of the dataset.

    Raises ResultsError: the package is not installed, or there are no detections, on which the packages fail.
    """
    if not len(detections.scores):
        raise ResultsError(
            f"{protocol.name}: the official package cannot score a file without detections; ours says AP 0"
        )
    categories = np.append(np.asarray(category_ids), np.max(category_ids) + 1)  # the last stands for UNKNOWN
    assert UNKNOWN == -1
    columns = (
        np.asarray(image_ids)[detections.image_index],
        categories[detections.labels],
        detections.boxes_xywh.astype(float),
        detections.scores.astype(float),
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    records = [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in rows]
    return (score_with_lvis if protocol.federated else score_with_pycocotools)(dataset, records)


def score_with_lvis(dataset: dict, results: list[dict], *, per_image: int = 300) -> Official:
    """The federated score. Writes into what it is given.

    Args:
        per_image: detections of an image that count; -1 for all.
    """
    lvis = load_lvis()

    class Given(lvis.LVIS):
        def _load_json(self, dataset: dict) -> dict:
            return dataset

    truth = Given(dataset)
    evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, results, max_dets=per_image), "bbox")
    evaluation.params.max_dets = per_image
    evaluation.run()
    numbers = {name.replace("@", ""): _percent(value) for name, value in evaluation.get_results().items()}
    arrays = (evaluation.eval[name][..., None] for name in ("precision", "recall"))
    return Official(f"lvis {importlib.metadata.version('lvis')}", *arrays, numbers)


def score_with_pycocotools(dataset: dict, results: list[dict]) -> Official:
    """The score of COCO. Writes into what it is given."""
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    with contextlib.redirect_stdout(io.StringIO()):
        truth = pycocotools.coco.COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = pycocotools.cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = dict(zip(_COCO_NUMBERS, map(_percent, evaluation.stats.tolist()), strict=True))
    arrays = (evaluation.eval[name] for name in ("precision", "recall"))
    return Official(f"pycocotools {importlib.metadata.version('pycocotools')}", *arrays, numbers)


def load_lvis() -> types.ModuleType:
    """PyPI's lvis 0.5.3 as it is, with or without its OpenCV and matplotlib, on any numpy, leaving nothing behind.

    Raises ResultsError if it is not installed.
    """
    handlers, level = list(logging.root.handlers), logging.root.level
    drawing = types.ModuleType("lvis.vis")  # the real one imports OpenCV and matplotlib, which scoring does not need
    drawing.LVISVis = None
    sys.modules["lvis.vis"] = drawing
    try:
        import lvis
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "lvis"]:
            del sys.modules[name]
        logging.root.handlers[:] = handlers  # importing lvis configures the root logger
        logging.root.setLevel(level)
    old_numpy = types.ModuleType("numpy as lvis knew it")
    old_numpy.__getattr__ = lambda name: float if name == "float" else getattr(np, name)
    lvis.eval.np = old_numpy
    logging.getLogger("lvis").setLevel(logging.ERROR)  # it warns of every list of results that is no file
    return lvis


def compare(
    annotations_path: Path,
    detections: DetectionColumns,
    scored: Scored,
    *,
    ids: Mapping[str, ArrayLike],
    classes: Classes,
) -> dict[str, Any]:
    """How far what the benchmark's own package finds is from ours, see `differences`.

    It needs gigabytes and minutes for thousands of images.

    Args:
        annotations_path: of the ground truth.
        scored: of `scoring.score_saved`.
        ids: image_ids and category_ids of the annotations.
        classes: whose frequencies count.

    Raises ResultsError if the package is not installed, or cannot score the detections.
    """
    dataset = json.loads(annotations_path.read_bytes())
    complete(dataset, classes.frequencies)
    official = score_with_official(scored.protocol, dataset, detections, **ids)
    return differences(scored.curves, scored.result, official)


def complete(dataset: dict, frequencies: list[str] | tuple[str, ...] | None) -> None:
    """Write into the content of an annotation file what the packages insist on, by the rules of `read_annotations`.

    Args:
        frequencies: "r", "c" or "f" for each class by rising id; None: unknown.
    """
    for image in dataset["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = image.get(key) or []
    for k, category in enumerate(sorted(dataset["categories"], key=lambda category: category["id"])):
        category["frequency"] = frequencies[k] if frequencies else "f"
    for i, annotation in enumerate(dataset["annotations"], start=1):
        annotation["id"] = i  # both packages take an object of id 0 for "unmatched"
        annotation["iscrowd"] = annotation.get("iscrowd") or 0
        if annotation.get("area") is None:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        annotation.pop("segmentation", None)  # lvis copies it


def differences(curves: Curves, result: dict[str, Any], official: Official) -> dict[str, Any]:
    """The largest absolute differences between our result and the official one, as plain values.

    Returns:
        `package`; `numbers`: how many were compared, all in percent; the largest differences `in_numbers`, `in_precision`
        and `in_recall`. n/a counts as the packages' -1.
    """
    known = [
        (_or_minus_one(result[name]), _or_minus_one(value))
        for name, value in official.numbers.items()
        if name not in result["support"] or result["support"][name] is not None  # groups of unknown frequency
    ]
    return {
        "package": official.package,
        "numbers": len(known),
        "in_numbers": max(abs(ours - theirs) for ours, theirs in known),
        "in_precision": float(np.abs(curves.precision - official.precision).max()),
        "in_recall": float(np.abs(curves.recall - official.recall).max()),
    }


def differences_line(found: dict[str, Any]) -> str:
    """What `differences` found, on one line of text."""
    return (
        f"official {found['package']}: largest difference {found['in_numbers']:g} over {found['numbers']} numbers in percent, "
        f"{found['in_precision']:g} in precision, {found['in_recall']:g} in recall"
    )


def _percent(value: float) -> float | None:
    return None if value == -1 else 100 * value


def _or_minus_one(percent: float | None) -> float:
    return -100.0 if percent is None else percent


def _not_installed(error: ModuleNotFoundError) -> ResultsError:
    return ResultsError(f"--official: the package {error.name} is not installed; pip install -e '.[test]' installs it")
