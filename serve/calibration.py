"""Are the probabilities right? Reliability curves, expected calibration error, temperature scaling.

Guo et al., "On calibration of modern neural networks" (2017): one temperature for all labels, found
on validation scores, never on the images that are evaluated. ECE: the mean over bins of equal
width, weighted by their images, of |mean probability - share that is true|.
"""

from dataclasses import dataclass

import numpy as np

from serve.intervals import wilson
from serve.judged import Judged
from serve.predictions import ROW_SUM
from shards.labels import UNKNOWN, YES

BINS = 15
_EPSILON = 1e-7  # float32 probabilities come as 0 and 1; a logit must stay finite


@dataclass(frozen=True)
class Bin:
    """Images with a probability from low up to high (the last bin: high too). observed: the share
    of them with the label, in Wilson's interval observed_low to observed_high."""

    low: float
    high: float
    images: int
    mean_probability: float
    observed: float
    observed_low: float
    observed_high: float


@dataclass(frozen=True)
class Reliability:
    """label None: of each image's largest probability, whether its class is the true one. brier:
    the mean squared error of the probability. curve: the bins that are not empty. ece, brier: None
    where no image has a known truth."""

    label: str | None
    images: int
    ece: float | None
    brier: float | None
    curve: tuple[Bin, ...]


@dataclass(frozen=True)
class Temperature:
    """value: logits divided by it are calibrated best on the `images` validation images; above 1
    the model was too sure. form: softmax where all rows add up to 1, else sigmoid per label. The
    rest: on the evaluated images; log_loss is per known label (sigmoid) or per image (softmax)."""

    value: float
    form: str
    images: int
    log_loss: float
    log_loss_scaled: float
    ece: tuple[float | None, ...]
    ece_scaled: tuple[float | None, ...]


@dataclass(frozen=True)
class Calibration:
    """top: only where each image has one known class. ece_mean: over the labels. temperature: None
    without validation scores, or where there is none, of which no_temperature is the reason."""

    bins: int
    top: Reliability | None
    classes: tuple[Reliability, ...]
    ece_mean: float | None
    temperature: Temperature | None
    no_temperature: str | None


def calibrate(judged: Judged, validation: Judged | None) -> Calibration:
    """The calibration of the evaluated images; validation: those that the temperature is fitted
    on, of the same labels."""
    classes = _by_label(judged, judged.probabilities)
    known = [one.ece for one in classes if one.ece is not None]
    top = None
    if judged.one_class:
        top = reliability(None, judged.probabilities.max(axis=1), judged.correct)
    temperature, reason = None, None
    if validation is not None:
        temperature = _temperature(judged, validation)
        reason = None if temperature else _no_temperature(judged, validation)
    return Calibration(
        bins=BINS,
        top=top,
        classes=classes,
        ece_mean=float(np.mean(known)) if known else None,
        temperature=temperature,
        no_temperature=reason,
    )


def reliability(label: str | None, probabilities: np.ndarray, truth: np.ndarray) -> Reliability:
    """probabilities: (N,) in [0, 1]; truth: (N,) bool."""
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    curve = []
    for i in np.unique(place):
        inside = place == i
        share = wilson(int(truth[inside].sum()), int(inside.sum()))
        assert share is not None
        assert share.low is not None
        assert share.high is not None
        mean = float(probabilities[inside].mean())
        found = (int(inside.sum()), mean, share.value, share.low, share.high)
        curve.append(Bin(int(i) / BINS, (int(i) + 1) / BINS, *found))
    gaps = [one.images * abs(one.mean_probability - one.observed) for one in curve]
    images = len(truth)
    if not images:
        return Reliability(label, 0, None, None, ())
    brier = float(((probabilities - truth) ** 2).mean())
    return Reliability(label, images, sum(gaps) / images, brier, tuple(curve))


def _by_label(judged: Judged, probabilities: np.ndarray) -> tuple[Reliability, ...]:
    found = []
    for i, label in enumerate(judged.labels):
        known = judged.truth[:, i] != UNKNOWN
        found.append(reliability(label, probabilities[known, i], judged.truth[known, i] == YES))
    return tuple(found)


