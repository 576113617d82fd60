"""The numbers that are reported: AP and recall in percent, by size, by frequency and by class, and the table of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.classes import Classes
from .columnar import ColumnarEvaluator, Curves
from .ground_truth import GroundTruth, Protocol
from .matching import IOU_THRESHOLDS

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # rows of SIZE_RANGES
_SIZES = {"s": _SMALL, "m": _MEDIUM, "l": _LARGE}
_FREQUENCIES = ("r", "c", "f")
_AP_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def summarize(
    curves: Curves,
    ground_truth: GroundTruth,
    classes: Classes,
    *,
    score_threshold: float | None = None,
) -> dict[str, Any]:
    """The result as plain values, ready for JSON; percent, and None where the ground truth supports no number.

    Args:
        classes: the K classes; without their frequencies APr, APc and APf are None.
        score_threshold: which the detections had passed, only to be shown.

    Returns:
        AP, AP50, AP75, APs, APm, APl, APr, APc, APf;
        AR300, ARs300, ARm300, ARl300 (LVIS) or AR1, AR10, AR100, ARs, ARm, ARl (COCO);
        `support`: for each AP the classes and objects that it is a mean over (None for unknown frequencies);
        `protocol`: the rules; `classes`: a row for each class.
    """
    protocol, groups = ground_truth.protocol, _groups(classes.frequencies)
    return {
        **_average_precisions(curves.precision[..., -1], groups),
        **_recalls(curves.recall, protocol),
        "support": _support(curves.num_objects, groups if classes.frequencies else None),
        "protocol": _describe(protocol, ground_truth.num_images, score_threshold),
        "classes": _class_rows(curves, classes),
    }


def summarize_fixed_ap(evaluator: ColumnarEvaluator, frequencies: Sequence[str] | None = None) -> dict[str, Any]:
    """What `summarize` does not have: the AP numbers of an evaluator by the rules of Fixed AP (`GroundTruth.with_fixed_ap_rules`).

    Returns:
        AP_fixed, AP50_fixed, …, APf_fixed, and `fixed_ap`: how many detections of a class count, and how many of the
        classes have fewer (more detections in an image could find more objects of them).
    """
    curves, truth = evaluator.accumulate(), evaluator.ground_truth
    counts = np.bincount(evaluator.state().cell % truth.num_classes, minlength=truth.num_classes)
    limit = truth.protocol.per_class
    return {
        **{f"{k}_fixed": v for k, v in _average_precisions(curves.precision[..., -1], _groups(frequencies)).items()},
        "fixed_ap": {
            "detections_per_class": limit,
            "classes": truth.num_classes,
            "classes_with_fewer": int(np.count_nonzero(counts < limit)),
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result of `summarize` as lines of text: the protocol, AP with its support, the recalls, and Fixed AP if there."""
    protocol = result["protocol"]
    limit, per = protocol["detections_per_image"], "image"
    if limit is None:
        limit, per = protocol["detections_per_class_and_image"], "class and image"
    rule = "federated" if protocol["federated"] else "exhaustive"
    threshold = protocol["score_threshold"]
    lines = [
        f"{protocol['name']} protocol ({rule}): {limit} detections per {per}, IoU 0.50:0.95, "
        f"{protocol['num_images']} images" + ("" if threshold is None else f", scores above {threshold:g}"),
        f"{'':<6}{'percent':>9}{'classes':>9}{'objects':>9}",
    ]
    for key in _AP_KEYS:
        support = result["support"][key] or {"classes": "-", "objects": "-"}
        lines.append(f"{key:<6}{one_decimal(result[key]):>9}{support['classes']:>9}{support['objects']:>9}")
    recalls = [f"{key} {one_decimal(value)}" for key, value in result.items() if key.startswith("AR")]
    return "\n".join([*lines, "recall: " + ", ".join(recalls), *_fixed_lines(result)])


def line(result: dict[str, Any]) -> str:
    """The AP numbers of `summarize` on one line of text, for in between."""
    return ", ".join(f"{key} {one_decimal(result[key])}" for key in _AP_KEYS)


