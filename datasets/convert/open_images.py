"""Open Images (V5, V6, challenge 2019) as LVIS JSON. I images, T boxes, K classes."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .hierarchy import expand, read_ancestors
from .image_sizes import read_sizes
from .open_images_tables import Boxes, ImageLabels, Seen, read_boxes, read_classes, read_image_labels, read_size_table
from .output import Annotation, Category, Image, boxes_xywh, write_annotations
from .problems import Problems

_BOXES_AT_ONCE = 2**16


def convert_open_images(
    out: Path,
    *,
    classes: Path,
    boxes: Path,
    image_labels: Path | None = None,
    images: Path | None = None,
    sizes: Path | None = None,
    hierarchy: Path | None = None,
    groups_as_objects: bool = False,
    progress: bool = True,
) -> list[str]:
    """Write the boxes and the verified labels of a split as LVIS JSON; lines of text come back that say what it holds.

    Category ids are places in `classes`, from 1, with the LabelName as `freebase_id`; image ids count the ImageIDs in
    ascending order, from 1; file names are ImageID.jpg. Images without a box or label of a listed class are left out.

    A group-of box gets `iscrowd` 1: training ignores its region, and the Open Images evaluation takes it as a group.
    The code of EQL v2 trains on it as on any object; `groups_as_objects` does so too.

    `neg_category_ids` are all classes which the image was checked for and that have no box in it. Those that were found
    present and yet have no box are among them, since the official evaluation counts detections of them as false.

    Args:
        classes: CSV of LabelName and DisplayName, such as challenge-2019-classes-description-500.csv; rows of other
            classes in the other files are left out, and counted.
        boxes: CSV, such as challenge-2019-validation-detection-bbox.csv.
        image_labels: CSV of human-verified labels; without it there are no `neg_category_ids`.
        images, sizes: the folder of the images, or a CSV with the columns ImageID, Width, Height; one of the two. Sizes
            are those of the stored pixels, whatever the EXIF orientation: TensorFlow and the code of EQL v2 know none.
        hierarchy: JSON; adds to each box, and to each label of a class that is present, the same for all classes above,
            and to each label of an absent class those below, as the challenge does before it evaluates. The code of
            EQL v2 trains without.

    Raises:
        DataError: input is missing or malformed; it names the first places and counts them all.
    """
    if (images is None) == (sizes is None):
        raise DataError("the sizes of the images are needed: name either the folder of the images or a CSV of sizes")
    problems, seen = Problems(), Seen({}, Counter())
    known = read_classes(classes, problems)
    above = read_ancestors(hierarchy, known.labels) if hierarchy else np.zeros([len(known.names)] * 2, bool)
    found = read_boxes(boxes, known, seen, problems, progress=progress)
    verified = read_image_labels(image_labels, known, seen, problems, progress=progress) if image_labels else None
    problems.check()
    if not seen.images:
        raise DataError(f"{boxes}: no box of any of the {len(known.names)} classes that {classes} lists")
    if images:
        files = [images / f"{name}.jpg" for name in seen.images]
        heights_widths = read_sizes(files, problems, upright=False, progress=progress)
    else:
        heights_widths = read_size_table(sizes, seen.images, problems, progress=progress)
    problems.check()
    names = np.array(list(seen.images))
    order = np.argsort(names)
    ids = np.empty(len(order), np.int64)
    ids[order] = np.arange(1, len(order) + 1)
    absent = _absent(found, verified, above, len(names)) if verified else None
    write_annotations(
        out,
        images=_images(order, names, heights_widths, absent),
        annotations=_annotations(found, ids, np.array(heights_widths), above, groups_as_objects),
        categories=[Category(k + 1, known.names[k], name) for name, k in known.labels.items()],
    )
    return _report(out, found, verified, seen, above)


def _absent(boxes: Boxes, verified: ImageLabels, above: NDArray[np.bool_], num_images: int) -> list[list[int]]:
    """The category ids of each image which it was checked for, and of which it has no box."""
    num_classes = len(above)

    def cells(image: NDArray, label: NDArray, implied: NDArray[np.bool_]) -> NDArray[np.int64]:
        index, labels = expand(label, implied)
        return image[index].astype(np.int64) * num_classes + labels

    there = verified.present
    positive = cells(verified.image[there], verified.label[there], above)
    negative = cells(verified.image[~there], verified.label[~there], above.T)
    checked = np.setdiff1d(np.concatenate([positive, negative]), cells(boxes.image, boxes.label, above))
    image, label = np.divmod(checked, num_classes)
    first = np.searchsorted(image, np.arange(num_images + 1))
    return [(label[a:b] + 1).tolist() for a, b in pairwise(first)]


def _images(
    order: NDArray, names: NDArray, sizes: list[tuple[int, int]], absent: list[list[int]] | None
) -> Iterator[Image]:
    for number, i in enumerate(order.tolist()):
        height, width = sizes[i]
        lists = (None, None) if absent is None else (absent[i], [])
        yield Image(number + 1, width, height, f"{names[i]}.jpg", *lists)


def _annotations(
    boxes: Boxes, ids: NDArray, sizes: NDArray, above: NDArray[np.bool_], groups_as_objects: bool
) -> Iterator[Annotation]:
    number = 0
    for start in range(0, len(boxes.image), _BOXES_AT_ONCE):
        part = Boxes(*(column[start : start + _BOXES_AT_ONCE] for column in boxes))
        index, labels = expand(part.label, above)
        box = boxes_xywh(part.corners * sizes[part.image][:, [1, 0, 1, 0]])[index]
        columns = (
            ids[part.image[index]],
            labels + 1,
            box,
            np.round(box[:, 2] * box[:, 3], 3),
            (part.group_of & (not groups_as_objects))[index].astype(np.int64),
        )
        for values in zip(*(column.tolist() for column in columns), strict=True):
            number += 1
            yield Annotation(number, *values)


def _report(out: Path, boxes: Boxes, verified: ImageLabels | None, seen: Seen, above: NDArray[np.bool_]) -> list[str]:
    written = len(expand(boxes.label, above)[0])
    lines = [
        f"{out}: {len(seen.images)} images, {written} boxes of {len(above)} classes: {len(boxes.label)} in the file "
        f"({boxes.group_of.sum()} group-of) and {written - len(boxes.label)} for the classes above theirs"
    ]
    if verified:
        present = int(verified.present.sum())
        lines.append(f"verified labels: {present} of present classes, {len(verified.present) - present} of absent ones")
    if seen.foreign:
        lines.append(
            f"left out: {seen.foreign.total()} rows of {len(seen.foreign)} classes that are not listed, most of them "
            f"{', '.join(f'{name} ({count})' for name, count in seen.foreign.most_common(3))}"
        )
    return lines
