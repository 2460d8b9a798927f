"""The pictures beside shortcuts.json: what was done to the images, and what it did."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from serve.evaluation_figures import estimate_bar
from serve.figures import COLOURS, new_figure, plain
from serve.intervals import Estimate
from serve.shortcuts.passes import Passes
from serve.shortcuts.results import BorderResult, ClassChange, Performance, Shortcuts
from serve.shortcuts.sources import SourceResult

_TITLES = {
    "as_is": "as it is",
    "covered": "words covered",
    "pasted": "word pasted",
    "lungs_black": "lungs black",
    "lungs_only": "lungs only",
}


def shortcut_figures(found: Shortcuts, passes: Passes) -> dict[str, Figure]:
    """Name (without ending) -> figure, for the experiments that were made."""
    figures = {"examples": examples_figure(passes)}
    if found.borders is not None:
        figures["borders"] = borders_figure(found.borders)
    if found.word is not None:
        title = f"{plain(found.word.word)} pasted on {found.word.images:,} images"
        figures["word"] = changes_figure(found.word.classes, title)
    if found.redaction is not None:
        title = f"words covered in {found.redaction.covered:,} images"
        figures["redaction"] = changes_figure(found.redaction.classes, title)
    if found.source is not None:
        figures["source"] = source_figure(found.source)
    return figures


def examples_figure(passes: Passes) -> Figure:
    """A row per image, a column per copy."""
    names = [name for name in _TITLES if any(name in copies for copies in passes.examples.values())]
    rows = len(passes.examples)
    figure, axes = new_figure(1.7 * len(names), 1.75 * rows + 0.2, len(names), rows)
    for ax in axes:
        ax.set_axis_off()
    for row, copies in enumerate(passes.examples.values()):
        for column, name in enumerate(names):
            ax = axes[row * len(names) + column]
            if name in copies:
                ax.imshow(copies[name], cmap="gray", vmin=0, vmax=255)
            if row == 0:
                ax.set_title(_TITLES[name], fontsize=9)
    return figure


def borders_figure(found: BorderResult) -> Figure:
    """AUROC of each label, as it is, with the lungs black, and with nothing but the lungs."""
    kinds = (found.as_is, found.lungs_black, found.lungs_only)
    names = ["mean", *(plain(one.label) for one in found.as_is.classes)]
    figure, (ax,) = new_figure(6.2, 1.6 + 0.5 * len(names))
    ax.axvline(0.5, color="0.75", linestyle=":", linewidth=1)
    for kind, colour, shift, name in zip(kinds, COLOURS, (-0.2, 0, 0.2), _BORDER_NAMES):
        for y, estimate in enumerate(_areas(kind)):
            estimate_bar(ax, y + shift, estimate, colour)
        ax.plot([], [], "o-", color=colour, markersize=5, label=name)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="x", color="0.92")
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    ax.set_xlabel("AUROC, 95 % interval; dotted: chance", fontsize=9)
    return figure


_BORDER_NAMES = ("as they are", "lungs black", "lungs only")


def _areas(kind: Performance) -> list[Estimate | None]:
    return [kind.mean_auroc, *(one.auroc for one in kind.classes)]


def changes_figure(classes: Sequence[ClassChange], title: str) -> Figure:
    """Mean change of each class's probability with its interval; a thin line to the extremes."""
    figure, (ax,) = new_figure(6.2, 1.4 + 0.4 * len(classes))
    ax.axvline(0, color="0.75", linestyle=":", linewidth=1)
    for y, one in enumerate(classes):
        ax.hlines(y, one.smallest, one.largest, color="0.6", linewidth=0.8)
        estimate_bar(ax, y, one.change, COLOURS[1], width=3)
    ax.set_yticks(range(len(classes)), [plain(one.label) for one in classes], fontsize=8)
    ax.set_ylim(len(classes) - 0.5, -0.5)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(
        "change of probability: mean with 95 % interval, thin: smallest to largest", fontsize=9
    )
    return figure


def source_figure(found: SourceResult) -> Figure:
    """How well each source is told from the others; and how many images have each label there."""
    labels = sorted({label for one in found.sources for label in one.labels})
    figure, (left, right) = new_figure(
        9.6, max(2.2, 1.3 + 0.3 * max(len(labels), len(found.sources))), columns=2
    )
    names = [f"{plain(one.source)} ({one.images:,})" for one in found.sources]
    left.axvline(0.5, color="0.75", linestyle=":", linewidth=1)
    for y, one in enumerate(found.sources):
        estimate_bar(left, y, one.auroc, COLOURS[0])
    left.set_yticks(range(len(names)), names, fontsize=8)
    areas = [one.auroc for one in found.sources]
    lowest = min(one.value if one.low is None else one.low for one in areas)
    left.set(xlim=(min(0.4, lowest - 0.02), 1.02), ylim=(len(names) - 0.5, -0.5))
    left.set_xlabel("AUROC of a small model")
    start = np.zeros(len(labels))
    for i, one in enumerate(found.sources):
        counts = np.array([one.labels.get(label, 0) for label in labels])
        colour = COLOURS[i % len(COLOURS)]
        right.barh(range(len(labels)), counts, left=start, color=colour, label=plain(one.source))
        start += counts
    right.set_yticks(range(len(labels)), [plain(label) for label in labels], fontsize=8)
    right.set_ylim(len(labels) - 0.5, -0.5)
    right.set_xlabel("images with the label, by source")
    right.legend(frameon=False, fontsize=8)
    return figure
