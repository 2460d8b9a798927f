"""What the report tells of one run: read from its folder, its evaluation, the shards' manifests and
what other commands left beside it. What is not there is None, and the page says so."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from serve.again import MADE, commands
from serve.gallery import Gallery, make_gallery, without_lost
from serve.metrics import FORMAT_VERSION
from serve.predictions import join, read_predictions
from serve.report_charts import chart_data
from serve.report_maps import NAME as EXPLANATIONS
from serve.report_models import OwnModels, Part, own_models, part_of
from serve.score_folder import ScoreFolder
from serve.truth import LabelTable
from shards.console import RunFailed, UserError
from shards.manifest import SOME_OR_ALL, SYNTHETIC_NOTE, load_manifest, manifest_hash
from shards.reader import read_labels

SPLITS = ("train", "val", "test")
SPLIT = "test"
_MAX_PICTURE = 2 * 2**20  # bytes of examples.png; of images that are nothing but noise 1.8 MB
_JSON_VERSION = 1  # of shortcuts.json, features.json and faithfulness.json


@dataclass(frozen=True)
class Folders:
    """Where a run and what was made of it lie. shards: the folder of the data sets; None: the one
    that the run was trained from."""

    run: Path
    shards: Path | None
    scores: Path
    evaluation: Path
    shortcuts: Path
    explain: Path
    features: Path
    faithfulness: Path


def read_run(folders: Folders, gallery: int) -> dict[str, Any]:
    """All that the templates tell of a run. UserError when the folder is none, or a file of it is
    damaged; KeyError when one lacks a field."""
    run = folders.run
    settings = read_json(run / "settings.json")
    if settings is None:
        raise UserError(f"no settings.json in {run}; it is no run folder of python -m train")
    planned = settings["config"]["stages"]
    shards = folders.shards or Path(settings["shards"])
    last = shards / planned[-1]["dataset"]
    data = [_data(shards / name) for name in dict.fromkeys(s["dataset"] for s in planned)]
    stages = _stages(run, planned)
    models = {one["name"]: read_json(run / one["name"] / "model.json") for one in planned}
    own = own_models(planned[-1]["name"], models)
    parts = _parts(folders, own)
    explanations = folders.explain / EXPLANATIONS
    explained = {"explanations": part_of(explanations, read_json(explanations), own).content}
    told = {name: part.content for name, part in parts.items()}
    pictures, omitted = _gallery(folders, last, gallery, parts["scoring"])
    return {
        **told,
        "missing": {name: part.missing for name, part in parts.items()},
        "notes": {name: part.notes for name, part in parts.items()},
        "name": run.resolve().name,
        "folders": folders,
        "settings": settings,
        "synthetic": _synthetic(settings, data),
        "model": models[planned[-1]["name"]],
        "environment": read_json(run / "environment.json") or {},
        "data": data,
        "judged": next(one for one in data if one["folder"] == last),
        "stages": stages,
        "examples": _picture(folders.shortcuts / "examples.png"),
        "gallery": pictures,
        "gallery_omitted": omitted,
        "commands": _commands(folders, settings, last, told | explained),
        "settings_json": json.dumps(settings["config"], indent=1),
        "charts": chart_data(stages, told["metrics"], told["features"], told["faithfulness"]),
    }


def _parts(folders: Folders, own: OwnModels) -> dict[str, Part]:
    """What other commands left, as far as it is of the run's own models."""
    evaluation = folders.evaluation / "metrics.json"
    scores = folders.scores / "scores.json"
    named = {
        "shortcuts": folders.shortcuts / "shortcuts.json",
        "features": folders.features / "features.json",
        "faithfulness": folders.faithfulness / "faithfulness.json",
    }
    metrics = _versioned(evaluation, FORMAT_VERSION)
    return {
        "metrics": part_of(evaluation, metrics, own, "evaluation"),
        "scoring": part_of(scores, ScoreFolder(folders.scores).summary(), own),
        **{n: part_of(path, _versioned(path, _JSON_VERSION), own) for n, path in named.items()},
    }


