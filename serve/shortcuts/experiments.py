"""The experiments: from the scored copies, or from the images themselves, to their results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from serve.shortcuts.passes import Passes
from serve.shortcuts.results import (
    BorderResult,
    RedactionResult,
    Truth,
    WordResult,
    changes,
    flipped,
)
from serve.shortcuts.samples import Listed, list_samples, pick, read_grey
from serve.shortcuts.sources import SourceResult, enough, features, predict_sources
from shards.console import progress
from shards.manifest import load_manifest
from shards.preprocess import prepare


def redaction_result(truth: Truth, passes: Passes, seed: int) -> RedactionResult | None:
    """Words covered. None when no image had a rectangle."""
    rows, after = passes.covered
    if not rows.size:
        return None
    everything, before = passes.as_is.copy(), passes.as_is[rows]
    everything[rows] = after
    every = np.arange(len(truth.samples))
    return RedactionResult(
        covered=len(rows),
        flipped=flipped(before, after, truth.exclusive),
        classes=changes(before, after, truth.labels),
        before=truth.performance(passes.as_is, every, seed),
        after=truth.performance(everything, every, seed),
    )


def word_result(
    truth: Truth, passes: Passes, word: str, at: tuple[int, int], height: int
) -> WordResult:
    """A word pasted."""
    rows, after = passes.pasted
    before = passes.as_is[rows]
    return WordResult(
        word=word,
        at=at,
        height=height,
        images=len(rows),
        flipped=flipped(before, after, truth.exclusive),
        classes=changes(before, after, truth.labels),
    )


def border_result(
    truth: Truth, passes: Passes, masks: Mapping[str, np.ndarray], region: str, seed: int
) -> BorderResult:
    """Lungs blacked out, and everything else."""
    rows, black = passes.lungs_black
    _, only = passes.lungs_only
    return BorderResult(
        region=region,
        area=float(np.mean([masks[truth.samples[i].key].mean() for i in rows])),
        without_mask=len(truth.samples) - len(rows),
        largest_share=truth.largest_share(rows),
        as_is=truth.performance(passes.as_is[rows], rows, seed),
        lungs_black=truth.performance(black, rows, seed),
        lungs_only=truth.performance(only, rows, seed),
    )


def source_result(
    folders: Sequence[Path], most: int, shorter_side: int | None, size: int, seed: int
) -> SourceResult | str:
    """The source predicted, from all splits of the data sets, at most `most` images of a source;
    or why it cannot be."""
    by_source: dict[str, list[Listed]] = {}
    for folder in dict.fromkeys(folders):
        manifest = load_manifest(folder)
        for sample in list_samples(folder, manifest, manifest.splits):
            by_source.setdefault(sample.meta.source, []).append(sample)
    picked = [one for mine in by_source.values() for one in pick(mine, most)]
    samples, few = enough(picked)
    if len({one.meta.source for one in samples}) < 2:
        reason = "source predicted: fewer than two sources, name more data sets with --others"
        return "; ".join([reason, *few])
    table = []
    with progress("images for the source", len(samples)) as advance:
        for sample in samples:
            table.append(features(prepare(read_grey(sample), shorter_side, size)))
            advance()
    return predict_sources(samples, np.stack(table), seed, few)
