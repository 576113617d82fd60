"""Detections as arrays in an .npz file: 28 bytes each, float32 as a detector gives them, with the ids and names they mean.

`image_index`, `labels` (D,) index `image_ids` (N,) and `category_ids`, `class_names` (K,): all images that a detector
looked at, and all classes that it knows. `boxes_xywh` (D, 4) in pixels, `scores` (D,).
"""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ResultsError
from .columns import DetectionColumns, Records, some_ids

# The kinds (numpy.dtype.kind) and dimensions of the arrays of a file.
_EXPECTED = {
    "image_index": ("iu", 1), "labels": ("iu", 1), "boxes_xywh": ("f", 2), "scores": ("f", 1),
    "image_ids": ("iu", 1), "category_ids": ("iu", 1), "class_names": ("U", 1),
}  # fmt: skip


# What numpy and zipfile raise for files that are damaged, of another kind, or made to do harm.
_DAMAGED = (
    ValueError, TypeError, LookupError, EOFError, RuntimeError, MemoryError, OverflowError, SyntaxError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def write_npz(
    file: BinaryIO, detections: DetectionColumns, *, image_ids: ArrayLike, category_ids: ArrayLike, class_names: ArrayLike
) -> None:  # fmt: skip
    """Write float32 detections. The ids and names are those of the annotations: N images, K classes."""
    boxes, scores = np.asarray(detections.boxes_xywh), np.asarray(detections.scores)
    assert boxes.dtype == scores.dtype == np.float32, "a file that rounds would score differently from its detections"
    np.savez(
        file,
        image_index=detections.image_index.astype(np.int32), labels=detections.labels.astype(np.int32),
        boxes_xywh=boxes, scores=scores,
        image_ids=np.asarray(image_ids, np.int64), category_ids=np.asarray(category_ids, np.int64),
        class_names=np.asarray(class_names, np.str_),
    )  # fmt: skip


def read_npz(path: Path, *, image_ids: ArrayLike, category_ids: ArrayLike, class_names: ArrayLike) -> Records:
    """The detections of a file that was written for these images and classes; it may know more classes.

    Raises ResultsError: a missing, truncated or foreign file, or one of other images, or of classes that are not these.
    """
    arrays = _load(path)
    _check_arrays(path, arrays)
    _check_images(path, arrays["image_ids"], np.asarray(image_ids))
    _check_classes(path, _names(arrays["category_ids"], arrays["class_names"]), _names(category_ids, class_names))
    return Records(
        arrays["image_ids"][arrays["image_index"]].astype(np.int64),
        arrays["category_ids"][arrays["labels"]].astype(np.int64),
        arrays["boxes_xywh"],
        arrays["scores"],
    )


def _load(path: Path) -> dict[str, NDArray]:
    try:
        # Not pickles: reading one runs what its author put there.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.zip.infolist()):
                raise ValueError("its arrays are compressed, and a small file could fill the memory")
            return {name: np.asarray(archive[name]) for name in _EXPECTED}  # bytes, where a file in it is no array
    except OSError as error:
        raise ResultsError(f"{path}: cannot read the results file: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise ResultsError(
            f"{path}: no file of detections as `tools/eval.py --detections` writes it, or not a complete copy: "
            f"{str(error)[:300]}"
        ) from error


def _check_arrays(path: Path, arrays: dict[str, NDArray]) -> None:
    wrong = _wrong_kinds(arrays) or _wrong_shapes(arrays) or _wrong_indices(arrays) or _repeated_ids(arrays)
    if wrong:
        raise ResultsError(
            f"{path}: no file of detections as `tools/eval.py --detections` writes it: {'; '.join(wrong)}"
        )


def _wrong_kinds(arrays: dict[str, NDArray]) -> list[str]:
    return [
        f"{name} is {arrays[name].dtype} {arrays[name].shape}"
        for name, (kinds, dimensions) in _EXPECTED.items()
        if arrays[name].dtype.kind not in kinds or arrays[name].ndim != dimensions
    ]


def _wrong_shapes(arrays: dict[str, NDArray]) -> list[str]:
    count, classes = len(arrays["scores"]), len(arrays["category_ids"])
    expected = {"image_index": (count,), "labels": (count,), "boxes_xywh": (count, 4), "class_names": (classes,)}
    return [
        f"{name} is of shape {arrays[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if arrays[name].shape != shape
    ]


def _wrong_indices(arrays: dict[str, NDArray]) -> list[str]:
    return [
        f"{index} has values outside of the {len(arrays[table])} {table}"
        for index, table in (("image_index", "image_ids"), ("labels", "category_ids"))
        if np.any((arrays[index] < 0) | (arrays[index] >= len(arrays[table])))
    ]


def _repeated_ids(arrays: dict[str, NDArray]) -> list[str]:
    return [
        f"{name} holds an id twice"
        for name in ("image_ids", "category_ids")
        if len(np.unique(arrays[name])) < len(arrays[name])
    ]


def _check_images(path: Path, ours: NDArray, theirs: NDArray) -> None:
    unknown, unseen = np.setdiff1d(ours, theirs), np.setdiff1d(theirs, ours)
    if len(unknown):
        raise ResultsError(
            f"{path}: detections in {len(ours)} images, of which the annotations do not have {len(unknown)}, with the image "
            f"ids {some_ids(unknown)}; are these the results of another dataset?"
        )
    if len(unseen):
        raise ResultsError(
            f"{path}: detections in {len(ours)} images, and the annotations have {len(unseen)} others, with the image ids "
            f"{some_ids(unseen)}; nothing was looked for there, and the score would be too low"
        )


def _check_classes(path: Path, ours: dict[int, str], theirs: dict[int, str]) -> None:
    renamed = [k for k in ours.keys() & theirs.keys() if ours[k] != theirs[k]]
    missing = theirs.keys() - ours.keys()
    if not renamed and not missing:
        return
    shown = [f"id {k}: {ours.get(k, 'nothing')!r} here, {theirs[k]!r} there" for k in sorted([*renamed, *missing])[:5]]
    raise ResultsError(
        f"{path}: the classes of its detections are not those of the annotations; {len(renamed) + len(missing)} differ: "
        f"{'; '.join(shown)}{'; …' if len(renamed) + len(missing) > 5 else ''}"
    )


def _names(category_ids: ArrayLike, class_names: ArrayLike) -> dict[int, str]:
    return dict(zip(np.asarray(category_ids).tolist(), np.asarray(class_names).tolist(), strict=True))
