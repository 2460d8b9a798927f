"""MODEL.md beside MODEL.onnx: what the model is for, what it was trained on, how good it is known
to be, and what it is not. Needs no torch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.inspect import depth_text, point_text
from serve.intervals import Estimate
from serve.model_info import PROBABILITIES_NAME, ModelInfo
from serve.report_models import weights_of
from shards.console import one_line, warn
from shards.manifest import SOME_OR_ALL

LIMITS = (
    "It was tuned and tested on images of the same sources as its training; other devices, views, "
    "populations and diseases are not covered, and known confounders (burnt-in words, devices, "
    "the hospital's style) were not removed.",
    "A probability is the network's score, not the chance of disease in a patient.",
    "The thresholds were chosen on the validation split; on other images their sensitivity and "
    "specificity differ, and with few positives they are uncertain.",
)

SYNTHETIC = (
    "**Trained on synthetic, made-up radiographs ({} of its data set): what comes of them says "
    "nothing about real ones.**"
)


def write_card(
    info: ModelInfo,
    outputs: Mapping[str, Sequence[int]],
    validation: Mapping[str, Estimate | None],
    run: Path,
) -> str:
    """The card as Markdown. outputs: name -> shape without the batch, -1 where a side is any;
    validation: label -> AUROC of this very model on the validation split; `run` gives the test
    metrics that are there."""
    parts = [
        f"# {_cell(info.run)}: {info.architecture} for {info.size} x {info.size} chest X-rays",
        "**Research software, not a medical device.** It must not guide anyone's care.",
        *([SYNTHETIC.format(info.synthetic_images or SOME_OR_ALL)] if info.synthetic else []),
        f"## Intended use\n\n{_cell(info.intended_use)}.",
        f"## Model\n\n{_table(('', ''), _facts(info, outputs))}",
        f"## Data\n\n{_data(info)}",
        f"## Metrics\n\n{_metrics(info, validation, run)}",
        f"## Operating points\n\n{_points(info)}",
        f"## Precision and parity\n\n{_parity(info)}",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in LIMITS),
        f"## Licence\n\n{_cell(info.licence)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(info: ModelInfo, outputs: Mapping[str, Sequence[int]]) -> list[tuple[str, str]]:
    kind = "exactly one holds" if info.exclusive else "any number of them"
    reduced = f"reduced to {info.shorter_side} pixels, then " if info.shorter_side else ""
    return [
        ("labels", f"{', '.join(info.labels)} ({kind})"),
        ("input", f"`images` uint8 (N, 1, {info.size}, {info.size}), grey; any N"),
        *(("output", _output(name, shape, info)) for name, shape in outputs.items()),
        (
            "preprocessing",
            f"version {info.preprocessing_version}: {reduced}resized to {info.size}; normalisation "
            "is in the graph",
        ),
        ("16-bit images", depth_text(info.depth)),
        ("trained", f"recipe {info.recipe}, stage {info.stage}, head {info.head}"),
        ("weights SHA-256", info.weights_sha256),
        ("made by", info.created_by),
    ]


def _output(name: str, shape: Sequence[int], info: ModelInfo) -> str:
    sides = ", ".join("any" if side < 0 else str(side) for side in shape)
    kind = f" ({info.output})" if name == PROBABILITIES_NAME else ""
    return f"`{_cell(name)}`{kind} float32 (N, {sides})"


def _data(info: ModelInfo) -> str:
    lines = [f"Data set `{_cell(info.dataset)}`, manifest SHA-256 `{info.manifest_hash}`."]
    if info.splits:
        lines.append(_table(("split", "images"), [(k, str(v)) for k, v in info.splits.items()]))
    return "\n\n".join(lines)


def _metrics(info: ModelInfo, validation: Mapping[str, Estimate | None], run: Path) -> str:
    rows = [(label, _estimate(estimate)) for label, estimate in validation.items()]
    parts = [
        "Validation split, this file as exported, 95 % intervals by DeLong (the split also chose "
        "the weights and the thresholds, so this flatters):",
        _table(("label", "AUROC"), rows),
    ]
    evaluated = _read(run / "evaluation" / "metrics.json")
    if evaluated is not None and weights_of(evaluated) not in (None, info.weights_sha256):
        parts.append(
            "The evaluation in the run's folder is of other weights and is left out: score and "
            "evaluate this file."
        )
        evaluated = None
    if evaluated is not None and evaluated.get("labels") == list(info.labels):
        parts += [*_evaluated(evaluated), _measured_with(evaluated, info)]
    else:
        parts += _of_training(_read(run / info.stage / "result.json"))
    return "\n\n".join(parts)


def _measured_with(metrics: dict[str, Any], info: ModelInfo) -> str:
    """Which model the evaluation's numbers are of."""
    if weights_of(metrics) is None:
        return "**The scores do not say which model they are of: it may be another than this one.**"
    file, precision = (str(metrics["scored_by"].get(name)) for name in ("file", "precision"))
    told = f"Measured with {_cell(file)} ({_cell(precision)}) of these weights"
    if precision == info.precision:
        return f"{told}."
    return f"**{told}; this file is {info.precision}, whose numbers differ.**"


