"""Shards and a model -> shortcuts.json: how much a model goes by words, borders and the source.

Run: python -m serve shortcuts --model MODEL.onnx --shards DIR --out DIR

Needs no torch. Beside shortcuts.json: pictures (PNG and SVG), `examples.png` that shows what was
done to the images, and word.csv and redaction.csv with every image's probabilities.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from serve.again import options_given
from serve.evaluation_tables import to_csv
from serve.figures import write_figure
from serve.providers import Provider, create_session, read_model_info
from serve.shortcuts.changes import centre_box, word_pixels
from serve.shortcuts.experiments import (
    border_result,
    redaction_result,
    source_result,
    word_result,
)
from serve.shortcuts.inputs import parse_box, parse_point, read_masks
from serve.shortcuts.passes import Passes, Plan, run_passes
from serve.shortcuts.pictures import shortcut_figures
from serve.shortcuts.results import Shortcuts, Truth, in_words
from serve.shortcuts.samples import Listed, list_samples, pick
from serve.shortcuts.sources import SourceResult
from serve.vocabularies import classes_outside, refuse_several, truth_of, why_no_class
from shards.console import UserError, first_few
from shards.labels import UNKNOWN, Vocabulary
from shards.manifest import Manifest, load_manifest
from shards.rectangles import Rectangle, read_rectangles
from shards.splits import SplitName
from shards.writer import write_atomic

RESULT_NAME = "shortcuts.json"
_NOT_ALWAYS = ("borders", "word", "redaction", "source")  # experiments that are not always made


@dataclass(frozen=True)
class ShortcutsConfig:
    """Find out what a model goes by other than the lungs: words, borders, the image's source."""

    shards: Path
    """Folder of a data set's shards, with the model's labels."""
    out: Path
    """Folder for shortcuts.json and the pictures."""
    model: Path | None = None
    """ONNX file of python -m serve export."""
    run: Path | None = None
    """Instead of --model: a run folder that has its model.onnx."""
    split: SplitName = "test"
    """The split whose images are scored."""
    limit: int | None = None
    """Score at most so many images, chosen by the hashes of their keys; by default all."""
    redact: Path | None = None
    """CSV file,x,y,w,h of the rectangles over burnt-in words, in pixels of the original images:
    scored with and without them."""
    word: str | None = None
    """A word to paste in white, as SEDUTO in Bassi & Attux."""
    at: str = "10,10"
    """Where: x,y of the word's left upper corner, in pixels of the model's input."""
    word_height: int | None = None
    """How high its letters are, in pixels; by default a fourteenth of the input (16 of 224)."""
    on: tuple[str, ...] = ()
    """The images to paste it on: keys, or labels (each image that has one); by default all."""
    masks: Path | None = None
    """Folder of lung masks, named as the images (white: lung); by default a box stands for them."""
    box: str = "0.1,0.1,0.9,0.9"
    """The box that stands for the lungs: left,top,right,bottom as shares of the image."""
    others: tuple[Path, ...] = ()
    """More data sets' folders, for the model that predicts the source of an image."""
    source_images: int = 500
    """At most so many images of each source for that model."""
    seed: int = 0
    """Seed of the resamples and folds."""
    provider: Provider = "auto"
    """Where the network runs; auto: on a GPU where CUDA works, else on the CPU."""


def find_shortcuts(config: ShortcutsConfig) -> Shortcuts:
    """Write the folder, shortcuts.json last, and say on standard output what was found."""
    model_path = _model_path(config)
    session = create_session(model_path, config.provider, len(os.sched_getaffinity(0)))
    info = read_model_info(session, str(model_path))
    manifest = load_manifest(config.shards)
    omitted: list[str] = []
    samples = pick(list(list_samples(config.shards, manifest, [config.split])), config.limit)
    if not samples:
        raise UserError(f"the split {config.split} of {config.shards} has no image")
    truth = _truth(samples, manifest, info.labels, info.exclusive, omitted)
    plan = _plan(config, samples, manifest, info.size, omitted)
    passes = run_passes(session, truth.samples, plan, info.shorter_side, info.size)
    rows = np.arange(len(samples))
    redaction = redaction_result(truth, passes, config.seed)
    word = None
    if config.word is not None:
        at = parse_point(config.at, "--at")
        word = word_result(truth, passes, config.word, at, _height(config, info.size))
    region = f"the box {config.box}" if config.masks is None else "the masks"
    borders = border_result(truth, passes, plan.masks, region, config.seed)
    folders = (config.shards, *config.others)
    told = source_result(folders, config.source_images, info.shorter_side, info.size, config.seed)
    source = told if isinstance(told, SourceResult) else None
    omitted += [told] if isinstance(told, str) else []
    found = Shortcuts(
        model=model_path.name,
        model_sha256=hashlib.sha256(model_path.read_bytes()).hexdigest(),
        dataset=manifest.dataset,
        split=config.split,
        synthetic=manifest.synthetic,
        labels=info.labels,
        exclusive=truth.exclusive,
        images=len(samples),
        as_is=truth.performance(passes.as_is, rows, config.seed),
        redaction=redaction,
        word=word,
        borders=borders,
        source=source,
        words=in_words(redaction, word, borders, source),
        omitted=tuple(omitted),
        weights_sha256=info.weights_sha256,
    )
    _write(config, found, truth, passes)
    for line in [*found.words, *(f"left out: {line}" for line in found.omitted)]:
        print(line)
    return found


