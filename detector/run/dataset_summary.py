"""What is in a dataset, in a few lines."""

import numpy as np

from ...datasets.loading.dataset import Splits
from ...datasets.loading.samplers import occurrences

_TOP = 5  # images and classes that are named


def describe(data: Splits) -> str:
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
    shown = [f"{classes.names[k]} {classes.train_images[k]}" for k in classes.by_falling_count()]
    middle = [] if len(shown) <= 10 else ["…"]
    source = "as the file says" if data.train.annotations.frequencies else "by training images"
    lines.append(
        f"{len(shown)} classes (rare {sizes['r']}, common {sizes['c']}, frequent {sizes['f']}, {source}), in training images: "
        + ", ".join([*shown[:5], *middle, *shown[-5:]] if middle else shown)
    )
    lines.append(f"an epoch is {data.stream.epoch_length:g} images after the sampler{_most_repeated(data)}")
    return "\n".join(lines)


def _most_repeated(data: Splits) -> str:
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
