"""What shortcuts.json holds, computed from the probabilities of images and of their changed copies,
and what may be said of it in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.bootstrap import bootstrap
from serve.intervals import Z95, Estimate, auroc, wilson
from serve.judged import calls, judge
from serve.predictions import Joined
from serve.shortcuts.samples import Listed
from serve.shortcuts.sources import SourceResult
from shards.console import first_few
from shards.labels import YES

REPLICATES = 500
_NAMED = 6  # labels in a sentence


@dataclass(frozen=True)
class ClassArea:
    """One label's area under the ROC, DeLong's interval; None where all images are of a kind."""

    label: str
    positives: int
    negatives: int
    auroc: Estimate | None


@dataclass(frozen=True)
class Performance:
    """How well a set of images is classified. mean_auroc: with the bootstrap's interval, by patient
    where patients are known. accuracy: only where each image has one of the model's classes."""

    images: int
    accuracy: Estimate | None
    mean_auroc: Estimate | None
    classes: tuple[ClassArea, ...]


@dataclass(frozen=True)
class ClassChange:
    """One class's probability on the same images before and after. change: the mean of after -
    before and its normal interval, images taken as independent; smallest, largest: of any image."""

    label: str
    before: float
    after: float
    change: Estimate
    smallest: float
    largest: float


@dataclass(frozen=True)
class WordResult:
    """The word's left upper corner `at` (x, y) and its height, in pixels of the model's input;
    flipped: images whose call is another one with it."""

    word: str
    at: tuple[int, int]
    height: int
    images: int
    flipped: int
    classes: tuple[ClassChange, ...]


@dataclass(frozen=True)
class RedactionResult:
    """covered: images with rectangles, whose calls and probabilities `flipped` and `classes` are
    about; before, after: of all images, with the covered ones as they are and covered."""

    covered: int
    flipped: int
    classes: tuple[ClassChange, ...]
    before: Performance
    after: Performance


@dataclass(frozen=True)
class BorderResult:
    """region: what is called lungs; area: its mean share of the image; without_mask: images that
    are left out. largest_share: accuracy of always calling the most frequent class."""

    region: str
    area: float
    without_mask: int
    largest_share: float | None
    as_is: Performance
    lungs_black: Performance
    lungs_only: Performance


@dataclass(frozen=True)
class Shortcuts:
    """What shortcuts.json holds. words: what the numbers do and do not show; omitted: experiments
    that were not made, with the reason."""

    model: str
    model_sha256: str
    dataset: str
    split: str
    synthetic: bool
    labels: tuple[str, ...]
    exclusive: bool
    images: int
    as_is: Performance
    redaction: RedactionResult | None
    word: WordResult | None
    borders: BorderResult | None
    source: SourceResult | None
    words: tuple[str, ...]
    omitted: tuple[str, ...]
    weights_sha256: str = ""
    format_version: int = 1


@dataclass(frozen=True)
class Truth:
    """The scored samples, and their labels (N, L) int8 in the model's order; one_class: each sample
    with a known label has exactly one class of a model whose classes exclude each other."""

    samples: tuple[Listed, ...]
    labels: tuple[str, ...]
    exclusive: bool
    targets: np.ndarray
    one_class: bool

    def performance(self, probabilities: np.ndarray, rows: np.ndarray, seed: int) -> Performance:
        """Of the images `rows`; probabilities: (len(rows), L)."""
        found = judge(self._joined(probabilities.astype(np.float64), rows))
        classes = []
        for i, label in enumerate(found.labels):
            positive, scores, _ = found.known(i)
            kinds = int(positive.sum()), int((~positive).sum())
            classes.append(ClassArea(label, *kinds, auroc(scores, positive)))
        right = wilson(int(found.correct.sum()), len(found.keys)) if self.one_class else None
        mean = bootstrap(found, REPLICATES, seed).mean["auroc"]
        return Performance(len(found.keys), right, mean, tuple(classes))

    def _joined(self, probabilities: np.ndarray, rows: np.ndarray) -> Joined:
        samples = [self.samples[i] for i in rows]
        return Joined(
            keys=tuple(one.key for one in samples),
            labels=self.labels,
            exclusive=self.exclusive,
            targets=self.targets[rows],
            probabilities=probabilities,
            patients=tuple(one.meta.patient for one in samples),
            meta={},
            synthetic=False,
            outside=(None,) * len(samples),
        )

    def largest_share(self, rows: np.ndarray) -> float | None:
        """Of the most frequent class among the images; None where there is no accuracy."""
        if not self.one_class:
            return None
        counts = (self.targets[rows] == YES).sum(axis=0)
        return float(counts.max() / max(1, counts.sum()))


