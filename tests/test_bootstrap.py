"""Bootstrap intervals: by patient, addressed, of the same numbers as the plain formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from test_evaluate import joined

from serve.bootstrap import CLASS_METRICS, _estimate, bootstrap, draw
from serve.judged import judge
from serve.metrics import MeasureConfig, measure


def case(n=60, labels=2, seed=0, exclusive=False, patients=None):
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, labels)) < 0.4).astype(np.int8)
    if exclusive:
        truth = np.eye(labels, dtype=np.int8)[rng.integers(0, labels, n)]
    scores = np.clip(0.35 * truth + rng.random((n, labels)) * 0.65, 0, 1).round(2)
    return joined(
        truth,
        scores,
        labels=[f"L{i}" for i in range(labels)],
        exclusive=exclusive,
        patients=patients,
    )


@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 5))
def test_a_draw_is_addressed_and_complete(units, seed, replicate):
    counts = draw(units, replicate, seed)
    assert counts.sum() == units
    assert counts.shape == (units,)
    np.testing.assert_array_equal(counts, draw(units, replicate, seed))


def test_draws_are_even():
    total = sum(draw(50, b, 3) for b in range(2000))
    assert total.mean() == 2000
    assert np.abs(total - 2000).max() < 5 * np.sqrt(2000)


@pytest.mark.parametrize("exclusive", [True, False])
def test_values_are_those_of_the_evaluation(exclusive):
    both = case(labels=3, exclusive=exclusive)
    found = measure(both, config=MeasureConfig(replicates=100))
    for one, drawn in zip(found.classes, found.bootstrap.classes):
        for name in CLASS_METRICS:
            value = getattr(one, name)
            value = getattr(value, "value", value)
            assert getattr(drawn, name).value == pytest.approx(value, abs=1e-12)
    for name in CLASS_METRICS:
        assert found.bootstrap.mean[name].value == pytest.approx(found.mean[name], abs=1e-12)
    assert (found.bootstrap.accuracy is None) == (not exclusive)


def test_intervals_equal_a_plain_bootstrap():
    data = case(n=40, labels=1, patients=tuple(f"p{i // 2}" for i in range(40)))
    judged = judge(data)
    found = bootstrap(judged, 100, seed=7)
    assert (found.unit, found.units, found.lone_images) == ("patient", 20, 0)
    names = sorted({f"patient p{i}" for i in range(20)})
    truth, scores = data.targets[:, 0], data.probabilities[:, 0]
    drawn = {name: [] for name in ("auroc", "average_precision", "f1", "recall")}
    for b in range(100):
        counts = dict(zip(names, draw(20, b, 7)))
        rows = [i for i in range(40) for _ in range(counts[f"patient p{i // 2}"])]
        t, s = truth[rows], scores[rows]
        drawn["auroc"].append(roc_auc_score(t, s))
        drawn["average_precision"].append(average_precision_score(t, s))
        drawn["f1"].append(f1_score(t, s >= 0.5))
        drawn["recall"].append((s >= 0.5)[t == 1].mean())
    for name, values in drawn.items():
        low, high = np.quantile(values, (0.025, 0.975))
        estimate = getattr(found.classes[0], name)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-9)


def test_the_order_of_the_rows_does_not_matter():
    data = judge(case(patients=tuple(f"p{i // 3}" for i in range(60))))
    shuffled = data.take(np.random.default_rng(1).permutation(60))
    assert bootstrap(data, 100, 0).classes[0].auroc.low == pytest.approx(
        bootstrap(shuffled, 100, 0).classes[0].auroc.low, abs=1e-12
    )


def test_images_of_one_patient_widen_the_interval():
    alone = case(n=50)
    copied = joined(
        np.repeat(alone.targets, 4, axis=0),
        np.repeat(alone.probabilities, 4, axis=0),
        labels=alone.labels,
        exclusive=False,
        patients=tuple(f"p{i // 4}" for i in range(200)),
    )
    by_patient = bootstrap(judge(copied), 300, 0).classes[0].auroc
    as_images = bootstrap(judge(alone), 300, 0).classes[0].auroc
    naive = measure(copied, config=MeasureConfig(replicates=0)).classes[0].auroc
    width = by_patient.high - by_patient.low
    assert width == pytest.approx(as_images.high - as_images.low, rel=0.15)
    assert width > 1.6 * (naive.high - naive.low)  # four copies halve the naive interval


def test_the_interval_covers_the_truth():
    """Of 95 % intervals, about 95 % hold the area that the scores are made to have."""
    held = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = (np.arange(120) % 2)[:, None]
        scores = 1 / (1 + np.exp(-(truth + rng.normal(size=(120, 1)))))
        found = bootstrap(judge(joined(truth, scores, labels="A", exclusive=False)), 100, seed)
        held += found.classes[0].auroc.low <= 0.7602 <= found.classes[0].auroc.high
    assert held >= 34


def test_unknown_patients_and_degenerate_samples_are_stated():
    data = case(n=9, patients=("p", "p", None, None, "q", "q", "q", "r", "r"))
    found = bootstrap(judge(data), 100, 0)
    assert (found.unit, found.units, found.lone_images) == ("patient", 5, 2)
    assert bootstrap(judge(case(n=9)), 100, 0).unit == "image"
    perfect = joined(np.eye(2)[[0, 1] * 20], np.eye(2)[[0, 1] * 20] * 0.8 + 0.1, labels="AB")
    own = bootstrap(judge(perfect), 100, 0)
    assert (own.accuracy.value, own.accuracy.low, own.accuracy.high) == (1, None, None)
    rare = joined(
        [[1]] + [[0]] * 30, np.linspace(0.9, 0.1, 31)[:, None], labels="A", exclusive=False
    )
    area = bootstrap(judge(rare), 200, 0).classes[0].auroc
    assert (area.value, area.low) == (1, None)  # a third of the resamples lack the one positive


@pytest.mark.parametrize(("missing", "known"), [(0, True), (5, True), (6, False), (100, False)])
def test_an_interval_needs_the_number_in_95_of_100_resamples(missing: int, known: bool):
    drawn = np.r_[np.linspace(0, 1, 100 - missing), np.full(missing, np.nan)]
    found = _estimate(0.5, drawn)
    assert found is not None
    assert (found.low is not None, found.high is not None) == (known, known)
    if known:
        assert (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert _estimate(np.nan, drawn) is None
