"""What is in a dataset, and what the model gets to see of it: in words, as a sheet of images, as a histogram. K classes."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datasets.annotations import frequency_groups
from datasets.loader import Batch
from datasets.samplers import occurrences
from losses import IGNORE

from .build_data import Data
from .classes import Classes
from .drawing import draw_boxes, sheet, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUPS = {"f": ("frequent", "#0072b2"), "c": ("common", "#e69f00"), "r": ("rare", "#d55e00")}  # seen alike by everyone
_PADDING = (124, 116, 104)  # the mean color, which is 0 after normalization, as padding is
_TOP = 5  # images and classes that are named
_NAMED_CLASSES = 130  # more names than this do not fit under the histogram


def describe(data: Data) -> str:
    """A few lines on what is in the data: images, objects, the most and the least frequent classes, boxes left out."""
    lines = []
    for name, split in (("train", data.train), ("val", data.val)):
        objects = int(split.annotations.instance_counts.sum())
        cached = split.annotations.cached
        where = f"cached in {cached.file}" if cached else "not cached"
        lines.append(f"{name}: {len(split)} images, {objects} objects ({split.annotations.path}, {where})")
        lines += [split.report] if split.report else []
    classes = data.classes
    sizes = {group: classes.frequencies.count(group) for group in "rcf"}
    shown = [f"{classes.names[k]} {classes.train_images[k]}" for k in _by_falling_count(classes)]
    middle = [] if len(shown) <= 10 else ["…"]
    source = "as the file says" if data.train.annotations.frequencies else "by training images"
    lines.append(
        f"{len(shown)} classes (rare {sizes['r']}, common {sizes['c']}, frequent {sizes['f']}, {source}), in training images: "
        + ", ".join([*shown[:5], *middle, *shown[-5:]] if middle else shown)
    )
    lines.append(f"an epoch is {data.stream.epoch_length:g} images after the sampler{_most_repeated(data)}")
    return "\n".join(lines)


def _most_repeated(data: Data) -> str:
    """The images and the classes that come most often in the first epoch; "" if no image comes twice."""
    train, names = data.train, data.train.annotations.file_names
    times = np.bincount(data.stream.sequence(0), minlength=len(train))
    if times.max() <= 1:
        return ""
    labels, images = occurrences(*train.learned_objects(), num_images=len(train))
    with np.errstate(invalid="ignore"):  # 0 / 0 is a class without images
        of_classes = np.nan_to_num(np.bincount(labels, times[images]) / np.bincount(labels))
    top_images, top_classes = (np.argsort(-values, kind="stable")[:_TOP].tolist() for values in (times, of_classes))
    return (
        "; seen most in the first are the images "
        + ", ".join(f"{names[train.image_indices[i]]} ({times[i]} times)" for i in top_images)
        + " and those with "
        + ", ".join(f"{data.classes.names[k]} ({of_classes[k]:.1f} times on average)" for k in top_classes)
    )


def batch_sheet(batches: Iterable[Batch], class_names: Sequence[str], *, count: int, columns: int = 4) -> NDArray:
    """(H, W, 3) uint8: the first `count` images of the batches as the model sees them, padding included.

    Objects have boxes in the color of their class, ignore regions are hatched, and a line marks the image in its padding.
    """
    seen = ((number, batch, i) for number, batch in enumerate(batches) for i in range(len(batch.images)))
    return sheet([_seen_by_model(*each, class_names) for each in islice(seen, count)], columns)


def _seen_by_model(number: int, batch: Batch, i: int, class_names: Sequence[str]) -> NDArray:
    """Image `i` of batch `number`."""
    (height, width), targets = batch.images[i].shape[-2:], batch.targets[i]
    padded = np.full((*batch.padded_sizes[i], 3), _PADDING, np.uint8)
    padded[:height, :width] = _hatched(batch.images[i].permute(1, 2, 0).numpy(), targets.ignore_boxes.numpy())
    padded = _outlined(padded, (height, width))
    labels, ignored = targets.labels.tolist(), len(targets.ignore_boxes)
    drawn = draw_boxes(
        padded,
        np.concatenate([targets.ignore_boxes.numpy(), targets.boxes.numpy()]),
        [IGNORE] * ignored + labels,
        ["ignore"] * ignored + [class_names[label] for label in labels],
        max_side=720,
    )
    return titled(drawn, f"batch {number}, image {batch.image_ids[i]}: {width} x {height}")


def _hatched(image: NDArray, boxes: NDArray) -> NDArray:
    """A copy of the (H, W, 3) image with diagonal stripes over the (M, 4) boxes."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    stripes = (x + y) // 3 % 2 == 0
    inside = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in boxes:
        inside |= (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    return np.where((inside & stripes)[:, :, None], image // 4 + 160, image).astype(np.uint8)


def _outlined(padded: NDArray, size: tuple[int, int]) -> NDArray:
    """The padded image with a white line just outside of its first `size` pixels."""
    picture = Image.fromarray(padded)
    ImageDraw.Draw(picture).line([(size[1], 0), (size[1], size[0]), (0, size[0])], fill="white")
    return np.asarray(picture)


def long_tail_figure(data: Data, *, rare: int, common: int) -> "Figure":
    """Training images per class, sorted, on a logarithmic scale, above the objects of each class in the validation set.

    Args:
        rare, common: thresholds between the frequency groups. Drawn if they give the groups of the classes, which need not
            be so where the annotation file states the groups itself.
    """
    from matplotlib.figure import Figure  # takes most of a second, which training should not wait for

    classes, train, val = data.classes, data.train.annotations, data.val.annotations
    order = _by_falling_count(classes)
    groups = np.array(classes.frequencies)[order]
    named = len(order) <= _NAMED_CLASSES
    figure = Figure(figsize=(max(11.0, 0.19 * len(order)) if named else 16.0, 8.0), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _bars(above, np.array(classes.train_images)[order], groups)
    above.set_title(f"training images ({len(data.train)})", loc="left")
    _bars(below, val.instance_counts[order], groups)
    below.set_title(f"validation objects ({len(data.val)} images)", loc="left")
    if frequency_groups(classes.train_images, rare=rare, common=common) == tuple(classes.frequencies):
        above.set_ylim(top=max(above.get_ylim()[1], 2 * common))
        for threshold in (rare, common):
            above.axhline(threshold + 0.5, color="black", linewidth=0.8, linestyle="--")
            above.text(len(order) - 0.4, (threshold + 0.5) * 1.05, f"{threshold}", ha="right", va="bottom")
    else:
        above.text(0.99, 0.96, "groups as the file states them", transform=above.transAxes, ha="right", va="top")
    below.set(xlabel=f"{len(order)} classes by falling number of training images", xlim=(-0.7, len(order) - 0.3))
    if named:
        below.set_xticks(range(len(order)), [classes.names[k] for k in order], rotation=90, fontsize=8)
    figure.suptitle(f"{train.path}, {val.path}", fontsize=9)
    return figure


def _bars(axes: "Axes", counts: NDArray, groups: NDArray) -> None:
    """A bar per class; the legend has the classes of each group, and how many of them have anything to count."""
    width = 0.9 if len(counts) <= _NAMED_CLASSES else 1.0  # gaps that are thinner than a pixel make a pattern
    for group, (word, color) in _GROUPS.items():
        x = np.flatnonzero(groups == group)
        if len(x):
            found = np.count_nonzero(counts[x])
            label = f"{word}: {len(x)} classes" + (f", {len(x) - found} empty" if found < len(x) else "")
            # From one half up, so that a count of 1 is seen on the logarithmic scale; a count of 0 leaves no bar.
            axes.bar(x, np.maximum(counts[x], 0.5) - 0.5, bottom=0.5, width=width, color=color, label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    # Above the bars, which may be high everywhere.
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, frameon=False)


def _by_falling_count(classes: Classes) -> list[int]:
    """The labels (K,) from the class with most training images to that with fewest."""
    return sorted(range(len(classes.ids)), key=lambda k: -classes.train_images[k])
