"""faithfulness.json as a table of text, and as a picture."""

from typing import Any

import numpy as np

from serve.figures import COLOURS, STYLES, new_figure, to_png


def table(content: dict[str, Any]) -> str:
    """The measures by method, as text."""
    lines = [
        f"{content['explanations']} explanations, {content['with_boxes']} with boxes",
        f"{'method':<16}{'maps':>6}{'pointing':>10}{'IoU':>8}{'deletion':>10}{'insertion':>11}"
        f"{'other head':>12}{'other net':>11}",
    ]
    for row in content["methods"]:
        pointing = row["pointing"] and row["pointing"]["value"]
        sanity = row["sanity"] or {}
        lines.append(
            f"{row['method']:<16}{row['maps']:>6}{_cell(pointing):>10}{_cell(row['iou']):>8}"
            f"{_cell(row['deletion']):>10}{_cell(row['insertion']):>11}"
            f"{_cell(sanity.get('output_layer')):>12}{_cell(sanity.get('all_layers')):>11}"
        )
    return "\n".join([*lines, *(f"left out: {reason}" for reason in content["omitted"])])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def picture(content: dict[str, Any]) -> bytes:
    """Deletion and insertion curves, and bars of pointing game, overlap and sanity check."""
    rows = content["methods"]
    figure, (deletion, insertion, bars) = new_figure(12, 3.8, columns=3)
    for ax, kind, best in ((deletion, "deletion", "low"), (insertion, "insertion", "high")):
        for i, row in enumerate(rows):
            if row[kind] is None:
                continue
            name = f"{row['method']} ({row[kind]:.3f})"
            style = STYLES[i % len(STYLES)]
            ax.plot(content["fractions"], row[f"{kind}_curve"], style, color=COLOURS[i], label=name)
        ax.set_xlabel(f"share of the image {'deleted' if kind == 'deletion' else 'inserted'}")
        ax.set_ylabel("probability of the explained label")
        ax.set_title(f"{kind} ({best} is good)")
        ax.legend(fontsize=8)
    groups = {
        "pointing": [row["pointing"] and row["pointing"]["value"] for row in rows],
        "IoU": [row["iou"] for row in rows],
        "other head": [(row["sanity"] or {}).get("output_layer") for row in rows],
        "other net": [(row["sanity"] or {}).get("all_layers") for row in rows],
    }
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        heights = [values[i] if values[i] is not None else np.nan for values in groups.values()]
        places = np.arange(len(groups)) + (i - (len(rows) - 1) / 2) * width
        bars.bar(places, heights, width, color=COLOURS[i], label=row["method"])
    bars.set_xticks(range(len(groups)), list(groups))
    bars.axhline(0, color="black", linewidth=0.6)
    bars.set_title("in the boxes (high is good),\nlike other weights' maps (low is good)")
    return to_png(figure)
