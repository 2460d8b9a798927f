"""What the pictures share (matplotlib, no display), and the picture of a training run."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from serve.fonts import legible, set_fonts
from shards.console import one_line
from shards.writer import write_atomic

DPI = 110
# Okabe and Ito's colours: told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.")


def new_figure(
    width_in: float, height_in: float, columns: int = 1, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, row by row."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    return _saved(figure, "png", {"Software": None})


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG: text becomes outlines, so no font and no text of the data is in it."""
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "cxrstack"}):
        return _saved(figure, "svg", {"Date": None, "Creator": None})


def write_figure(figure: Figure, path: Path) -> None:
    """`path`.png and `path`.svg."""
    set_fonts(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: it takes longer than the drawing
    write_atomic(path.with_name(path.name + ".png"), to_png(figure))
    write_atomic(path.with_name(path.name + ".svg"), to_svg(figure))


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    out = io.BytesIO()
    set_fonts(figure)
    figure.savefig(out, format=kind, bbox_inches="tight", metadata=metadata)
    return out.getvalue()


def plain(text: str, longest: int = 28) -> str:
    """Text from data: matplotlib would read $...$ as mathematics, and hide a legend's _name."""
    short = one_line(text)
    short = short if len(short) <= longest else short[: longest - 1] + "…"
    return (" " if short.startswith("_") else "") + legible(short).replace("$", r"\$")


def curves_picture(epochs: Sequence[dict[str, Any]]) -> bytes:
    """Losses, and accuracy and AUROC on validation, of one stage; phases are marked.

    epochs: the stage's rows of metrics.jsonl, in order.
    """
    figure, (left, right) = new_figure(9.6, 3.4, columns=2)
    x = np.arange(1, len(epochs) + 1)
    for ax, key, name, colour in (
        (left, "train_loss", "training", COLOURS[0]),
        (left, "val_loss", "validation", COLOURS[1]),
        (right, "val_accuracy", "accuracy", COLOURS[2]),
        (right, "val_auroc", "mean AUROC", COLOURS[3]),
    ):
        y = [np.nan if row.get(key) is None else row[key] for row in epochs]
        if not np.isnan(y).all():
            ax.plot(x, y, color=colour, label=name, linewidth=1.5, marker="o", markersize=2.5)
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="on validation")
    for ax in (left, right):
        _mark_phases(ax, epochs)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=8)
    return to_png(figure)


def _mark_phases(ax: Axes, epochs: Sequence[dict[str, Any]]) -> None:
    """A thin line where a phase begins, and its number at the top."""
    begun = None
    for done, row in enumerate(epochs):
        if row["phase"] != begun:
            begun, start = row["phase"], done + 0.5
            ax.axvline(start, color="0.7", linewidth=0.8, linestyle="--")
            ax.annotate(
                f" {begun}",
                (start, 1),
                xycoords=("data", "axes fraction"),
                va="bottom",
                fontsize=7,
                color="0.4",
            )
