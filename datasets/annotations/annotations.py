"""The annotations of a dataset as flat arrays, read from COCO or LVIS JSON.

A Python object per box would cost gigabytes in every worker process. I images, T objects, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from . import cache as annotation_cache
from .cache import Texts
from .coco import CocoImage, Objects, decode

# Far above every dataset there is. Curves of precision take 100 kB for each class, the head of a detector as much.
MAX_CLASSES = 2**16


@dataclass(frozen=True, eq=False)
class Annotations:
    """What an annotation file says. Images and classes are in ascending order of their ids, whatever the file's order.

    Label k is the class of `category_ids[k]`. The objects of image i are `objects(i)` in every array of length T, in
    the order of the file; likewise `negative_labels[negative_offsets[i] : negative_offsets[i + 1]]`.
    """

    path: Path
    category_ids: NDArray[np.int64]  # (K,) ascending
    class_names: tuple[str, ...]
    frequencies: tuple[str, ...] | None  # "r", "c" or "f" per class; None unless the file says so of every class
    image_ids: NDArray[np.int64]  # (I,) ascending
    image_sizes: NDArray[np.int32]  # (I, 2) height, width
    file_names: Texts  # I, relative to the folder of images
    offsets: NDArray[np.int64]  # (I + 1,)
    annotation_ids: NDArray[np.int64]  # (T,)
    boxes_xywh: NDArray[np.float64]  # (T, 4) as in the file, good or bad
    labels: NDArray[np.int32]  # (T,)
    areas: NDArray[np.float64]  # (T,) of the mask where the file says so, else of the box
    crowd: NDArray[np.bool_]  # (T,)
    ignore: NDArray[np.bool_]  # (T,)
    negative_offsets: NDArray[np.int64]  # (I + 1,) LVIS: classes verified to be absent from the image
    negative_labels: NDArray[np.int32]
    not_exhaustive_offsets: NDArray[np.int64]  # (I + 1,) LVIS: classes of which not every object is annotated
    not_exhaustive_labels: NDArray[np.int32]
    is_lvis: bool  # whether any image has `neg_category_ids`, be the list empty or not
    # Where the arrays are mapped from; None where this process holds them. `dataclasses.replace` does not take it over.
    cached: annotation_cache.Cached | None = field(default=None, init=False)

    def __reduce_ex__(self, protocol: int) -> Any:
        """Other processes map the arrays too, rather than to get a copy of their own."""
        return (_read_again, (self.path, self.cached.digest)) if self.cached else super().__reduce_ex__(protocol)

    def objects(self, image: int) -> slice:
        """Where the objects of an image lie in the arrays of length T."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    @property
    def object_images(self) -> NDArray[np.int64]:
        """(T,) index of the image of each object."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))

    @property
    def instance_counts(self) -> NDArray[np.int64]:
        """(K,) number of objects of each class, without crowd and ignore."""
        return np.bincount(self.labels[~(self.crowd | self.ignore)], minlength=len(self.category_ids))

    @property
    def image_counts(self) -> NDArray[np.int64]:
        """(K,) number of images that hold an object of each class, without crowd and ignore."""
        counted = ~(self.crowd | self.ignore)
        cells = np.unique(self.object_images[counted] * len(self.category_ids) + self.labels[counted])
        return np.bincount(cells % len(self.category_ids), minlength=len(self.category_ids))


def frequency_groups(image_counts: Sequence[int] | NDArray, *, rare: int = 10, common: int = 100) -> tuple[str, ...]:
    """LVIS's group of each class: "r" in at most `rare` training images, "c" in at most `common`, else "f"."""
    return tuple("r" if count <= rare else "c" if count <= common else "f" for count in image_counts)


def read_annotations(path: Path | str) -> Annotations:
    """The annotations of a COCO or LVIS file.

    Ids may be any unique integers and come in any order. A missing `area` is the box's, a missing `iscrowd` or `ignore`
    is 0. A file name is `file_name`, else the last two parts of `coco_url` (LVIS: train2017/000000000009.jpg). Ids in
    `neg_category_ids` and `not_exhaustive_category_ids` that no category has mean nothing and are left out, so that a
    file may be cut down to some of its classes.

    Raises:
        DataError: the file is missing, truncated or not COCO; ids occur twice; an annotation names an unknown image or
            category.
    """
    path = Path(path)
    try:
        key = annotation_cache.key_of(path)
        cached = annotation_cache.load(path, key)
        if cached is None:
            parsed = _parse(path)
            cached = annotation_cache.save(path, key, *_to_cache(parsed))
            if cached is None:
                return parsed
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation file: {error.strerror}") from error
    return _from_cache(path, cached)


