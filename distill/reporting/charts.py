"""Charts: as SVG for the report, as pixels for TensorBoard. Colors that color-blind readers tell apart, and markers.

Colors: Okabe and Ito, 2008, "Color Universal Design".
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

import numpy as np

from distill.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {  # network → color and marker
    "teacher": ("#0072B2", "s"),
    "baseline": ("#E69F00", "^"),
    "student": ("#009E73", "o"),
    "student, INT8": ("#CC79A7", "D"),
    "student, fp16": ("#56B4E9", "v"),
}
DASHES = {"teacher": "--", "baseline": ":", "student": "-"}
WIDTH, HEIGHT = 4.6, 3.1  # inches: about what a phone shows, so that letters keep their size there
LOOK: dict[Any, Any] = {
    "text.parse_math": False,  # dollars in a name are dollars
    "svg.fonttype": "none",  # letters stay letters: they can be searched, and are the reader's own
    "svg.hashsalt": "distill",  # the same chart, the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
}
LONGEST_NAME = 28
MOST_NAMED = 40  # classes whose names fit beside a matrix


@contextmanager
def _figure(width: float = WIDTH, height: float = HEIGHT, **options: Any) -> Iterator[Figure]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a class name; the reader's own letters show it
        yield Figure(figsize=(width, height), **options)


def _axes(figure: Figure, left: float = 0.6, bottom: float = 0.45, right: float = 0.15, top: float = 0.35) -> Axes:
    """The only axes of a figure, within margins in inches: finding these by drawing would take as long again."""
    width, height = figure.get_size_inches()
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    axes: Axes = figure.add_axes(box)
    return axes


def _svg(figure: Figure) -> str:
    """A figure as the text of an `svg` element, as wide as its place allows."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(<svg [^>]*?)height="([\d.]+)pt" ', r"\1", text, count=1).replace("<svg ", '<svg role="img" ', 1)


def _pixels(figure: Figure) -> np.ndarray:
    """A figure as a picture uint8 `[H, W, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _inches(names: Sequence[str], size: float = 9) -> float:
    """How wide the widest of some labels is, in letters of so many points, roughly."""
    widths = (sum(1.0 if east_asian_width(c) in "WF" else 0.62 for c in name) for name in names)
    return 0.1 + size / 72 * max(widths, default=0)


def plain(name: str) -> str:
    """A name as a label: short, and nothing in it obeyed."""
    text = printable(name)
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def class_dots(iou: Mapping[str, Mapping[str, float | None]], classes: Sequence[str]) -> str:
    """IoU of each class, a dot a network.

    Args:
        iou: 0 to 1, by network and class.
        classes: in the order to show.
    """
    with _figure(height=1 + 0.2 * len(classes)) as figure:
        names, rows = [plain(name) for name in classes], range(len(classes))
        axes = _axes(figure, left=0.1 + _inches(names))
        for row, name in zip(rows, classes, strict=True):
            values = [100 * v for network in iou.values() if (v := network[name]) is not None]
            if values:
                axes.plot([min(values), max(values)], [row, row], color="#bbbbbb", linewidth=1, zorder=1)
        for network, by_class in iou.items():
            color, marker = STYLES[network]
            points = [
                (100 * v, row) for row, name in zip(rows, classes, strict=True) if (v := by_class[name]) is not None
            ]
            axes.plot(*zip(*points, strict=True), marker, color=color, label=network, zorder=2)
        axes.set(xlabel="IoU, %", xlim=(-2, 102), ylim=(len(classes) - 0.5, -0.5))
        axes.set_yticks(list(rows), names)
        figure.legend(loc="upper center", ncols=len(iou))
        return _svg(figure)


def lines(curves: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> str:
    """Points by network, joined."""
    with _figure() as figure:
        axes = _axes(figure)
        for network, points in curves.items():
            color, marker = STYLES[network]
            dots = {"marker": marker} if len(points) <= 30 else {"marker": marker, "markevery": len(points) // 8}
            axes.plot(*zip(*points, strict=True), DASHES[network], color=color, label=network, **dots)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.margins(y=0.08)
        figure.legend(loc="upper center", ncols=len(curves))
        return _svg(figure)


def against(points: Mapping[str, tuple[float, float]], xlabel: str) -> str:
    """mIoU against a cost, on a logarithmic axis.

    Args:
        points: cost and mIoU (0 to 1) by network.
        xlabel: what the cost is.
    """
    with _figure() as figure:
        axes = _axes(figure, top=0.5 if len(points) > 3 else 0.35)
        for network, (cost, score) in points.items():
            color, marker = STYLES[network]
            axes.scatter(cost, 100 * score, color=color, marker=marker, s=45, label=network, zorder=2)
        axes.set(xlabel=xlabel, ylabel="mIoU, %", xscale="log")
        costs = [cost for cost, _ in points.values()]
        axes.set_xlim(min(costs) / 2, max(costs) * 2)
        _plain_log(axes)
        axes.margins(y=0.2)
        figure.legend(loc="upper center", ncols=min(3, len(points)))
        return _svg(figure)


def _plain_log(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 of each power of ten, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def reliability(bins: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Accuracy against confidence, and the diagonal on which both are the same; both 0 to 1, by network."""
    with _figure(height=3.6) as figure:
        axes = _axes(figure)
        axes.plot([0, 100], [0, 100], color="#888888", linewidth=1, linestyle=(0, (2, 2)))
        for network, points in bins.items():
            color, marker = STYLES[network]
            values = [(100 * confidence, 100 * right) for confidence, right in points]
            axes.plot(*zip(*values, strict=True), DASHES[network], color=color, marker=marker, label=network)
        axes.set(xlabel="confidence, %", ylabel="pixels that are right, %", xlim=(0, 101), ylim=(0, 101))
        figure.legend(loc="upper center", ncols=len(bins))
        return _svg(figure)


MANY_LABELS = ("found", "invented")  # columns of a matrix of classes that do not exclude each other


def confusion(shares: np.ndarray, classes: Sequence[str], title: str, difference: bool = False) -> np.ndarray:
    """A matrix of shares as a picture uint8 `[H, W, 3]`.

    Args:
        shares: `[C, C]`, rows are the truth; NaN where there is no pixel of a class. With many labels a pixel `[C, 2]`:
            what is found of a class, and what is said to be of it and is not.
        classes: their names.
        title: above it.
        difference: shares are differences, -1 to 1, so that colors have two ends.
    """
    names = [plain(name) for name in classes] if len(classes) <= MOST_NAMED else []
    side, margin = max(2.5, 0.2 * min(len(classes), MOST_NAMED)), 0.5 + _inches(names, 8)
    with _figure(margin + side + 1.2, margin + side + 0.4, dpi=80) as figure:
        axes = _axes(figure, left=margin, bottom=margin, right=1.2, top=0.4)
        axes.grid(False)
        if difference:
            most = max(0.01, float(np.nanmax(np.abs(shares), initial=0)))
            shown = axes.imshow(100 * shares, cmap="PuOr", vmin=-100 * most, vmax=100 * most)
        else:
            shown = axes.imshow(100 * shares, cmap="cividis", vmin=0, vmax=100)
        beside = axes.inset_axes((1 + 0.15 / side, 0.1, 0.15 / side, 0.8))
        figure.colorbar(shown, cax=beside, label="points" if difference else "% of the class's pixels")
        if names:
            columns = names if shares.shape[1] == len(names) else MANY_LABELS
            axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
            axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set(xlabel="predicted", ylabel="truth")
        axes.set_title(title, fontsize=9)
        return _pixels(figure)
