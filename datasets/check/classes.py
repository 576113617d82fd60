"""Classes without objects, and what LVIS files say of classes and images besides. I images, K classes, T objects."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .findings import Finding, found
from .reading import Column, whole_numbers
from .records import Records, positions

_LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


class Counts(NamedTuple):
    """What each class has, without crowd and ignore."""

    objects: NDArray[np.int64]  # (K,)
    images: NDArray[np.int64]  # (K,)


def is_lvis(records: Records) -> bool:
    """Whether any image has a list of LVIS, as `read_annotations` sees it."""
    return any(image.neg_category_ids is not None for image in records.content.images)


def count(records: Records) -> Counts:
    """Objects and images of each class."""
    num_classes, objects = len(records.category_ids.values), records.content.objects
    counted = (records.owners >= 0) & (records.labels >= 0) & ~objects.crowd.values & ~objects.ignore.values
    labels = records.labels[counted]
    cells = np.unique(records.owners[counted] * num_classes + labels)
    return Counts(
        np.bincount(labels, minlength=num_classes), np.bincount(cells % max(num_classes, 1), minlength=num_classes)
    )


def check_classes(records: Records, *, train: bool) -> list[Finding]:
    """Classes without objects, and what the file says of their frequency; `train` is whether the counts shall agree."""
    counts = count(records)
    severity = "warning" if train else "note"
    findings = records.rows(severity, "classes without objects", counts.objects == 0, records.category)
    if len(counts.objects) == 1:
        findings += found(records.split, "note", "only one class", [records.category(0)])
    groups = np.array([c.frequency if c.frequency in ("r", "c", "f") else "" for c in records.content.categories], "U1")
    if is_lvis(records) or (groups != "").any():
        findings += records.rows("warning", "classes without 'frequency' r, c or f", groups == "", records.category)
    if not train:
        return findings  # validation files bear the counts of the training set
    contradicting = _contradicting(groups, counts.images)
    findings += records.rows("warning", "classes whose 'frequency' does not fit their images", contradicting,
                             lambda k: f"{records.category(k)} ({groups[k]}, {counts.images[k]} images)")  # fmt: skip
    for field, of_file in (("image_count", counts.images), ("instance_count", counts.objects)):
        stated = whole_numbers([getattr(c, field) for c in records.content.categories])
        findings += records.rows(
            "warning", f"classes with another '{field}' than the file's", stated.usable & (stated.values != of_file),
            lambda k, stated=stated, of_file=of_file: f"{records.category(k)} ({stated.values[k]}, has {of_file[k]})",
        )  # fmt: skip
    return findings


def check_lvis(records: Records) -> list[Finding]:
    """The lists of classes that LVIS images have; nothing of a COCO file, where no image has one."""
    images, num_classes = records.content.images, len(records.category_ids.values)
    here = records.owners * num_classes + records.labels
    present = np.unique(here[(records.owners >= 0) & (records.labels >= 0)])
    findings = []
    for field in _LVIS_LISTS if is_lvis(records) else ():
        lists = [getattr(image, field) for image in images]
        missing = np.array([value is None for value in lists], bool)
        findings += records.rows("warning", f"images without '{field}'", missing, records.image)
        owners, ids = _joined(lists)
        strange = np.array([value is not None and not isinstance(value, list) for value in lists], bool)
        strange[owners[~ids.usable]] = True
        findings += records.rows("error", f"'{field}' is not a list of whole numbers", strange, records.image)
        labels = positions(records.category_ids, ids)
        unknown = ids.usable & (labels < 0)
        findings += records.rows("note", f"unknown ids in '{field}'", unknown, _of_image(records, owners, ids))
        has_object = np.isin(owners * num_classes + labels, present)
        if field == "neg_category_ids":
            wrong, severity, what = has_object, "error", f"classes in '{field}' of an image that has objects of them"
        else:
            wrong, severity, what = ~has_object, "warning", f"classes in '{field}' of an image without objects of them"
        findings += records.rows(severity, what, (labels >= 0) & wrong, _of_image(records, owners, ids))
    return findings


def _joined(lists: list[Any]) -> tuple[NDArray[np.int64], Column]:
    """Owner and id of all entries of the lists; what is no list has none."""
    lists = [value if isinstance(value, list) else [] for value in lists]
    owners = np.repeat(np.arange(len(lists)), [len(value) for value in lists])
    entries = (entry for value in lists for entry in value)
    return owners, whole_numbers([entry if type(entry) is int else None for entry in entries])  # 1.0 is refused here


def _of_image(records: Records, owners: NDArray, ids: Column) -> Any:
    return lambda i: f"{ids.values[i]} in {records.image(owners[i])}"


def _contradicting(groups: NDArray, image_counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(K,) classes that are in another group than most classes with as many images.

    Not by LVIS's 10 and 100 images: other sets have thresholds of their own. The two that fit best are found here.
    """
    contradicting = np.zeros(len(groups), bool)
    for below, above in (("r", "cf"), ("rc", "f")):
        low, high = np.isin(groups, list(below)), np.isin(groups, list(above))
        wrong = [(low & (image_counts > t)) | (high & (image_counts <= t)) for t in (-1, *np.unique(image_counts))]
        contradicting |= min(wrong, key=np.count_nonzero)
    return contradicting