def _parse(path: Path) -> Annotations:
    content = decode(path)
    categories, images = sorted(content.categories, key=lambda c: c.id), sorted(content.images, key=lambda i: i.id)
    category_ids = _unique_ids(path, "categories", [c.id for c in categories])
    if len(categories) > MAX_CLASSES:
        raise DataError(
            f"{path}: 'categories' lists {len(categories):,} classes; {MAX_CLASSES:,} at most can be told apart"
        )
    image_ids = _unique_ids(path, "images", [i.id for i in images])
    owners, labels = _checked_indices(path, content.objects, image_ids, category_ids)
    order = np.argsort(owners, kind="stable")
    objects = Objects(*(column[order] for column in content.objects))
    frequencies = tuple(c.frequency for c in categories)
    negative = _class_lists([i.neg_category_ids for i in images], category_ids)
    not_exhaustive = _class_lists([i.not_exhaustive_category_ids for i in images], category_ids)
    return Annotations(
        path=path,
        category_ids=category_ids,
        class_names=tuple(c.name for c in categories),
        frequencies=None if None in frequencies else frequencies,
        image_ids=image_ids,
        image_sizes=np.array([(i.height, i.width) for i in images], np.int32),
        file_names=Texts.of(_file_name(path, i) for i in images),
        offsets=_offsets(owners, len(images)),
        annotation_ids=objects.ids,
        boxes_xywh=objects.boxes_xywh,
        labels=labels[order].astype(np.int32),
        areas=objects.areas,
        crowd=objects.crowd,
        ignore=objects.ignore,
        negative_offsets=negative[0],
        negative_labels=negative[1],
        not_exhaustive_offsets=not_exhaustive[0],
        not_exhaustive_labels=not_exhaustive[1],
        is_lvis=any(i.neg_category_ids is not None for i in images),
    )


def _to_cache(annotations: Annotations) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """The arrays, and what is small enough for JSON."""
    values = {f.name: getattr(annotations, f.name) for f in fields(annotations) if f.name not in ("path", "cached")}
    names = values.pop("file_names")
    values |= {"name_content": names.content, "name_offsets": names.offsets}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    return arrays, {name: value for name, value in values.items() if name not in arrays}


def _from_cache(path: Path, cached: annotation_cache.Cached) -> Annotations:
    values = cached.arrays | cached.details
    for name in ("class_names", "frequencies"):
        values[name] = values[name] and tuple(values[name])
    names = Texts(values.pop("name_content"), values.pop("name_offsets"))
    annotations = Annotations(path=path, file_names=names, **values)
    object.__setattr__(annotations, "cached", cached)  # frozen for all others
    return annotations


def _read_again(path: Path, digest: str) -> Annotations:
    """The annotations that another process has read. Raises DataError if the file has changed since."""
    annotations = read_annotations(path)
    if digest != (annotations.cached.digest if annotations.cached else annotation_cache.digest_of(path)):
        raise DataError(f"{path}: the annotation file was changed while it was in use; start again")
    return annotations


def _unique_ids(path: Path, key: str, ascending: list[int]) -> NDArray[np.int64]:
    """The ids as an array; DataError if there is none or one comes twice."""
    ids = np.array(ascending, np.int64)
    if len(ids) == 0:
        raise DataError(f"{path}: '{key}' is empty")
    _check_unique(path, key, ids)
    return ids


def _check_unique(path: Path, key: str, ascending: NDArray) -> None:
    repeated = np.unique(ascending[1:][ascending[1:] == ascending[:-1]])
    if len(repeated):
        raise DataError(
            f"{path}: {len(repeated)} ids occur more than once in '{key}', for example {repeated[0]}; ids must be unique"
        )


def _checked_indices(
    path: Path, objects: Objects, image_ids: NDArray, category_ids: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(T,) indices of image and category of each annotation; DataError for repeated ids and unknown references."""
    ids = objects.ids
    _check_unique(path, "annotations", np.sort(ids))
    found = []
    for key, plural, known, wanted in (
        ("image_id", "images", image_ids, objects.image_ids),
        ("category_id", "categories", category_ids, objects.category_ids),
    ):
        index = _search(known, wanted)
        unknown = np.flatnonzero(index < 0)
        if len(unknown):
            raise DataError(
                f"{path}: annotation {ids[unknown[0]]} has {key} {wanted[unknown[0]]}, but '{plural}' lists {len(known)} ids "
                f"({known[0]}..{known[-1]}) without it; {len(unknown)} of {len(ids)} annotations are so. Were {plural} removed "
                "without their annotations, or files of different datasets mixed?"
            )
        found.append(index)
    return found[0], found[1]


def _search(known: NDArray, ids: NDArray) -> NDArray[np.int64]:
    """The index of each of `ids` in the ascending `known`, -1 where it is not there."""
    index = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[index] == ids, index, -1)


def _offsets(owners: NDArray, num_images: int) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=num_images))]).astype(np.int64)


def _class_lists(lists: list[list[int] | None], category_ids: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Offsets (I + 1,) and labels of one list of category ids per image."""
    owners = np.repeat(np.arange(len(lists)), [len(ids or ()) for ids in lists])
    labels = _search(category_ids, np.array([i for ids in lists for i in ids or ()], np.int64))
    known = labels >= 0
    return _offsets(owners[known], len(lists)), labels[known].astype(np.int32)


def _file_name(path: Path, image: CocoImage) -> str:
    name = image.file_name or "/".join((image.coco_url or "").split("/")[-2:])
    if not name:
        raise DataError(f"{path}: image {image.id} has neither 'file_name' nor 'coco_url'")
    return name
