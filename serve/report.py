"""A run folder -> one HTML page that needs nothing else: no network, no scripts, no other files.

Run: python -m serve report --run RUN [--out report.html]

Reads the run folder, the shards' manifests, and RUN/scores and RUN/evaluation. What is not there is
stated on the page. Every text that comes from data is escaped by the template.
"""

import base64
import json
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import pyarrow.parquet as pq

from serve.figures import curves_picture
from serve.gallery import Picture, make_pictures
from serve.predictions import join, read_label_table, read_predictions
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest, manifest_hash
from shards.writer import write_atomic

SPLITS = ("train", "val", "test")
SPLIT = "test"
PICTURES = {
    "confusion": "Confusion matrix of the test images: rows are truth, columns are calls",
    "roc": "ROC curves of the test images, one for each label, with the area under each",
    "histograms": "Histograms of the probability of each label, with and without the label",
}


@dataclass(frozen=True)
class ReportConfig:
    """Write a run's report: one HTML file."""

    run: Path
    """Run folder of python -m train."""
    out: Path | None = None
    """The page; by default RUN/report.html."""
    shards: Path | None = None
    """The folder of the data sets; by default the one the run was trained from."""
    scores: Path | None = None
    """Folder of python -m serve score; by default RUN/scores."""
    evaluation: Path | None = None
    """Folder of python -m serve evaluate; by default RUN/evaluation."""
    gallery: int = 24
    """At most this many test images are shown with heat maps; 0: none."""


def write_report(config: ReportConfig) -> Path:
    """Write the page and return its path. UserError when the run folder is none, or is damaged."""
    if config.gallery < 0:
        raise UserError(f"--gallery is {config.gallery}; give 0 or more")
    settings = _read_json(config.run / "settings.json")
    if settings is None:
        raise UserError(f"no settings.json in {config.run}; it is no run folder of python -m train")
    try:
        html = render(_collect(config, settings))
    except (KeyError, jinja2.UndefinedError) as error:
        raise UserError(
            f"a file in {config.run} lacks a field ({error}); another version wrote it: make it "
            "again with this one"
        ) from error
    out = config.out or config.run / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html.encode())
    return out


