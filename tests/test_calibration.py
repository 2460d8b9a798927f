"""Calibration against torchmetrics, plain loops and data made to have a known temperature."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_evaluate import joined
from torchmetrics.functional.classification import binary_calibration_error

from serve.calibration import BINS, calibrate, fit_temperature, log_loss, reliability, scale
from serve.judged import judge
from serve.metrics import MeasureConfig, measure
from serve.predictions import ScoredBy
from shards.console import UserError


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_ece_equals_torchmetrics_and_a_loop(seed, n):
    rng = np.random.default_rng(seed)
    probabilities, truth = rng.random(n) * 0.98 + 0.01, rng.random(n) < 0.4
    found = reliability("a", probabilities, truth)
    slow = 0.0
    for i in range(BINS):
        inside = (probabilities >= i / BINS) & (probabilities < (i + 1) / BINS)
        if inside.any():
            slow += inside.mean() * abs(probabilities[inside].mean() - truth[inside].mean())
    assert found.ece == pytest.approx(slow, abs=1e-12)
    theirs = binary_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(truth.astype(int)), n_bins=BINS
    )
    assert found.ece == pytest.approx(float(theirs), abs=1e-6)
    assert found.brier == pytest.approx(((probabilities - truth) ** 2).mean())
    assert sum(part.images for part in found.curve) == n


def test_the_ends_of_the_range_have_a_bin():
    found = reliability("a", np.array([0.0, 1.0, 1.0]), np.array([False, True, False]))
    assert [part.images for part in found.curve] == [1, 2]
    assert found.curve[-1].high == 1


def made(n, temperature, seed, *, softmax):
    """Truth drawn from probabilities, and the same ones with logits times `temperature`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * 2
    if softmax:
        right = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        truth = np.eye(3)[[rng.choice(3, p=row) for row in right]]
        told = np.exp(temperature * logits)
        told /= told.sum(1, keepdims=True)
    else:
        truth = rng.random((n, 3)) < 1 / (1 + np.exp(-logits))
        told = 1 / (1 + np.exp(-temperature * logits))
    return joined(truth.astype(np.int8), told, labels="ABC", exclusive=softmax)


@pytest.mark.parametrize("softmax", [True, False])
def test_the_temperature_is_found_again(softmax):
    judged = judge(made(4000, 2.5, 0, softmax=softmax))
    value = fit_temperature(judged, softmax)
    assert value == pytest.approx(2.5, rel=0.08)
    grid = np.linspace(1.5, 4, 120)
    losses = [log_loss(judged, scale(judged.probabilities, t, softmax), softmax) for t in grid]
    assert value == pytest.approx(grid[int(np.argmin(losses))], abs=0.03)


def test_validation_sets_the_temperature_and_the_evaluated_images_judge_it():
    test, validation = made(1500, 3, 1, softmax=False), made(1500, 3, 2, softmax=False)
    found = calibrate(judge(test), judge(validation)).temperature
    assert found.form == "sigmoid"
    assert found.value == fit_temperature(judge(validation), False)
    assert found.value != fit_temperature(judge(test), False)
    assert found.log_loss_scaled < found.log_loss
    assert sum(found.ece_scaled) < 0.5 * sum(found.ece)
    with pytest.raises(UserError, match="1500 of its images are evaluated too"):
        measure(test, validation=validation)


def test_softmax_is_the_form_only_where_both_sides_are_softmaxes():
    sides = {softmax: made(300, 2, 1, softmax=True) for softmax in (True, False)}
    sides[False] = replace(sides[False], probabilities=sides[False].probabilities * 0.9)
    for test, validation in ((True, True), (True, False), (False, True), (False, False)):
        found = calibrate(judge(sides[test]), judge(sides[validation])).temperature
        assert found.form == ("softmax" if test and validation else "sigmoid")
        assert found.images == 300


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("certainty", [0.9, 1.0])
def test_there_is_no_temperature_without_an_error_or_without_skill(exclusive, certainty):
    truth = np.eye(2)[[0, 1] * 10]
    scores = np.where(truth == 1, certainty, 1 - certainty)
    right = judge(joined(truth, scores, labels="AB", exclusive=exclusive))
    wrong = judge(joined(truth, 1 - scores, labels="AB", exclusive=exclusive))
    assert fit_temperature(right, exclusive) is None
    tie = replace(right, probabilities=np.r_[right.probabilities[:-1], [[0.5, 0.5]]])
    assert fit_temperature(tie, exclusive) is None  # not against its truth
    assert fit_temperature(wrong, exclusive) is None
    found = measure(
        joined(truth, scores, labels="AB", exclusive=exclusive),
        config=MeasureConfig(replicates=0),
        validation=replace(
            joined(truth, scores, labels="AB", exclusive=exclusive),
            keys=tuple(f"other-{i}" for i in range(20)),
        ),
    )
    assert found.calibration.temperature is None
    assert "no temperature: the validation scores do not tell one" in found.omitted


def test_unknown_truth_is_in_no_bin():
    found = calibrate(
        judge(joined([[1, -1], [0, 1]], [[0.9, 0.5], [0.2, 0.7]], labels="AB", exclusive=False)),
        None,
    )
    assert [one.images for one in found.classes] == [2, 1]
    blank = joined([[1, -1], [0, -1]], [[0.9, 0.5], [0.2, 0.7]], labels="AB", exclusive=False)
    told = measure(blank, config=MeasureConfig(replicates=100))
    assert (told.calibration.classes[1].ece, told.classes[1].accuracy) == (None, None)
    assert [one.images for one in told.calibration.classes] == [2, 0]
    assert told.calibration.ece_mean == told.calibration.classes[0].ece
    assert told.bootstrap.classes[1].recall is None
    assert "B: no number, its truth is known of no image" in told.omitted
    assert found.top is None


def test_a_temperature_is_of_the_model_that_is_judged():
    case = joined(
        [[1, 0], [0, 1], [1, 0], [0, 1]],
        [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]],
        labels="AB",
    )
    other = replace(case, keys=tuple(f"other-{key}" for key in case.keys))
    one, two = (ScoredBy("m.onnx", digit * 64, None, None) for digit in "12")
    for known in ((None, None), (one, None), (one, one)):
        sides = [replace(side, scored_by=by) for side, by in zip((case, other), known)]
        assert measure(sides[0], validation=sides[1], config=MeasureConfig(replicates=0))
    with pytest.raises(
        UserError, match=r"another model \(m.onnx, .* 22222222\).*of the same model"
    ):
        measure(replace(case, scored_by=one), validation=replace(other, scored_by=two))