def _model_path(config: ShortcutsConfig) -> Path:
    if (config.model is None) == (config.run is None):
        raise UserError("give either --model MODEL.onnx or --run RUN")
    for name in ("limit", "word_height", "source_images"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, found {value}")
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out} is a file; --out names a folder")
    if config.model is not None:
        return config.model
    assert config.run is not None
    path = config.run / "model.onnx"
    if not path.is_file():
        raise UserError(
            f"no {path}; make it with: python -m serve export --run {config.run} --out {path}"
        )
    return path


def _truth(
    samples: Sequence[Listed],
    manifest: Manifest,
    labels: tuple[str, ...],
    exclusive: bool,
    omitted: list[str],
) -> Truth:
    """The samples' labels in the model's order, as evaluate takes them."""
    common = [label for label in labels if label in manifest.labels]
    if not common:
        raise UserError(
            f"no label in common: the model has {', '.join(labels)}; {manifest.dataset} has "
            f"{', '.join(manifest.labels)}"
        )
    if len(common) < len(labels):
        missing = [label for label in labels if label not in common]
        omitted.append(f"labels that {manifest.dataset} lacks: {first_few(missing)}")
    network, given = Vocabulary(labels, exclusive and len(labels) > 1), manifest.vocabulary
    stored = np.stack([one.labels for one in samples])
    refuse_several(given, stored, [one.key for one in samples])
    targets = truth_of(network, given, stored)
    outside = classes_outside(network, given, stored)
    known = (targets != UNKNOWN).any(axis=1)
    no_class = why_no_class(targets[known], [one for one, has in zip(outside, known) if has])
    if network.exclusive and no_class:
        omitted.append(f"accuracy: {no_class}")
    one_class = network.exclusive and no_class is None
    return Truth(tuple(samples), labels, network.exclusive, targets, one_class)


def _plan(
    config: ShortcutsConfig,
    samples: Sequence[Listed],
    manifest: Manifest,
    size: int,
    omitted: list[str],
) -> Plan:
    """What is done to which image."""
    rectangles: dict[str, tuple[Rectangle, ...]] = {}
    if config.redact is not None:
        rectangles = _rectangles(config.redact, samples, manifest, config.split, omitted)
    else:
        omitted.append("words covered: no --redact CSV was given")
    strokes, chosen = None, frozenset[str]()
    if config.word is not None:
        at = parse_point(config.at, "--at")
        strokes = word_pixels(config.word, at, _height(config, size), size)
        chosen = _chosen(config.on, samples, manifest)
    else:
        omitted.append("word pasted: no --word was given")
    if config.masks is not None:
        masks = read_masks(config.masks, samples, size)
    else:
        masks = dict.fromkeys([s.key for s in samples], centre_box(parse_box(config.box), size))
    return Plan(rectangles, strokes, chosen, masks)


def _height(config: ShortcutsConfig, size: int) -> int:
    return config.word_height or max(6, size // 14)


def _rectangles(
    path: Path, samples: Sequence[Listed], manifest: Manifest, split: str, omitted: list[str]
) -> dict[str, tuple[Rectangle, ...]]:
    """Key -> rectangles. UserError when no scored image has one, or they are covered already."""
    covered = manifest.settings.get("redact", {}).get("split")
    if covered in (split, "all"):
        raise UserError(
            f"the words of {manifest.dataset}'s {split} images are covered in the shards already "
            "(--redact at ingest): ingest it without, into another folder, to compare"
        )
    table = read_rectangles(path)
    found = {one.key: table[one.meta.file] for one in samples if one.meta.file in table}
    if not found:
        raise UserError(
            f"none of the {len(table)} files of {path} is among the scored images, which are named "
            f"as {samples[0].meta.file}"
        )
    unused = len(table) - len({one.meta.file for one in samples if one.key in found})
    if unused:
        omitted.append(f"{unused} files of {path.name} are not among the scored images")
    return found


def _chosen(on: Sequence[str], samples: Sequence[Listed], manifest: Manifest) -> frozenset[str]:
    keys = {one.key for one in samples}
    unknown = [name for name in on if name not in keys and name not in manifest.labels]
    if unknown:
        raise UserError(
            f"--on {unknown[0]!r} is neither the key of a scored image nor a label; the labels are "
            f"{', '.join(manifest.labels)}"
        )
    chosen = [s.key for s in samples if not on or s.key in on or set(on) & set(s.present)]
    if not chosen:
        raise UserError(f"--on {' '.join(on)}: no scored image has it")
    return frozenset(chosen)


def _write(config: ShortcutsConfig, found: Shortcuts, truth: Truth, passes: Passes) -> None:
    out = config.out
    out.mkdir(parents=True, exist_ok=True)
    # What experiments before left there and these may not write, shortcuts.json first.
    ends = ("csv", "png", "svg")
    for name in (RESULT_NAME, *(f"{one}.{end}" for one in _NOT_ALWAYS for end in ends)):
        (out / name).unlink(missing_ok=True)
    for name, figure in shortcut_figures(found, passes).items():
        write_figure(figure, out / name)
    for name, (rows, after) in (("word", passes.pasted), ("redaction", passes.covered)):
        if rows.size:
            header = [f"{when} {label}" for when in ("before", "after") for label in truth.labels]
            lines = (
                (truth.samples[i].key, *passes.as_is[i].tolist(), *new.tolist())
                for i, new in zip(rows, after)
            )
            write_atomic(out / f"{name}.csv", to_csv(("key", *header), lines))
    options = options_given(config, ("model", "run", "shards", "out"))
    content = asdict(found) | {"options": options}
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomic(out / RESULT_NAME, (text + "\n").encode())