def changes(
    before: np.ndarray, after: np.ndarray, labels: Sequence[str]
) -> tuple[ClassChange, ...]:
    """before, after: (N, L) probabilities of the same images, N at least 1."""
    found = []
    for i, label in enumerate(labels):
        moved = after[:, i].astype(np.float64) - before[:, i]
        mean, n = float(moved.mean()), len(moved)
        half = Z95 * float(moved.std(ddof=1)) / n**0.5 if n > 1 else None
        change = Estimate(mean, None, None)
        if half is not None:
            change = Estimate(mean, mean - half, mean + half)
        ends = float(moved.min()), float(moved.max())
        means = float(before[:, i].mean()), float(after[:, i].mean())
        found.append(ClassChange(label, *means, change, *ends))
    return tuple(found)


def flipped(before: np.ndarray, after: np.ndarray, exclusive: bool) -> int:
    """How many images are called otherwise."""
    return int((calls(before, exclusive) != calls(after, exclusive)).any(axis=1).sum())


def in_words(
    redaction: RedactionResult | None,
    word: WordResult | None,
    borders: BorderResult | None,
    source: SourceResult | None,
) -> tuple[str, ...]:
    """What the numbers show and what they do not, one sentence or two for each experiment."""
    parts = (
        _of_redaction(redaction) if redaction else None,
        _of_word(word) if word else None,
        _of_borders(borders) if borders else None,
        _of_source(source) if source else None,
    )
    return tuple(part for part in parts if part)


def _of_redaction(found: RedactionResult) -> str:
    return (
        f"Words covered in {found.covered} images: {found.flipped} of them are called otherwise, "
        f"the mean probability of a class moves by at most {_largest_move(found.classes):.4f}. "
        "Words that the table does not name are still there."
    )


def _of_word(found: WordResult) -> str:
    return (
        f"The word {found.word} on {found.images} images: {found.flipped} are called otherwise, "
        f"the mean probability of a class moves by at most {_largest_move(found.classes):.4f}. "
        "One word at one place; other words may do more."
    )


def _largest_move(classes: Sequence[ClassChange]) -> float:
    return max(abs(one.change.value) for one in classes)


def _of_borders(found: BorderResult) -> str:
    area = found.lungs_black.mean_auroc
    if area is None:
        return "With the lungs black no AUROC can be told: every image is of one kind."
    interval = "" if area.low is None else f" ({area.low:.3f} to {area.high:.3f})"
    told = f"With the lungs black ({found.region}) the mean AUROC is {area.value:.3f}{interval}"
    if above_chance(found.lungs_black):
        return (
            f"{told}, above chance (0.5): the model can tell classes from what is outside the "
            "lungs, so part of its score may come from there."
        )
    return (
        f"{told}, not told apart from chance (0.5). This does not prove that the model uses the "
        "lungs alone: black boxes are unlike any image that it was trained on."
    )


def above_chance(found: Performance) -> bool:
    """Whether the mean AUROC is above 0.5 beyond its interval. A perfect order has no interval:
    that counts from 5 images of each kind on, since chance gives it to one in 252 such sets."""
    area = found.mean_auroc
    if area is None or area.low is not None:
        return area is not None and area.low is not None and area.low > 0.5
    tested = [one for one in found.classes if one.auroc is not None]
    return area.value == 1 and all(min(one.positives, one.negatives) >= 5 for one in tested)


def _of_source(found: SourceResult) -> str:
    told = (
        f"A logistic regression on {found.features} simple numbers of the image tells the "
        f"{len(found.sources)} sources apart with a mean AUROC of {found.mean_auroc:.3f}."
    )
    if found.unknown_patients:
        told += (
            f" The patient of {found.unknown_patients} of {found.images} images is unknown: images "
            "of one may be on both sides of the cross-validation, which may raise the AUROC."
        )
    if not found.confounded:
        return f"{told} Every label occurs in at least two sources."
    several = [f"{label} ({source})" for label, source in found.confounded.items()]
    names = first_few(several, _NAMED)
    return f"{told} Labels of one source alone can be called by recognising that source: {names}."
