"""The plots of the report, as SVG that stands in a page."""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..evaluation.columnar import RECALL_POINTS
from .analysis import PrecisionRecall, Row
from .calibration import NUM_BINS
from .calibration_rows import Calibration
from .validation_set import GROUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"r": "#d55e00", "c": "#e69f00", "f": "#0072b2", "all": "#222222", None: "#666666"}  # seen alike by everyone
_NAMES = GROUPS | {"all": "all classes", None: "class"}
_POINTS = "points"  # marks the points that get a tooltip


def against_frequency(rows: Sequence[Row], key: str, ylabel: str) -> str:
    """A value of each class, rows[k][key], over its number of training images; its name appears under the mouse.

    Where the training set is not known, the number of validation objects stands in.
    """
    figure, axes = _figure(9, 4.2)
    known = rows[0]["train_images"] is not None
    drawn, tips = [row for row in rows if row[key] is not None], []
    for group in (*GROUPS, None):
        mine = [row for row in drawn if row["frequency"] == group]
        if not mine:
            continue
        # Logarithms have no place for a class without images.
        x = np.maximum([row["train_images" if known else "num_objects"] for row in mine], 0.5)
        y = [row[key] for row in mine]
        style = {"color": COLORS[group], "s": 26, "alpha": 0.65, "linewidths": 0, "gid": _POINTS}
        axes.scatter(x, y, label=f"{_NAMES[group]} ({len(mine)})", **style)
        axes.hlines(np.mean(y), min(x) * 0.93, max(x) * 1.07, color=COLORS[group], linewidth=1.2, linestyle="--")
        tips += [f"{row['name']}: {row[key]:.1f}" for row in mine]
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="training images" if known else "validation objects", ylabel=ylabel)
    if drawn:
        axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _svg(figure, tips)


def precision_recall_plot(curves: PrecisionRecall) -> str:
    """Means at IoU 0.5 and over 0.5:0.95, and some classes."""
    figure, panels = _figure(12, 4, columns=3)
    titles = ("mean over classes, IoU 0.50", "mean over classes, IoU 0.50:0.95", "some classes, IoU 0.50")
    for axes, title, lines in zip(panels, titles, curves, strict=True):
        for name, precision in lines.items():
            style = {"color": COLORS[name], "label": _NAMES[name]} if name in COLORS else {"label": name}
            axes.plot(RECALL_POINTS, precision, linewidth=1.6, **style)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.set_title(title, fontsize=10)
        if lines:
            axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def error_plot(rows: Sequence[Row]) -> str:
    """The gain in AP50 by fixing each kind of error, for all classes and each group."""
    figure, axes = _figure(10, 3.8)
    suffixes = {"all": ""} | {group: f"_{group}" for group in GROUPS if f"dAP_{group}" in rows[0]}
    width = 0.8 / len(suffixes)
    for i, (group, suffix) in enumerate(suffixes.items()):
        x = np.arange(len(rows)) + (i - (len(suffixes) - 1) / 2) * width
        gains = [row[f"dAP{suffix}"] or 0.0 for row in rows]
        axes.bar(x, gains, width=width * 0.9, color=COLORS[group], label=_NAMES[group])
    axes.set_xticks(range(len(rows)), [row["error"].replace(" ", "\n") for row in rows])
    axes.set(ylabel="gain in AP50 by fixing it")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.legend(frameon=False)
    return _svg(figure)


def reliability_plot(calibration: Calibration) -> str:
    """Precision over score, above the number of detections; before and after temperature scaling."""
    figure, panels = _figure(10, 5.6, columns=2, rows=2)
    borders = np.arange(NUM_BINS + 1) / NUM_BINS
    for (above, below), title, diagrams in zip(
        np.transpose(panels), ("before", "after"), (calibration.before, calibration.after), strict=True
    ):
        above.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
        for name, diagram in diagrams.items():
            some = diagram.count > 0
            style = {"color": COLORS[name], "label": _NAMES[name]}
            above.plot(diagram.score[some], diagram.precision[some], marker="o", markersize=3, linewidth=1.4, **style)
            below.stairs(diagram.count, borders, color=COLORS[name])
        above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="precision at IoU 0.50")
        above.set_title(f"{title} temperature scaling", fontsize=10)
        below.set(xlim=(0, 1), xlabel="score", ylabel="detections")
        below.set_yscale("symlog", linthresh=1)
        if diagrams:
            above.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _figure(width: float, height: float, *, columns: int = 1, rows: int = 1) -> tuple["Figure", "Axes | NDArray"]:
    from matplotlib.figure import Figure  # takes most of a second, which other tools should not wait for

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns)
    for axes in np.ravel(panels):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _svg(figure: "Figure", tips: Sequence[str] = ()) -> str:
    """The figure as an <svg> element; `tips` appear under the mouse at the points, in the order of their drawing."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]  # a page has its own prolog
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # nor do elements in a page need their namespace
    text = re.sub(r'<g id="(?!points)[^"]*">', "<g>", text)  # the same in every plot, and nobody refers to them
    return _with_tips(text, tips)


def _with_tips(text: str, tips: Sequence[str]) -> str:
    remaining = iter(tips)

    def tipped(match: re.Match) -> str:
        return f"{match[1]}><title>{escape(next(remaining))}</title></use>"

    parts = text.split('<g id="points">')
    for i, part in enumerate(parts[1:], start=1):
        inside, end, after = part.partition("</g>\n   </g>")
        parts[i] = re.sub(r"(<use [^>]*?)/>", tipped, inside) + end + after
    assert next(remaining, None) is None, "matplotlib drew fewer points than there are tooltips"
    return "<g>".join(parts)
