"""What training and validation set must share, the classes, and what they must not, the images."""

from pathlib import Path

import numpy as np

from .classes import count
from .findings import Finding, found
from .records import Records


def check_splits(train: Records, val: Records, *, train_images: Path | None, val_images: Path | None) -> list[Finding]:
    """Classes that differ or cannot be learned, and images that are in both; the folders may be None if not known."""
    return [*_check_classes(train, val), *_check_names(train, val, train_images, val_images)]


def _check_classes(train: Records, val: Records) -> list[Finding]:
    ours, theirs = _classes(train), _classes(val)
    differing = [i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i)]
    shown = [f"id {i}: {_quoted(ours, i)} in train, {_quoted(theirs, i)} in val" for i in differing]
    findings = found("both", "error", "categories that differ between train and val", shown)
    learned, wanted = _objects(train), _objects(val)
    shown = [f"{theirs[i]} ({n} objects in val)" for i, n in wanted.items() if n and not learned.get(i)]
    return findings + found("both", "warning", "classes with objects in val but none in train", shown)


def _check_names(train: Records, val: Records, train_images: Path | None, val_images: Path | None) -> list[Finding]:
    """The same name in the same folder is the same image; in another folder it may be another."""
    ours = {name: i for i, name in enumerate(train.file_names) if name}
    shared = [(ours[name], i) for i, name in enumerate(val.file_names) if name in ours]
    shown = [f"{train.image(i)} in train, {val.image(j)} in val" for i, j in shared]
    if train_images and val_images and train_images.resolve() == val_images.resolve():
        return found("both", "error", "images that are in train and in val", shown)
    return found("both", "warning", "file names that are in train and in val", shown)


def _classes(records: Records) -> dict[int, str | None]:
    ids = records.category_ids
    return {int(ids.values[k]): records.class_names[k] for k in np.flatnonzero(ids.usable)}


def _objects(records: Records) -> dict[int, int]:
    ids, objects = records.category_ids, count(records).objects
    return {int(ids.values[k]): int(objects[k]) for k in np.flatnonzero(ids.usable)}


def _quoted(names: dict[int, str | None], category_id: int) -> str:
    return repr(names[category_id]) if category_id in names else "nothing"