def _temperature(judged: Judged, validation: Judged) -> Temperature | None:
    softmax = is_softmax(validation) and is_softmax(judged)
    if softmax and not (judged.one_class and validation.one_class):
        return None
    value = fit_temperature(validation, softmax)
    if value is None:
        return None
    scaled = scale(judged.probabilities, value, softmax)
    return Temperature(
        value=value,
        form="softmax" if softmax else "sigmoid",
        images=len(validation.keys),
        log_loss=log_loss(judged, judged.probabilities, softmax),
        log_loss_scaled=log_loss(judged, scaled, softmax),
        ece=tuple(one.ece for one in _by_label(judged, judged.probabilities)),
        ece_scaled=tuple(one.ece for one in _by_label(judged, scaled)),
    )


def _no_temperature(judged: Judged, validation: Judged) -> str:
    """A softmax's log loss is that of each image's class."""
    softmax = is_softmax(validation) and is_softmax(judged)
    for images, side in ((validation, "validation"), (judged, "evaluated")):
        if softmax and not images.one_class:
            return f"of the {side} images {images.no_class}"
    return "the validation scores do not tell one"


def is_softmax(judged: Judged) -> bool:
    """Whether the classes exclude each other and every image's probabilities add up to 1."""
    sums = judged.probabilities.sum(axis=1)
    return judged.exclusive and bool((np.abs(sums - 1) < ROW_SUM).all())


def fit_temperature(validation: Judged, softmax: bool) -> float | None:
    """The temperature of the least log loss, up to 100. None where there is none: where no truth
    is one that the logits speak against the loss falls for ever as the temperature does, and scores
    worse than chance are best at an endless one."""
    from scipy.optimize import minimize_scalar

    logits = to_logits(validation.probabilities, softmax)
    if not _wrong(validation, logits, softmax):
        return None
    ends = (np.log(0.01), np.log(100.0))
    found = minimize_scalar(
        lambda log_t: _loss(validation, logits / np.exp(log_t), softmax),
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-8},
    )
    return float(np.exp(found.x)) if found.x < ends[1] - 0.05 else None


def to_logits(probabilities: np.ndarray, softmax: bool) -> np.ndarray:
    """(N, L) numbers whose softmax, or whose sigmoid, the probabilities are."""
    p = np.clip(probabilities, _EPSILON, 1 - _EPSILON)
    return np.asarray(np.log(p) if softmax else np.log(p) - np.log1p(-p))


def scale(probabilities: np.ndarray, temperature: float, softmax: bool) -> np.ndarray:
    """Probabilities (N, L) of the logits divided by the temperature."""
    z = to_logits(probabilities, softmax) / temperature
    if not softmax:
        return np.asarray(1 / (1 + np.exp(-z)))
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def log_loss(judged: Judged, probabilities: np.ndarray, softmax: bool) -> float:
    """Mean negative log likelihood: per image (softmax), or per known label (sigmoid)."""
    return _loss(judged, to_logits(probabilities, softmax), softmax)


def _loss(judged: Judged, logits: np.ndarray, softmax: bool) -> float:
    if softmax:
        own = logits[np.arange(len(logits)), judged.truth.argmax(1)]
        return float((np.logaddexp.reduce(logits, axis=1) - own).mean())
    losses = np.logaddexp(0, np.where(judged.truth == YES, -logits, logits))
    return float(losses[judged.truth != UNKNOWN].mean())


def _wrong(judged: Judged, logits: np.ndarray, softmax: bool) -> bool:
    """Whether the logits speak against some known truth; a tie is not against it."""
    if softmax:
        own = logits[np.arange(len(logits)), judged.truth.argmax(1)]
        return bool((own < logits.max(axis=1)).any())
    right = np.where(judged.truth == YES, logits >= 0, logits <= 0)
    return bool((~right & (judged.truth != UNKNOWN)).any())