def _fixed_lines(result: dict[str, Any]) -> list[str]:
    if "fixed_ap" not in result:
        return []
    rule, numbers = result["fixed_ap"], [f"{k}_fixed {one_decimal(result[f'{k}_fixed'])}" for k in _AP_KEYS]
    return [
        f"Fixed AP (Dave et al. 2021): the best {rule['detections_per_class']} detections of each class in all images; "
        f"{rule['classes_with_fewer']} of {rule['classes']} classes have fewer",
        ", ".join(numbers),
    ]


def _groups(frequencies: Sequence[str] | None) -> dict[str, list[int]]:
    """The labels of each frequency."""
    return {f: [c for c, of_class in enumerate(frequencies or ()) if of_class == f] for f in _FREQUENCIES}


def _average_precisions(precision: NDArray[np.float64], groups: dict[str, list[int]]) -> dict[str, float | None]:
    """The numbers of `_AP_KEYS`, from precision (T, R, K, S)."""
    return {
        "AP": _mean_percent(precision[..., _ALL]),
        "AP50": _mean_percent(precision[_threshold(0.5), ..., _ALL]),
        "AP75": _mean_percent(precision[_threshold(0.75), ..., _ALL]),
        **{f"AP{size}": _mean_percent(precision[..., s]) for size, s in _SIZES.items()},
        **{f"AP{f}": _mean_percent(precision[:, :, group, _ALL]) for f, group in groups.items()},
    }


def _mean_percent(values: NDArray[np.float64]) -> float | None:
    """100 times the mean of the supported values, those above -1."""
    supported = values[values > -1]
    return 100 * float(np.mean(supported)) if len(supported) else None


def _threshold(iou: float) -> int:
    return int(np.flatnonzero(np.isclose(IOU_THRESHOLDS, iou))[0])


def _recalls(recall: NDArray[np.float64], protocol: Protocol) -> dict[str, float | None]:
    """Recalls (T, K, S, M) under the names of their benchmark: COCO's sizes do not say the limit, LVIS's do."""
    overall = {f"AR{limit}": _mean_percent(recall[..., _ALL, m]) for m, limit in enumerate(protocol.limits)}
    suffix = str(protocol.per_image) if protocol.per_image is not None else ""
    return overall | {f"AR{size}{suffix}": _mean_percent(recall[..., s, -1]) for size, s in _SIZES.items()}


def _support(num_objects: NDArray[np.int64], groups: dict[str, list[int]] | None) -> dict[str, dict[str, int] | None]:
    """For each AP the number of classes and objects in it; `num_objects` is (K, S)."""

    def count(objects: NDArray[np.int64]) -> dict[str, int]:
        return {"classes": int(np.count_nonzero(objects)), "objects": int(objects.sum())}

    overall = {key: count(num_objects[:, _ALL]) for key in ("AP", "AP50", "AP75")}
    by_size = {f"AP{size}": count(num_objects[:, s]) for size, s in _SIZES.items()}
    by_frequency = {f"AP{f}": count(num_objects[groups[f], _ALL]) if groups else None for f in _FREQUENCIES}
    return overall | by_size | by_frequency


def _class_rows(curves: Curves, classes: Classes) -> list[dict[str, Any]]:
    frequencies, train_images = classes.frequencies, classes.train_images
    return [
        {
            "name": name,
            "category_id": int(category_id),
            "frequency": frequencies[k] if frequencies else None,
            "train_images": None if train_images is None else int(train_images[k]),
            "AP": _mean_percent(curves.precision[:, :, k, _ALL, -1]),
            "num_objects": int(curves.num_objects[k, _ALL]),
        }
        for k, (name, category_id) in enumerate(zip(classes.names, classes.ids, strict=True))
    ]


def _describe(protocol: Protocol, num_images: int, score_threshold: float | None) -> dict[str, Any]:
    return {
        "name": protocol.name,
        "federated": protocol.federated,
        "detections_per_image": protocol.per_image,
        "detections_per_class_and_image": None if protocol.per_image is not None else protocol.limits[-1],
        "iou_thresholds": [round(float(iou), 2) for iou in IOU_THRESHOLDS],
        "num_images": num_images,
        "score_threshold": score_threshold,
    }


def one_decimal(percent: float | None) -> str:
    """A number of percent for people."""
    return "n/a" if percent is None else f"{percent:.1f}"