def _evaluated(metrics: dict[str, Any]) -> list[str]:
    """The run's own evaluation, with intervals."""
    split = metrics.get("split") or "given"
    rows = [
        (
            one["label"],
            *(_raw_estimate(one.get(name)) for name in ("auroc", "recall", "specificity")),
        )
        for one in metrics["classes"]
    ]
    lines = [f"Evaluation of the run, {split} images, {metrics['evaluated']} of them:"]
    lines.append(_table(("label", "AUROC", "recall", "specificity"), rows))
    if metrics.get("accuracy"):
        lines.append(f"Accuracy {_raw_estimate(metrics['accuracy'])}.")
    return lines


def _of_training(result: dict[str, Any] | None) -> list[str]:
    if not result or not result.get("phases"):
        return ["No test metrics: evaluate the scores of the test split, then export again."]
    test = result["phases"][-1]["test"]
    values = [_number(value) for value in test.get("auroc", [])]
    precision = test.get("precision", "the training's precision")  # older runs do not say it
    lines = [f"Test split, as training measured it in torch, in {precision}, without intervals:"]
    lines.append(_table(("label", "AUROC"), list(zip(result["labels"], values))))
    if test.get("accuracy") is not None:
        lines.append(f"Accuracy {_number(test['accuracy'])}.")
    return lines


def _points(info: ModelInfo) -> str:
    rows = [
        (name, label, point_text(point))
        for name, points in info.thresholds.items()
        for label, point in points.items()
    ]
    told = "Chosen on the validation split with this file; `serve score --operating-point` applies "
    return told + "one.\n\n" + _table(("point", "label", "called"), rows)


def _parity(info: ModelInfo) -> str:
    parity = info.parity
    if parity is None:
        return f"{info.precision}; parity is not known."
    text = (
        f"{info.precision}. On {parity.images} validation images torch (fp32) and this file in "
        f"ONNX Runtime ({parity.provider}) differ by {parity.max_probability_difference:.2g} in a "
        f"probability at most, {parity.mean_probability_difference:.2g} on average."
    )
    if parity.auroc_torch is not None and parity.auroc_onnx is not None:
        text += (
            f" Mean AUROC {parity.auroc_torch:.4f} in torch, {parity.auroc_onnx:.4f} in this file."
        )
        if parity.allowed_auroc_loss is not None:
            text += f" The gate allows a loss of {parity.allowed_auroc_loss:g}."
    return text


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        warn(f"{path} is damaged; the model card goes without it")
        return None
    return found


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return _raw_estimate({"value": estimate.value, "low": estimate.low, "high": estimate.high})


def _raw_estimate(raw: dict[str, Any] | None) -> str:
    if raw is None:
        return "-"
    text = _number(raw["value"])
    return text if raw.get("low") is None else f"{text} ({raw['low']:.3f} to {raw['high']:.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Labels and names of runs are strangers' text: no table cells, HTML or control characters."""
    plain = one_line(text).replace("\\", "\\\\").replace("|", "\\|")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
