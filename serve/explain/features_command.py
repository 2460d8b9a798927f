"""The features before the output layer, of a split -> t-SNE and self-organising map.

Run: python -m serve features --run RUN --shards DIR --out DIR

`DIR/features.csv` (a row per image), `features.json` (the same for a page to draw), `tsne.png`,
`som.png`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serve.again import options_given
from serve.evaluation_tables import to_csv
from serve.explain.command import decoded_batches, load, probabilities_of
from serve.explain.features import (
    EPOCHS,
    GRID,
    PERPLEXITY,
    SomMap,
    at_most,
    self_organising_map,
    standardise,
    tsne,
)
from serve.explain.subjects import Subject, from_shards, open_split
from serve.figures import COLOURS, new_figure, plain, to_png
from shards.console import RunFailed, UserError, progress
from shards.labels import YES
from shards.reader import read_labels
from shards.splits import SplitName
from shards.writer import write_atomic

if TYPE_CHECKING:
    from train.runs import ModelSpec

FORMAT_VERSION = 1
SEVERAL, NONE = "several labels", "no label"
_MARKERS = "os^vDP*X"
_FEWEST = 5  # images: t-SNE's perplexity is above 1 from here on


@dataclass(frozen=True)
class FeaturesConfig:
    """Draw what the network makes of a split's images: its features before the output layer, by
    t-SNE and as a self-organising map."""

    run: Path
    """Run folder of python -m train."""
    shards: Path
    """A data set's folder of shards."""
    out: Path
    """Folder for features.csv, features.json, tsne.png and som.png."""
    split: SplitName = "test"
    """Which split."""
    per_class: int = 200
    """At most this many images of each class, drawn at random."""
    stage: str | None = None
    """Which stage's model; by default the last one."""
    seed: int = 0
    """Of the drawing, of t-SNE and of the map."""


@dataclass(frozen=True)
class _Gathered:
    """The images that were read: vectors (N, D), probabilities (N, L), classes (N,) numbers."""

    subjects: list[Subject]
    vectors: np.ndarray
    probabilities: np.ndarray
    classes: np.ndarray


def features(config: FeaturesConfig) -> Path:
    """Write the four files; returns the path of features.json."""
    if config.per_class < 1:
        raise UserError(f"--per-class is {config.per_class}; give 1 or more")
    manifest = open_split(config.shards, config.split)
    keys, labels = read_labels(config.shards, manifest, config.split)
    names = (*manifest.labels, SEVERAL, NONE)
    classes = class_numbers(labels)
    chosen = at_most(classes, config.per_class, config.seed) if len(keys) else np.zeros(0, np.int64)
    if len(chosen) < _FEWEST:
        raise UserError(
            f"split {config.split!r} of {config.shards} gives {len(chosen)} images; at least "
            f"{_FEWEST} are needed: take another --split or a larger --per-class"
        )
    by_key = {keys[i]: int(classes[i]) for i in chosen}
    spec, found = _gather(config, by_key)
    scaled = standardise(found.vectors)
    if not scaled.any() or not np.isfinite(scaled).all():  # t-SNE would crash
        kind = "the same features" if np.isfinite(scaled).all() else "features that are no numbers"
        raise RunFailed(f"the network gives {kind} for all {len(scaled)} images: nothing to draw")
    with progress("t-SNE, map", None):
        plane = tsne(scaled, config.seed)
        som = self_organising_map(scaled, found.classes, config.seed)
    rows = _rows(found, spec.labels, names, plane, som)
    config.out.mkdir(parents=True, exist_ok=True)
    used = sorted(set(found.classes.tolist()))
    write_atomic(config.out / "features.csv", to_csv(list(rows[0]), (row.values() for row in rows)))
    write_atomic(config.out / "tsne.png", _tsne_picture(plane, found.classes, names, used))
    write_atomic(config.out / "som.png", _som_picture(som, names, used))
    content = {
        "format_version": FORMAT_VERSION,
        "run": config.run.resolve().name,
        "stage": spec.stage,
        "weights_sha256": spec.weights_sha256,
        "labels": list(spec.labels),
        "dataset": manifest.dataset,
        "split": config.split,
        "synthetic": spec.synthetic,
        "dimensions": found.vectors.shape[1],
        "perplexity": min(PERPLEXITY, (len(rows) - 1) / 3),
        "epochs": EPOCHS,
        "grid": GRID,
        "classes": [names[i] for i in used],
        "options": options_given(config, ("run", "shards", "out")),
        "points": rows,
        "cells": _cells(som, names),
    }
    path = config.out / "features.json"
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def class_numbers(labels: np.ndarray) -> np.ndarray:
    """(N, L) labels -> (N,): the one label that holds; L where several do, L + 1 where none."""
    present = labels == YES
    count = present.sum(1)
    several, none = labels.shape[1], labels.shape[1] + 1
    return np.where(count == 1, present.argmax(1), np.where(count == 0, none, several))


