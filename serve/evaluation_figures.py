"""The pictures of an evaluation: one Figure for each of its parts that can be drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter, SymmetricalLogLocator

from serve.calibration import Reliability
from serve.compare import Comparison
from serve.curves import Histograms, LabelThresholds, Operating
from serve.figures import COLOURS, STYLES, new_figure, plain
from serve.intervals import Estimate, counts_above
from serve.judged import Judged
from serve.metrics import Evaluation
from serve.subgroups import Subgroups

_PANEL_COLUMNS = 3


def evaluation_figures(found: Evaluation, judged: Judged) -> dict[str, Figure]:
    """Name (without ending) -> figure. Parts that the evaluation has not are no figure."""
    figures = {
        "roc": roc_figure(found, judged),
        "pr": pr_figure(found, judged),
        "histograms": histogram_figure(found.histograms),
        "thresholds": threshold_figure(found.operating, found.thresholds),
        "calibration": calibration_figure(found),
    }
    if found.confusion is not None:
        figures["confusion"] = confusion_figure(np.array(found.confusion), found.labels)
    if found.subgroups:
        figures["subgroups"] = subgroup_figure(found.subgroups, found.accuracy is not None)
    if found.against is not None and found.against.areas:
        figures["against"] = against_figure(found.against)
    return figures


def confusion_figure(matrix: np.ndarray, labels: Sequence[str]) -> Figure:
    """matrix: (L, L) counts, rows truth, columns calls; coloured by the share of each row."""
    side = max(3.6, 1.1 + 0.75 * len(labels))
    figure, (ax,) = new_figure(side + 0.6, side)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = f"{matrix[row, column]:,}"
        ax.text(column, row, text, ha="center", va="center", color=colour)
    names = [plain(label) for label in labels]
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="called", ylabel="truth")
    return figure


def roc_figure(found: Evaluation, judged: Judged) -> Figure:
    """One ROC curve per label that has both kinds of truth, with the area under each."""
    figure, ax = _curve_axes(len(found.labels))
    ax.plot([0, 1], [0, 1], color="0.75", linewidth=1, linestyle=":")
    for i, one in enumerate(found.classes):
        if one.auroc is not None:
            positive, scores, _ = judged.known(i)
            false, true, _ = counts_above(scores, positive)
            x, y = np.r_[0.0, false / false[-1]], np.r_[0.0, true / true[-1]]
            ax.plot(x, y, label=f"{one.auroc.value:.3f}  {plain(one.label)}", **_look(i))
    ax.set(
        xlabel="false positive rate (1 - specificity)", ylabel="true positive rate (sensitivity)"
    )
    _legend(ax, "AUROC")
    return figure


def pr_figure(found: Evaluation, judged: Judged) -> Figure:
    """One precision-recall curve per label, as the steps whose area is the average precision; a
    dotted line where chance is, at the label's share of the images."""
    figure, ax = _curve_axes(len(found.labels))
    for i, one in enumerate(found.classes):
        if one.average_precision is not None:
            positive, scores, _ = judged.known(i)
            false, true, _ = counts_above(scores, positive)
            precision, name = true / (true + false), f"{one.average_precision:.3f}"
            x, y = np.r_[0.0, true / true[-1]], np.r_[precision[0], precision]
            ax.plot(x, y, drawstyle="steps-pre", label=f"{name}  {plain(one.label)}", **_look(i))
            share = one.positives / (one.positives + one.negatives)
            ax.axhline(share, color=COLOURS[i % len(COLOURS)], linewidth=0.8, linestyle=":")
    ax.set(xlabel="recall (sensitivity)", ylabel="precision")
    _legend(ax, "average precision")
    return figure


def histogram_figure(histograms: Histograms) -> Figure:
    """One panel per label: its probability where the label is there, and where it is not."""
    figure, panels = _panels([one.label for one in histograms.classes])
    edges = np.array(histograms.edges)
    crowded = any(max(one.with_label + one.without_label) > 50 for one in histograms.classes)
    for ax, one in zip(panels, histograms.classes):
        for counts, colour, name in (
            (one.without_label, COLOURS[0], "without"),
            (one.with_label, COLOURS[1], "with"),
        ):
            ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, alpha=0.6)
            ax.plot([], [], color=colour, linewidth=6, alpha=0.6, label=name)
        if crowded:
            ax.set_yscale("symlog", linthresh=10)
            ax.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=10, subs=(1, 3)))
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("probability", fontsize=9)
    figure.supylabel("images", fontsize=9)
    return figure


