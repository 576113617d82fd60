"""What is in a dataset, and what the model gets to see of it: in words, as a sheet of images, as a histogram. K classes."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...datasets.annotations.annotations import frequency_groups
from ...datasets.loading.dataset import Splits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUPS = {"f": ("frequent", "#0072b2"), "c": ("common", "#e69f00"), "r": ("rare", "#d55e00")}  # seen alike by everyone
_NAMED_CLASSES = 130  # more names than this do not fit under the histogram


def long_tail_figure(data: Splits, *, rare: int, common: int) -> "Figure":
    """Training images per class, sorted, on a logarithmic scale, above the objects of each class in the validation set.

    Args:
        rare, common: thresholds between the frequency groups. Drawn if they give the groups of the classes, which need not
            be so where the annotation file states the groups itself.
    """
    from matplotlib.figure import Figure  # takes most of a second, which training should not wait for

    classes, train, val = data.classes, data.train.annotations, data.val.annotations
    order = classes.by_falling_count()
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
