"""Scores and labels -> metrics.json, CSV tables, pictures. Needs no torch.

Run: python -m serve evaluate --scores DIR --labels DIR --out DIR

Classes that exclude each other: an image's call is the class of its largest probability. Otherwise
a label is called from probability 0.5 on. Unknown truth (-1) is left out label by label. Where the
labels are not those of the scores: serve/vocabularies.py.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from serve.again import options_given
from serve.evaluation_figures import evaluation_figures
from serve.evaluation_tables import evaluation_tables
from serve.figures import write_figure
from serve.judged import judge
from serve.metrics import Evaluation, MeasureConfig, measure
from serve.predictions import Joined, PredictionTable, join, read_predictions
from serve.truth import LabelTable, read_label_table
from shards.console import UserError
from shards.splits import canonical
from shards.writer import write_atomic

METRICS_NAME = "metrics.json"
_NOT_ALWAYS = ("confusion", "subgroups", "against")  # parts that not every evaluation has
SHARDS_SPLIT, SHARDS_VALIDATION = "test", "val"


@dataclass(frozen=True)
class EvaluateConfig:
    """Judge scores by labels: metrics.json, and its parts as CSV tables and as PNG and SVG."""

    scores: Path
    """Folder or --csv of python -m serve score, or any CSV or Parquet file: a column `key`, and one
    column <label> or prob_<label> per label; of one model."""
    labels: Path
    """Folder of a data set's shards, or a CSV or Parquet file: a column `key`, and one column of 1,
    0, -1 or nothing (unknown) per label, or one column `label` with the class's name. Columns
    patient, view, sex, age, source and split are used where they are there."""
    out: Path
    """Folder for the metrics, the tables and the pictures."""
    split: str | None = None
    """Which split's images count; by default test of shards, and every row of a file."""
    against: Path | None = None
    """Another model's scores of the same images: DeLong's and McNemar's tests."""
    calibration: Path | None = None
    """The same model's scores of validation images: the temperature is fitted on them."""
    calibration_split: str | None = None
    """The split with the labels of --calibration; by default val of shards, any row of a file."""
    thresholds: tuple[float, ...] = MeasureConfig.thresholds
    """Where to tell sensitivity and specificity, with the interval 1.96 sqrt(p (1 - p) / n)."""
    bootstrap: int = MeasureConfig.replicates
    """Resamples (of patients, where they are known) behind the bootstrap intervals, and a fifth of
    them, at least 100, behind each subgroup's; 0: none."""
    seed: int = 0
    """Seed of the resamples."""
    exclusive: bool | None = None
    """Whether each image has exactly one of the labels; by default as the scores and labels say."""


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Write the folder, metrics.json last, and say the main numbers on standard output."""
    _check(config)
    shards = config.labels.is_dir()
    split = _split(config.split, SHARDS_SPLIT if shards else None)
    scores = read_predictions(config.scores)
    truth = read_label_table(config.labels, split, scores.labels)
    joined = _join(config, scores, truth)
    validation = against = None
    if config.calibration is not None:
        of = _split(config.calibration_split, SHARDS_VALIDATION if shards else None)
        known = read_label_table(config.labels, of, scores.labels)
        validation = _join(config, read_predictions(config.calibration), known)
    if config.against is not None:
        against = (config.against.name, _join(config, read_predictions(config.against), truth))
    chosen = MeasureConfig(config.thresholds, config.bootstrap, config.seed)
    found = measure(joined, split, config=chosen, validation=validation, against=against)
    config.out.mkdir(parents=True, exist_ok=True)
    _remove_old(config.out)
    write_pictures(found, joined, config.out)
    write_tables(found, joined, config.out)
    write_metrics(found, config.out, options_given(config, ("scores", "labels", "out")))
    for line in _summary(found):
        print(line)
    return found


def _split(asked: str | None, of_shards: str | None) -> str | None:
    """The split whose labels count. of_shards: the default of a data set, None for a table."""
    return canonical(asked or of_shards) if of_shards else asked


def _check(config: EvaluateConfig) -> None:
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out} is a file; --out names a folder")
    if config.bootstrap < 0 or 0 < config.bootstrap < 100:
        raise UserError(f"--bootstrap is {config.bootstrap}; give 100 or more, or 0 for none")
    outside = [value for value in config.thresholds if not 0 <= value <= 1]
    if outside:
        raise UserError(f"--thresholds has {outside[0]:g}; a threshold is from 0 to 1")


def _join(config: EvaluateConfig, predictions: PredictionTable, truth: LabelTable) -> Joined:
    if config.exclusive and len(predictions.labels) < 2:
        raise UserError(f"--exclusive with the one label {predictions.labels[0]!r}; leave it out")
    return join(predictions, truth, config.exclusive)


def _summary(found: Evaluation) -> list[str]:
    call = "the most probable label" if found.exclusive else "each label from 0.5 on"
    lines = [f"images     {found.evaluated} of {found.images}; called: {call}"]
    if found.synthetic_images:
        lines.append(f"synthetic  {found.synthetic_images} of {found.images}, drawn by a program")
    if found.accuracy:
        a = found.accuracy
        lines.append(f"accuracy   {a.value:.4f} (95 % interval {a.low:.4f} to {a.high:.4f})")
    means = {name: found.mean[name] for name in ("auroc", "f1")}
    lines += [f"mean {name:<5} {value:.4f}" for name, value in means.items() if value is not None]
    lines += _summary_of_comparison(found)
    if found.calibration.temperature:
        lines.append(f"temperature {found.calibration.temperature.value:.3f}")
    return lines + [f"left out: {line}" for line in found.omitted]


def _summary_of_comparison(found: Evaluation) -> list[str]:
    if found.against is None:
        return []
    lines = [
        f"against {found.against.other}, {one.label}: AUROC {one.this.value:.4f} and "
        f"{one.other.value:.4f}, p {'-' if one.p is None else f'{one.p:.2g}'} (DeLong)"
        for one in found.against.areas
    ]
    calls = [test for test in found.against.mcnemar if test.label is None]
    return lines + [
        f"against {found.against.other}: {test.only_this} images right only here, "
        f"{test.only_other} only there, p {test.p:.2g} (McNemar)"
        for test in calls
    ]


def _remove_old(out: Path) -> None:
    """What an evaluation before left there and this one may not write; metrics.json first."""
    for name in (
        METRICS_NAME,
        *(f"{n}.{end}" for n in _NOT_ALWAYS for end in ("csv", "png", "svg")),
    ):
        (out / name).unlink(missing_ok=True)


def write_pictures(evaluation: Evaluation, joined: Joined, out: Path) -> None:
    """Every picture of the evaluation as PNG and as SVG."""
    for name, figure in evaluation_figures(evaluation, judge(joined)).items():
        write_figure(figure, out / name)


def write_tables(evaluation: Evaluation, joined: Joined, out: Path) -> None:
    """Every part of the evaluation as a CSV file."""
    for name, data in evaluation_tables(evaluation, joined).items():
        write_atomic(out / f"{name}.csv", data)


def write_metrics(evaluation: Evaluation, out: Path, options: Sequence[str] = ()) -> None:
    """metrics.json, at full precision: written last, it says that the folder is complete."""
    content = asdict(evaluation) | {"options": list(options)}
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomic(out / METRICS_NAME, (text + "\n").encode())