def _collect(config: ReportConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """All that the template tells."""
    run = config.run
    shards = config.shards or Path(settings["shards"])
    scores = config.scores or run / "scores"
    evaluation = config.evaluation or run / "evaluation"
    stages = settings["config"]["stages"]
    last = shards / stages[-1]["dataset"]
    gallery, gallery_omitted = _gallery(config, last, scores)
    data = [_data(shards / name) for name in dict.fromkeys(s["dataset"] for s in stages)]
    return {
        "name": run.resolve().name,
        "settings": settings,
        "synthetic": settings["synthetic"] or any(one.get("synthetic") for one in data),
        "model": _read_json(run / stages[-1]["name"] / "model.json"),
        "environment": _read_json(run / "environment.json") or {},
        "data": data,
        "stages": _stages(run, stages),
        "metrics": _read_json(evaluation / "metrics.json"),
        "pictures": _pictures(evaluation),
        "evaluation": str(evaluation),
        "gallery": gallery,
        "gallery_omitted": gallery_omitted,
        "scoring": _read_json(scores / "scores.json"),
        "commands": _commands(config, settings, last, scores, evaluation),
        "settings_json": json.dumps(settings["config"], indent=1),
    }


def render(page: dict[str, Any]) -> str:
    """The page's HTML; `page` has the keys that write_report gives it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "number": number,
        "png": lambda data: data_uri(data, "image/png"),
        "jpeg": lambda data: data_uri(data, "image/jpeg"),
    }
    return environment.get_template("report.html.j2").render(page)


def percent(value: float | None) -> str:
    """A share as `99.4 %`; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(estimate: dict[str, Any] | None, scale: str = "percent") -> str:
    """An estimate of metrics.json with its interval: `99.4 % (96.9 to 99.9)`."""
    if estimate is None:
        return "–"
    factor, digits, unit = (100, 1, " %") if scale == "percent" else (1, 3, "")
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    text = f"{value * factor:.{digits}f}{unit}"
    if low is None or high is None:
        return text
    return f"{text} ({low * factor:.{digits}f} to {high * factor:.{digits}f})"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands set apart; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a data URI: base64 has no character that HTML reads as its own."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _read_json(path: Path) -> Any:
    """A JSON file's content; None when it is not there."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); make it again") from error


def _data(folder: Path) -> dict[str, Any]:
    """What is told of one data set; `omitted` when it cannot be read."""
    try:
        manifest = load_manifest(folder)
    except UserError as error:
        return {"name": folder.name, "omitted": str(error)}
    return {
        "name": manifest.dataset,
        "omitted": None,
        "manifest": manifest,
        "synthetic": manifest.synthetic,
        "splits": sorted(manifest.splits.items(), key=lambda item: _split_place(item[0])),
        "hash": manifest_hash(folder),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "quarantine": _quarantine(folder / "quarantine.parquet"),
    }


def _split_place(name: str) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)


def _quarantine(path: Path) -> dict[str, int] | None:
    """Reason -> images; None when there is no such file."""
    if not path.is_file():
        return None
    try:
        reasons = pq.read_table(path, columns=["reason"]).column("reason").to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(f"{path} cannot be read ({error}); ingest again") from error
    # "does not decode: ..." has as many endings as images
    return dict(Counter(reason.split(":", 1)[0] for reason in reasons).most_common())


def _stages(run: Path, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per stage: the curves, the phases with their test results, and the speed."""
    rows = _read_metrics(run / "metrics.jsonl")
    told = []
    for stage in stages:
        epochs = [row for row in rows if row["stage"] == stage["name"]]
        result = _read_json(run / stage["name"] / "result.json")
        told.append(
            {
                "name": stage["name"],
                "dataset": stage["dataset"],
                "planned": stage["phases"],
                "epochs": len(epochs),
                "curves": curves_picture(epochs) if epochs else None,
                "result": result,
                "speed": _speed(epochs),
            }
        )
    return told


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error


def _speed(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per phase: the medians over its epochs, and all its time."""
    phases = list(dict.fromkeys((row["phase"], row["phase_name"]) for row in epochs))
    told = []
    for phase, name in phases:
        own = [row for row in epochs if row["phase"] == phase]
        told.append(
            {
                "phase": phase,
                "name": name,
                "img_s": _median(row["img_s"] for row in own),
                "step_s": _median(row["step_s"] for row in own),
                "copies": _median(row["copies"] for row in own),
                "seconds": sum(row["seconds"] for row in own),
            }
        )
    return told


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _pictures(evaluation: Path) -> dict[str, dict[str, Any]]:
    """The evaluation's pictures that are there, each with what it shows in words."""
    return {
        name: {"png": (evaluation / f"{name}.png").read_bytes(), "alt": alt}
        for name, alt in PICTURES.items()
        if (evaluation / f"{name}.png").is_file()
    }


def _commands(
    config: ReportConfig, settings: dict[str, Any], labels: Path, scores: Path, evaluation: Path
) -> list[str]:
    """What to type to get all of this again."""
    run, model = config.run, config.run / "model.onnx"
    parts: list[list[str | Path]] = [
        ["export", "--run", run, "--out", model],
        ["score", "--model", model, "--out", scores, labels / SPLIT],
        ["evaluate", "--scores", scores, "--labels", labels, "--out", evaluation],
        ["report", "--run", run],
    ]
    lines = [shlex.join(["python", "-m", "serve", *map(str, part)]) for part in parts]
    return [settings.get("command") or "python -m train ...", *lines]


def _gallery(config: ReportConfig, folder: Path, scores: Path) -> tuple[list[Picture], list[str]]:
    """The gallery's pictures, and what is to be said about the ones that are not there."""
    if config.gallery == 0:
        return [], ["Left out, as asked for (--gallery 0)."]
    if not (scores / "scores.json").is_file():
        return [], [f"No scores in {scores}: no images. Make them with python -m serve score."]
    try:
        joined = join(read_predictions(scores), read_label_table(folder, SPLIT))
        pictures, wrong = make_pictures(config.run, folder, SPLIT, joined, config.gallery)
    except (UserError, RunFailed) as error:
        return [], [f"No images: {error}."]
    shown = sum(picture.wrong for picture in pictures)
    return pictures, [f"{shown} of {wrong} wrong calls are shown."] if shown < wrong else []