def read_json(path: Path) -> Any:
    """A JSON file's object; None when it is not there."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} where an object belongs")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); make it again") from error
    return content


def _versioned(path: Path, version: int) -> Any:
    content = read_json(path)
    if content is not None and content.get("format_version") != version:
        found = content.get("format_version")
        raise UserError(f"{path} is of format {found}, this program reads {version}; make it again")
    return content


def _picture(path: Path) -> bytes | str:
    """Its bytes, or why they are not on the page."""
    if not path.is_file():
        return f"No {path.name} in {path.parent}"
    size = path.stat().st_size
    if size > _MAX_PICTURE:
        return f"Left out: {path} has {size:,} bytes, the page takes {_MAX_PICTURE:,}"
    return path.read_bytes()


def _data(folder: Path) -> dict[str, Any]:
    """What is told of one data set; `omitted` when it cannot be read."""
    try:
        manifest = load_manifest(folder)
    except UserError as error:
        return {"folder": folder, "name": folder.name, "omitted": str(error)}
    return {
        "folder": folder,
        "name": manifest.dataset,
        "omitted": None,
        "manifest": manifest,
        "synthetic": manifest.synthetic_note.removeprefix(SYNTHETIC_NOTE),
        "splits": sorted(manifest.splits.items(), key=lambda item: _split_place(item[0])),
        "hash": manifest_hash(folder),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "quarantine": _quarantine(folder / "quarantine.parquet"),
    }


def _synthetic(settings: dict[str, Any], data: Sequence[dict[str, Any]]) -> list[str]:
    """How many of each data set's images are synthetic, in words; empty: none of any."""
    told = [f"{one['synthetic']} of {one['name']}" for one in data if one.get("synthetic")]
    return told or [SOME_OR_ALL] * bool(settings["synthetic"])


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
    """Per stage: the epochs, the phases with their test results, and the speed."""
    rows = _read_metrics(run / "metrics.jsonl")
    told = []
    for stage in stages:
        epochs = [row for row in rows if row["stage"] == stage["name"]]
        told.append(
            {
                "name": stage["name"],
                "dataset": stage["dataset"],
                "rows": epochs,
                "result": read_json(run / stage["name"] / "result.json"),
                "speed": _speed(epochs),
            }
        )
    return told


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The epochs; without the last line where a killed run left half of one behind others."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if len(lines) > 1 and not lines[-1].endswith("\n"):
            lines.pop()
        return [json.loads(line) for line in lines]
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
                "energy_kj": _sum_kj([row.get("energy_j") for row in own]),
            }
        )
    return told


def _sum_kj(joules: list[float | None]) -> float | None:
    """None where an epoch was not measured: on a CPU, none is."""
    known = [value for value in joules if value is not None]
    return sum(known) / 1e3 if known and len(known) == len(joules) else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _commands(folders: Folders, settings: dict[str, Any], data: Path, told: Any) -> list[str]:
    """What to type to get all of this again, but for the report."""
    split = (told["metrics"] or {}).get("split") or SPLIT
    places = {name: getattr(folders, name) for name in MADE}
    lines = commands(folders.run, places, data, split, told)
    return [settings.get("command") or "python -m train ...", *lines]


def _gallery(
    folders: Folders, data: Path, size: int, scoring: Part
) -> tuple[Gallery | None, list[str]]:
    """The gallery, and what is to be said about the images that are not there."""
    if size == 0:
        return None, ["Left out, as asked for (--gallery 0)."]
    scores = folders.scores
    if not (scores / "scores.json").is_file():
        return None, [f"No scores in {scores}: no images. Make them with python -m serve score."]
    if scoring.content is None:
        return None, [f"No images. {scoring.missing}."]
    try:
        manifest, lost = without_lost(data, load_manifest(data), SPLIT)
        keys, labels = read_labels(data, manifest, SPLIT)
        if lost and not keys:
            return None, lost
        truth = LabelTable(tuple(keys), manifest.labels, labels, None, {}, manifest.exclusive)
        joined = join(read_predictions(scores), truth)
        found = make_gallery(folders.run, data, manifest, SPLIT, joined, size, folders.explain)
    except (UserError, RunFailed) as error:
        return None, [f"No images: {error}."]
    shown = sum(picture.wrong is True for picture in found.pictures)
    omitted = [*scoring.notes, *lost, *found.omitted]
    if not found.pictures:
        none = "No images: there is none whose call is known as right or wrong."
        return found, omitted if lost or found.omitted else [*omitted, none]
    if shown < found.wrong:
        omitted.append(f"{shown} of {found.wrong} wrong calls are shown.")
    if all(len(picture.layers) == 1 for picture in found.pictures):
        omitted.append(
            f"No other maps than Grad-CAM in {folders.explain}: python -m serve explain --run RUN "
            f"--method lrp --shards {data} --split {SPLIT} --out {folders.explain}"
        )
    return found, omitted
