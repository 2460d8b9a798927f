"""Two sets of scores of the same images: DeLong's test of each area, McNemar's of the calls.

Only images that both scored count. Both tests take the images as independent of each other. Where
several labels are tested, p_holm is p corrected for their number (Holm, 1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from serve.delong import AreaTest, delong_test
from serve.intervals import Estimate, wilson
from serve.judged import Judged
from shards.console import UserError, first_few
from shards.labels import UNKNOWN, YES


@dataclass(frozen=True)
class AreaComparison(AreaTest):
    """DeLong's test of one label."""

    label: str
    images: int
    p_holm: float | None


@dataclass(frozen=True)
class McNemar:
    """label None: of the called class. only_this, only_other: images that only one called rightly;
    p: exact, two-sided, of the hypothesis that both are as likely."""

    label: str | None
    both_right: int
    only_this: int
    only_other: int
    both_wrong: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """other: the name of the other scores. accuracy, other_accuracy, mcnemar[0] of label None: only
    where classes exclude each other, both sides have the same ones, and each image has one of them.
    only_in_this, only_in_other: images that one side has not; in no number here."""

    other: str
    images: int
    only_in_this: int
    only_in_other: int
    labels: tuple[str, ...]
    accuracy: Estimate | None
    other_accuracy: Estimate | None
    areas: tuple[AreaComparison, ...]
    mcnemar: tuple[McNemar, ...]
    omitted: tuple[str, ...]


def compare(this: Judged, other: Judged, name: str) -> Comparison:
    """Pair two judged sets by key. UserError when they share no image or no label."""
    labels = tuple(label for label in this.labels if label in other.labels)
    places = {key: i for i, key in enumerate(other.keys)}
    rows = np.array([i for i, key in enumerate(this.keys) if key in places], np.int64)
    if not labels or not rows.size:
        what = "image" if labels else "label"
        raise UserError(f"--against: {name} and the scores have no evaluated {what} in common")
    a, b = this.take(rows), other.take(np.array([places[this.keys[i]] for i in rows]))
    same = this.exclusive and other.exclusive and set(this.labels) == set(other.labels)
    omitted = _omitted(this, other, same)
    areas, tests = _areas(a, b, labels), []
    # Calls by the largest probability mean the same only among the same classes.
    if same or not (this.exclusive or other.exclusive):
        tests = [_test(label, a, b) for label in labels]
    one_class = same and a.one_class and b.one_class
    if one_class:
        tests.insert(0, _paired(None, a.correct, b.correct))
    elif same:
        omitted.append(f"no McNemar test of the called class: {a.no_class or b.no_class}")
    constant = [area.label for area in areas if area.p is None]
    if constant:
        omitted.append(f"{first_few(constant)}: no DeLong test, the difference has no variance")
    return Comparison(
        other=name,
        images=len(rows),
        only_in_this=len(this.keys) - len(rows),
        only_in_other=len(other.keys) - len(rows),
        labels=labels,
        accuracy=wilson(int(a.correct.sum()), len(rows)) if one_class else None,
        other_accuracy=wilson(int(b.correct.sum()), len(rows)) if one_class else None,
        areas=tuple(areas),
        mcnemar=tuple(_corrected(tests)),
        omitted=tuple(omitted),
    )


def exact_mcnemar(one: int, other: int) -> float:
    """Two-sided p of `one` against `other` discordant pairs: twice the smaller binomial tail."""
    return min(1.0, 2 * float(bdtr(min(one, other), one + other, 0.5))) if one + other else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: each p times the number of those not smaller, never falling, at most 1."""
    order, found, highest = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        found[i] = highest
    return found


def _areas(a: Judged, b: Judged, labels: Sequence[str]) -> list[AreaComparison]:
    found: list[tuple[str, int, AreaTest]] = []
    for label in labels:
        (positive, scores, _), (_, other_scores, _) = _both_known(label, a, b)
        test = delong_test(scores, other_scores, positive)
        if test is not None:
            found.append((label, len(scores), test))
    corrected = iter(holm([test.p for _, _, test in found if test.p is not None]))
    return [
        AreaComparison(
            test.this,
            test.other,
            test.difference,
            test.z,
            test.p,
            label,
            images,
            None if test.p is None else next(corrected),
        )
        for label, images, test in found
    ]


def _both_known(
    label: str, a: Judged, b: Judged
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Truth, probabilities and calls of either side, of the images whose truth both know: networks
    with other classes may know it of other images."""
    columns = [(side, side.labels.index(label)) for side in (a, b)]
    known = np.logical_and(*(side.truth[:, i] != UNKNOWN for side, i in columns))
    return [
        (side.truth[known, i] == YES, side.probabilities[known, i], side.called[known, i])
        for side, i in columns
    ]


def _test(label: str, a: Judged, b: Judged) -> McNemar:
    (positive, _, called), (_, _, other_called) = _both_known(label, a, b)
    return _paired(label, called == positive, other_called == positive)


def _paired(label: str | None, right: np.ndarray, other_right: np.ndarray) -> McNemar:
    only_this = int((right & ~other_right).sum())
    only_other = int((~right & other_right).sum())
    both, neither = int((right & other_right).sum()), int((~right & ~other_right).sum())
    p = exact_mcnemar(only_this, only_other)
    return McNemar(label, both, only_this, only_other, neither, p, p)


def _corrected(tests: Sequence[McNemar]) -> list[McNemar]:
    """The labels' tests corrected for their number; the one of the called class stands alone."""
    corrected = iter(holm([test.p for test in tests if test.label is not None]))
    return [
        test if test.label is None else McNemar(**{**vars(test), "p_holm": next(corrected)})
        for test in tests
    ]


def _omitted(this: Judged, other: Judged, same: bool) -> list[str]:
    out = []
    for one, two, whose in ((this, other, "the other"), (other, this, "these")):
        missing = [label for label in one.labels if label not in two.labels]
        if missing:
            out.append(f"not compared, {whose} scores lack: {first_few(missing)}")
    if (this.exclusive or other.exclusive) and not same:
        out.append("no McNemar test: the two call classes of different sets")
    return out