def _gather(config: FeaturesConfig, by_key: dict[str, int]) -> "tuple[ModelSpec, _Gathered]":
    """The network's papers, and what it makes of the images."""
    import torch

    from serve.explain.split import feature_vectors, split
    from train.warp import normalise

    ready = load(config.run, config.stage, ())
    parts = split(ready.model)
    device = next(ready.model.parameters()).device
    subjects: list[Subject] = []
    vectors, probabilities = [], []
    failed: list[dict[str, str]] = []
    with progress("features", len(by_key)) as advance:
        chosen = from_shards(config.shards, config.split, list(by_key))
        for batch, images in decoded_batches(ready.spec, chosen, failed):
            subjects += batch
            inputs = normalise(torch.tensor(images).to(device))
            vectors.append(feature_vectors(parts, inputs).float().cpu().numpy())
            probabilities.append(probabilities_of(ready, images))
            advance(len(batch))
    if failed:
        raise RunFailed(f"{len(failed)} samples of the shards do not decode; ingest again")
    classes = np.array([by_key[subject.key] for subject in subjects], np.int64)
    gathered = _Gathered(subjects, np.concatenate(vectors), np.concatenate(probabilities), classes)
    return ready.spec, gathered


def _rows(
    found: _Gathered, trained: Sequence[str], names: Sequence[str], plane: np.ndarray, som: SomMap
) -> list[dict[str, Any]]:
    return [
        {
            "key": subject.key,
            "class": names[found.classes[i]],
            "predicted": trained[int(found.probabilities[i].argmax())],
            "probability": round(float(found.probabilities[i].max()), 6),
            "tsne_x": round(float(plane[i, 0]), 4),
            "tsne_y": round(float(plane[i, 1]), 4),
            "som_row": int(som.places[i, 0]),
            "som_column": int(som.places[i, 1]),
        }
        for i, subject in enumerate(found.subjects)
    ]


def _cells(som: SomMap, names: Sequence[str]) -> list[dict[str, Any]]:
    """The cells that are not empty. share: of all images."""
    total = int(som.counts.sum())
    return [
        {
            "row": int(row),
            "column": int(column),
            "class": names[som.majority[row, column]],
            "count": int(som.counts[row, column]),
            "share": float(som.counts[row, column] / total),
        }
        for row, column in np.argwhere(som.counts > 0)
    ]


def _look(position: int) -> tuple[str, str]:
    """Colour and marker of a class: 7 and 8 of them give 56 pairs before the first comes again."""
    return COLOURS[position % len(COLOURS)], _MARKERS[position % len(_MARKERS)]


def _tsne_picture(
    plane: np.ndarray, classes: np.ndarray, names: Sequence[str], used: list[int]
) -> bytes:
    figure, (ax,) = new_figure(7, 5.2)
    for position, number in enumerate(used):
        colour, marker = _look(position)
        points = plane[classes == number]
        label = f"{plain(names[number])} ({len(points)})"
        x, y = points.T
        ax.scatter(x, y, s=16, c=colour, marker=marker, label=label, alpha=0.75, linewidths=0)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(f"t-SNE of the features, {len(plane)} images", fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8)
    return to_png(figure)


def _som_picture(som: SomMap, names: Sequence[str], used: list[int]) -> bytes:
    figure, (ax,) = new_figure(7, 5.2)
    largest = som.counts.max()
    for position, number in enumerate(used):
        colour, marker = _look(position)
        rows, columns = np.nonzero((som.majority == number) & (som.counts > 0))
        # A full cell's mark fills the cell: 18 points across here.
        sizes = 18.0**2 * som.counts[rows, columns] / largest
        ax.scatter(columns, rows, s=sizes, c=colour, marker=marker, linewidths=0)
        ax.scatter([], [], s=30, c=colour, marker=marker, label=plain(names[number]))
    ax.set_xlim(-0.7, GRID - 0.3)
    ax.set_ylim(GRID - 0.3, -0.7)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title("Self-organising map: majority class, size = images", fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8)
    return to_png(figure)