def threshold_figure(operating: Operating, tables: Sequence[LabelThresholds]) -> Figure:
    """One panel per label: sensitivity and specificity over the threshold; bars: the papers'
    interval at the thresholds of the table."""
    figure, panels = _panels([one.label for one in operating.classes])
    grid = np.arange(operating.steps + 1) / operating.steps
    for ax, one, table in zip(panels, operating.classes, tables):
        shares = (
            ("sensitivity", np.array(one.true_positive), one.positives),
            ("specificity", one.negatives - np.array(one.false_positive), one.negatives),
        )
        for colour, (name, counts, total) in zip(COLOURS, shares):
            if not total:
                continue
            ax.plot(grid, counts / total, color=colour, linewidth=1.4, label=name)
            for row in table.rows:
                share = getattr(row, name)
                ax.vlines(
                    row.threshold, share.low, share.high, color=colour, linewidth=3, alpha=0.35
                )
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    panels[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("called from this probability on", fontsize=9)
    return figure


def calibration_figure(found: Evaluation) -> Figure:
    """One panel per label (and one for the called class): probability against what is true."""
    calibration = found.calibration
    every: list[Reliability] = [*calibration.classes]
    every += [calibration.top] if calibration.top else []
    names = [one.label or "the called class" for one in every]
    figure, panels = _panels(names, height=2.7)
    for ax, one in zip(panels, every):
        ax.plot([0, 1], [0, 1], color="0.75", linewidth=1, linestyle=":")
        x = [part.mean_probability for part in one.curve]
        ax.vlines(
            x,
            [part.observed_low for part in one.curve],
            [part.observed_high for part in one.curve],
            color=COLOURS[0],
            linewidth=1,
            alpha=0.5,
        )
        sizes = [6 + 60 * part.images / max(one.images, 1) for part in one.curve]
        ax.scatter(x, [part.observed for part in one.curve], sizes, color=COLOURS[0])
        told = "no known truth" if one.ece is None else f"ECE {one.ece:.3f}"
        ax.text(0.03, 0.93, told, fontsize=8, transform=ax.transAxes)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    figure.supxlabel("mean probability of the bin", fontsize=9)
    figure.supylabel("share that is true", fontsize=9)
    return figure


def subgroup_figure(parts: Sequence[Subgroups], accuracy: bool) -> Figure:
    """A line per group: accuracy or else the mean AUROC, with its interval."""
    lines: list[tuple[str, Estimate | None]] = []
    for part in parts:
        for group in part.groups:
            name = f"{part.by} {plain(group.value)} ({group.images:,})"
            lines.append((name, group.accuracy if accuracy else group.mean_auroc))
    figure, (ax,) = new_figure(5.8, 0.9 + 0.28 * len(lines))
    for y, (_, estimate) in enumerate(lines):
        estimate_bar(ax, y, estimate, COLOURS[0])
    ax.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize=8)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.grid(axis="x", color="0.9")
    ax.set_xlabel(f"{'accuracy' if accuracy else 'mean AUROC'}, 95 % interval")
    return figure


def against_figure(found: Comparison) -> Figure:
    """Per label the two areas with their intervals, and p."""
    figure, (ax,) = new_figure(6.2, 1.3 + 0.5 * len(found.areas))
    for y, one in enumerate(found.areas):
        estimate_bar(ax, y - 0.14, one.this, COLOURS[0])
        estimate_bar(ax, y + 0.14, one.other, COLOURS[1])
    names = [
        f"{plain(one.label)}\np = {'-' if one.p_holm is None else f'{one.p_holm:.2g}'}"
        for one in found.areas
    ]
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="x", color="0.9")
    ax.plot([], [], "o-", color=COLOURS[0], label="these scores")
    ax.plot([], [], "o-", color=COLOURS[1], label=plain(found.other))
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    ax.set_xlabel("AUROC, DeLong's 95 % interval; p of the difference (DeLong, Holm)", fontsize=9)
    return figure


def estimate_bar(
    ax: Axes, y: float, estimate: Estimate | None, colour: str, width: float = 1.5
) -> None:
    """A point and its interval at height y; nothing for None."""
    if estimate is None:
        return
    ax.plot([estimate.value], [y], "o", color=colour, markersize=5)
    if estimate.low is not None and estimate.high is not None:
        ax.hlines(y, estimate.low, estimate.high, color=colour, linewidth=width)


def _curve_axes(labels: int) -> tuple[Figure, Axes]:
    figure, (ax,) = new_figure(6.4 if labels <= 8 else 8.2, 4.6)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    return figure, ax


def _look(i: int) -> dict[str, Any]:
    style = STYLES[i // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": style, "linewidth": 1.6}


def _legend(ax: Axes, title: str) -> None:
    if ax.get_legend_handles_labels()[0]:
        options: dict[str, Any] = {"frameon": False, "fontsize": 8, "alignment": "left"}
        ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title=title, **options)


def _panels(labels: Sequence[str], height: float = 2.3) -> tuple[Figure, list[Axes]]:
    """A small panel per label, three in a row."""
    columns = min(len(labels), _PANEL_COLUMNS)
    rows = -(-len(labels) // columns)
    figure, panels = new_figure(3.2 * columns, height * rows, columns, rows)
    for ax, label in zip(panels, labels):
        ax.set_title(plain(label), fontsize=9)
        ax.tick_params(labelsize=7)
    for ax in panels[len(labels) :]:
        ax.set_axis_off()
    return figure, panels
