"""Can a small model tell where an image comes from? A measure of confounding.

Logistic regression on what a network sees (the prepared image at 32 x 32, and statistics of its
borders), cross-validated so that no patient is on both sides. What so weak a model can tell, a deep
network can; where the labels go with the source, it may score well without looking at the lungs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from serve.intervals import Estimate, auroc, wilson
from serve.shortcuts.samples import Listed
from serve.subgroups import count_patients

SIDE = 32  # pixels of the image that the model gets
FOLDS = 5
MIN_PATIENTS = 10  # of a source, or it is left out: two in each fold; an unknown one is one image
_REGULARISATION = 0.01  # scikit-learn's C: 1,042 features from some hundred images


@dataclass(frozen=True)
class SourceScore:
    """One source against the others; patients: None where not known of each image; auroc: of images
    that the model was not fitted on. labels: how many of the source's images have each label."""

    source: str
    images: int
    patients: int | None
    auroc: Estimate
    labels: dict[str, int]


@dataclass(frozen=True)
class SourceResult:
    """accuracy: of the most probable source; largest_share: what naming the largest one always
    would get. confounded: label -> the only source that has it. unknown_patients: images whose
    patient is not known, so that another image of the patient may be on the other side."""

    images: int
    unknown_patients: int
    features: int
    folds: int
    accuracy: Estimate
    largest_share: float
    mean_auroc: float
    sources: tuple[SourceScore, ...]
    confounded: dict[str, str]
    omitted: tuple[str, ...]


def features(image: np.ndarray) -> np.ndarray:
    """(S, S) uint8 -> (SIDE^2 + 18,) float32: the small image, then of each border (a sixteenth of
    the side) mean, deviation, black and white share, then the mean and deviation of the whole."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel() / 255
    strip = max(1, image.shape[0] // 16)
    borders = (image[:strip], image[-strip:], image[:, :strip], image[:, -strip:])
    told = [
        value
        for border in borders
        for value in (
            border.mean() / 255,
            border.std() / 255,
            (border <= 8).mean(),
            (border >= 247).mean(),
        )
    ]
    whole = (image.mean() / 255, image.std() / 255)
    return np.array([*small, *told, *whole], np.float32)


def enough(samples: Sequence[Listed]) -> tuple[list[Listed], list[str]]:
    """The samples of sources with enough patients, and what is to be said of the others."""
    groups = {
        source: len({one.group for one in samples if one.meta.source == source})
        for source in {one.meta.source for one in samples}
    }
    few = sorted(source for source, count in groups.items() if count < MIN_PATIENTS)
    said = [
        f"{name}: only {groups[name]} patients or images of unknown patients; {MIN_PATIENTS} are "
        "needed"
        for name in few
    ]
    return [one for one in samples if one.meta.source not in few], said


def predict_sources(
    samples: Sequence[Listed], table: np.ndarray, seed: int, omitted: Sequence[str] = ()
) -> SourceResult:
    """samples: of at least two sources, each with MIN_PATIENTS; table: their features (N, F)."""
    names = sorted({one.meta.source for one in samples})
    truth = np.array([names.index(one.meta.source) for one in samples])
    groups = np.unique([one.group for one in samples], return_inverse=True)[1]
    predicted = _cross_validated(table, truth, groups, seed)
    scores = []
    for i, name in enumerate(names):
        area = auroc(predicted[:, i], truth == i)
        assert area is not None
        own = [one for one in samples if one.meta.source == name]
        labels = Counter(label for one in own for label in one.present)
        patients = count_patients([one.meta.patient for one in own])
        scores.append(SourceScore(name, len(own), patients, area, dict(sorted(labels.items()))))
    accuracy = wilson(int((predicted.argmax(1) == truth).sum()), len(truth))
    assert accuracy is not None
    return SourceResult(
        images=len(samples),
        unknown_patients=sum(one.meta.patient is None for one in samples),
        features=table.shape[1],
        folds=FOLDS,
        accuracy=accuracy,
        largest_share=max(one.images for one in scores) / len(samples),
        mean_auroc=float(np.mean([one.auroc.value for one in scores])),
        sources=tuple(scores),
        confounded=_confounded(scores),
        omitted=tuple(omitted),
    )


def _cross_validated(
    table: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int
) -> np.ndarray:
    """(N, classes) probabilities, each image's by a model that saw no image of its group."""
    # Here, since it takes a second, and evaluation does without.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    predicted = np.zeros((len(truth), int(truth.max()) + 1))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fit, judge in folds.split(table, truth, groups):
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=_REGULARISATION, max_iter=1000)
        )
        model.fit(table[fit], truth[fit])
        predicted[np.ix_(judge, model.classes_)] = model.predict_proba(table[judge])
    return predicted


def _confounded(scores: Sequence[SourceScore]) -> dict[str, str]:
    holders: dict[str, list[str]] = {}
    for one in scores:
        for label in one.labels:
            holders.setdefault(label, []).append(one.source)
    return {label: sources[0] for label, sources in sorted(holders.items()) if len(sources) == 1}
