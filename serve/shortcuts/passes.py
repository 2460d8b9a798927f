"""Images through the network, each as it is and in every changed copy that the plan asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

from serve.providers import probabilities
from serve.shortcuts.changes import black_where, cover, paste
from serve.shortcuts.samples import Listed, read_grey
from shards.console import RunFailed, progress
from shards.preprocess import prepare
from shards.rectangles import Rectangle

BATCH = 16
EXAMPLES = 4  # images of which all copies are kept, to be shown


@dataclass(frozen=True)
class Plan:
    """rectangles: key -> those to cover; strokes: (S, S) uint8 of the word, for the keys `pasted`;
    masks: key -> (S, S) bool, true in the lungs."""

    rectangles: Mapping[str, tuple[Rectangle, ...]]
    strokes: np.ndarray | None
    pasted: frozenset[str]
    masks: Mapping[str, np.ndarray]

    def copies(
        self, sample: Listed, grey: np.ndarray, image: np.ndarray, side: int | None
    ) -> dict[str, np.ndarray]:
        """Name -> (S, S) uint8. grey: as stored; image: the same, prepared; side: the shorter one
        that preparing reduces to."""
        size, meta, key = image.shape[0], sample.meta, sample.key
        found = {"as_is": image}
        if key in self.rectangles:
            black = cover(grey, self.rectangles[key], meta.width, meta.height)
            found["covered"] = prepare(black, side, size)
        if self.strokes is not None and key in self.pasted:
            found["pasted"] = paste(image, self.strokes)
        if key in self.masks:
            found["lungs_black"] = black_where(image, self.masks[key])
            found["lungs_only"] = black_where(image, ~self.masks[key])
        return found


COPIES = ("covered", "pasted", "lungs_black", "lungs_only")
Scored = tuple[np.ndarray, np.ndarray]  # rows (n,) int64, probabilities (n, L) float32


@dataclass(frozen=True)
class Passes:
    """as_is: (N, L); the others: of the images that have the copy. examples: key -> copies."""

    as_is: np.ndarray
    covered: Scored
    pasted: Scored
    lungs_black: Scored
    lungs_only: Scored
    examples: dict[str, dict[str, np.ndarray]]


def run_passes(
    session: onnxruntime.InferenceSession,
    samples: Sequence[Listed],
    plan: Plan,
    shorter_side: int | None,
    size: int,
) -> Passes:
    """Score every image and every copy once."""
    scored: dict[str, list[np.ndarray]] = {name: [] for name in ("as_is", *COPIES)}
    rows: dict[str, list[int]] = {name: [] for name in scored}
    examples: dict[str, dict[str, np.ndarray]] = {}
    waiting: dict[str, list[np.ndarray]] = {name: [] for name in scored}

    def flush(least: int) -> None:
        for name, images in waiting.items():
            while len(images) >= least:
                scored[name].append(_score(session, np.stack(images[:BATCH])))
                del images[:BATCH]

    with progress("scoring copies", len(samples)) as advance:
        for i, sample in enumerate(samples):
            grey = read_grey(sample)
            copies = plan.copies(sample, grey, prepare(grey, shorter_side, size), shorter_side)
            for name, image in copies.items():
                rows[name].append(i)
                waiting[name].append(image)
            _keep_example(examples, sample.key, copies)
            flush(BATCH)
            advance()
        flush(1)
    as_is = np.concatenate(scored["as_is"])
    empty = as_is[:0]
    covered, pasted, black, only = (
        (np.array(rows[name], np.int64), np.concatenate([empty, *scored[name]])) for name in COPIES
    )
    return Passes(as_is, covered, pasted, black, only, examples)


def _keep_example(
    examples: dict[str, dict[str, np.ndarray]], key: str, copies: dict[str, np.ndarray]
) -> None:
    """Keep the images with the most copies, the first ones among equals."""
    examples[key] = copies
    if len(examples) > EXAMPLES:
        # reversed: of those with as few copies, the latest goes
        least = min(reversed(examples), key=lambda one: len(examples[one]))
        del examples[least]


def _score(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    try:
        found = probabilities(session, images[:, None])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise RunFailed(f"the network does not run: {error}") from error
    if not np.isfinite(found).all():
        raise RunFailed("the network's output is not a finite number")
    return found
