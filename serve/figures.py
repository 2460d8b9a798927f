"""The pictures of an evaluation and of a training run, as PNG bytes (matplotlib, no display)."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from serve.intervals import roc_points

DPI = 110
# Okabe and Ito's colours: told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _figure(width_in: float, height_in: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight", metadata={"Software": None})
    return out.getvalue()


def _plain(text: str, longest: int = 28) -> str:
    """Text from data: matplotlib would read $...$ as mathematics."""
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    return short.replace("$", r"\$")


def confusion_picture(matrix: np.ndarray, labels: Sequence[str]) -> bytes:
    """matrix: (L, L) counts, rows truth, columns calls; coloured by the share of each row."""
    side = max(3.6, 1.1 + 0.75 * len(labels))
    figure, (ax,) = _figure(side + 0.6, side)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        dark = shares[row, column] > 0.5
        ax.text(
            column,
            row,
            f"{matrix[row, column]:,}",
            ha="center",
            va="center",
            color="white" if dark else "black",
        )
    names = [_plain(label) for label in labels]
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("called")
    ax.set_ylabel("truth")
    return _png(figure)


def roc_picture(probabilities: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> bytes:
    """One ROC curve per column: probabilities (N, L), truth (N, L) int8. Columns that have only
    one kind of truth are left out; unknown truth and missing probabilities are too."""
    figure, (ax,) = _figure(6.4 if len(names) <= 8 else 8.2, 4.6)
    ax.plot([0, 1], [0, 1], color="0.75", linewidth=1, linestyle=":")
    for i, name in enumerate(names):
        known = (truth[:, i] >= 0) & ~np.isnan(probabilities[:, i])
        positive = truth[known, i] == 1
        if positive.any() and not positive.all():
            false, true = roc_points(probabilities[known, i], positive)
            colour = COLOURS[i % len(COLOURS)]
            style = ("-", "--", "-.")[i // len(COLOURS) % 3]
            ax.plot(false, true, color=colour, linestyle=style, linewidth=1.6, label=_plain(name))
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.set_xlabel("false positive rate (1 - specificity)")
    ax.set_ylabel("true positive rate (sensitivity)")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(
            loc="center left",
            bbox_to_anchor=(1.02, 0.5),
            frameon=False,
            fontsize=8,
            title="AUROC",
            alignment="left",
        )
    return _png(figure)


def histogram_picture(probabilities: np.ndarray, truth: np.ndarray, labels: Sequence[str]) -> bytes:
    """One panel per label: its probability where the label is there, and where it is not."""
    columns = min(len(labels), 3)
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.3 * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    bins = np.linspace(0, 1, 31)
    for i, ax in enumerate(panels):
        if i >= len(labels):
            ax.set_axis_off()
            continue
        for value, colour, name in ((0, COLOURS[0], "without"), (1, COLOURS[1], "with")):
            scores = probabilities[truth[:, i] == value, i]
            ax.hist(scores[~np.isnan(scores)], bins, color=colour, alpha=0.6, label=name)
        ax.set_yscale("symlog", linthresh=10)
        ax.set_title(_plain(labels[i]), fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7)
    panels[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("probability", fontsize=9)
    figure.supylabel("images", fontsize=9)
    return _png(figure)


def curves_picture(epochs: Sequence[dict[str, Any]]) -> bytes:
    """Losses, and accuracy and AUROC on validation, of one stage; phases are marked.

    epochs: the stage's rows of metrics.jsonl, in order.
    """
    figure, (left, right) = _figure(9.6, 3.4, columns=2)
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
    return _png(figure)


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
