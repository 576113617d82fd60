"""The numbers of the Open Images metric: AP50 in percent, of five groups of classes, and of each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.classes import Classes
from .metrics import one_decimal
from .open_images import MIN_OVERLAP, OpenImagesEvaluator


def instance_groups(instance_counts: Sequence[int] | NDArray, *, num_groups: int = 5) -> NDArray[np.int64]:
    """(K,) group of each class: equally many classes in each, group 0 the rarest; ties go by label.

    Tan et al. 2021 (EQL v2, arXiv:2012.08548) count all boxes of the training set, group-of boxes too, without those
    that the hierarchy would add: `np.bincount(train.labels, minlength=K)` of a file converted without it.
    """
    groups = np.empty(len(instance_counts), np.int64)
    for group, labels in enumerate(np.array_split(np.argsort(instance_counts, kind="stable"), num_groups)):
        groups[labels] = group
    return groups


def summarize_open_images(
    evaluator: OpenImagesEvaluator,
    classes: Classes,
    *,
    train_instance_counts: Sequence[int] | NDArray | None = None,
) -> dict[str, Any]:
    """The result as plain values, ready for JSON; percent, and None where there is no object.

    Args:
        train_instance_counts: (K,) boxes of each class in training, for the groups (see `instance_groups`).

    Returns:
        AP50: the mean over the classes with objects; `AP50_groups`: of each group, the rarest first, or None;
        `support`: classes and objects; `protocol`; `classes`: a row for each class.
    """
    ap, truth = evaluator.accumulate(), evaluator.ground_truth
    counts, num_objects = train_instance_counts, truth.num_objects[:, 0]
    groups = None if counts is None else instance_groups(counts)
    return {
        "AP50": _mean_percent(ap),
        "AP50_groups": None if groups is None else [_mean_percent(ap[groups == g]) for g in range(groups.max() + 1)],
        "support": {"classes": int(np.count_nonzero(num_objects)), "objects": int(num_objects.sum())},
        "protocol": {"name": truth.protocol.name, "num_images": truth.num_images, "iou_threshold": MIN_OVERLAP},
        "classes": [
            {
                "name": name,
                "category_id": int(classes.ids[k]),
                "group": None if groups is None else int(groups[k]),
                "train_instances": None if counts is None else int(counts[k]),
                "AP50": _mean_percent(ap[k : k + 1]),
                "num_objects": int(num_objects[k]),
            }
            for k, name in enumerate(classes.names)
        ],
    }


def open_images_table(result: dict[str, Any]) -> str:
    """The result of `summarize_open_images` as lines of text."""
    support, groups = result["support"], result["AP50_groups"]
    lines = [
        "open_images protocol (challenge 2019): IoU 0.5, verified classes, group-of boxes; "
        f"{result['protocol']['num_images']} images, {support['classes']} classes, {support['objects']} objects",
        f"AP50 {one_decimal(result['AP50'])}",
    ]
    if groups:
        lines.append(f"by training boxes, rarest fifth first: {', '.join(map(one_decimal, groups))}")
    return "\n".join(lines)


def _mean_percent(ap: NDArray[np.float64]) -> float | None:
    known = ap[~np.isnan(ap)]
    return 100 * float(known.mean()) if len(known) else None
