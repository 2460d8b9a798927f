"""serve.intervals, serve.confusion: against published numbers and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from serve.confusion import confusion_matrix, count
from serve.intervals import (
    Z95,
    auroc,
    average_precision,
    midranks,
    roc_points,
    wilson,
)

LABELS = ("Normal", "Viral Pneumonia", "COVID-19")


@st.composite
def scored(draw, both_kinds=True):
    """Scores from few values, so that ties are frequent, and truth of both kinds."""
    n = draw(st.integers(2, 24))
    scores = np.array(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))) / 6
    truth = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    if both_kinds:
        truth[0], truth[-1] = True, False
    return scores, truth


def pair_table(scores, truth):
    """psi[i, j]: 1 where positive i is above negative j, half where they tie."""
    psi = np.zeros((truth.sum(), (~truth).sum()))
    for i, positive in enumerate(scores[truth]):
        for j, negative in enumerate(scores[~truth]):
            psi[i, j] = 1.0 if positive > negative else 0.5 if positive == negative else 0.0
    return psi


def slow_delong_variance(psi):
    """DeLong, DeLong and Clarke-Pearson 1988, by its structural components, one at a time."""
    m, n = psi.shape
    area = psi.sum() / (m * n)
    s10 = sum((psi[i].sum() / n - area) ** 2 for i in range(m)) / (m - 1)
    s01 = sum((psi[:, j].sum() / m - area) ** 2 for j in range(n)) / (n - 1)
    return s10 / m + s01 / n


def slow_average_precision(scores, truth):
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        recall = (called & truth).sum() / truth.sum()
        total += (recall - recall_before) * (called & truth).sum() / called.sum()
        recall_before = recall
    return total


@given(scored())
def test_auroc_equals_pair_counting_and_delong(case):
    scores, truth = case
    psi = pair_table(scores, truth)
    found = auroc(scores, truth)
    assert found is not None
    assert found.value == pytest.approx(psi.mean(), abs=1e-12)
    assert found.value == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    if min(psi.shape) > 1:
        half = Z95 * math.sqrt(slow_delong_variance(psi))
        if half > 1e-9:
            assert found.low == pytest.approx(max(0, psi.mean() - half), abs=1e-9)
            assert found.high == pytest.approx(min(1, psi.mean() + half), abs=1e-9)
        else:
            assert found.low is None
    else:
        assert found.low is None


@given(scored())
def test_average_precision_equals_plain_loop(case):
    scores, truth = case
    assert average_precision(scores, truth) == pytest.approx(slow_average_precision(scores, truth))
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))


@given(scored())
def test_roc_area_is_the_auroc(case):
    scores, truth = case
    false, true = roc_points(scores, truth)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    found = auroc(scores, truth)
    assert found is not None
    assert np.trapezoid(true, false) == pytest.approx(found.value)


@given(scored(both_kinds=False))
def test_midranks_equal_plain_loop(case):
    values, _ = case
    slow = [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]
    np.testing.assert_array_equal(midranks(values), slow)


def test_one_kind_of_truth_has_no_area():
    scores = np.array([0.1, 0.7])
    for truth in (np.array([True, True]), np.array([False, False])):
        assert auroc(scores, truth) is None
        assert average_precision(scores, truth) is None


def test_wilson_equals_published_values():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    for successes, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(successes, total)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) is None


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_value_and_is_symmetric(case):
    k, n = case
    found, mirrored = wilson(k, n), wilson(n - k, n)
    assert found is not None
    assert mirrored is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)


@given(scored(), scored())
def test_counts_equal_plain_loops(one, other):
    n = min(len(one[1]), len(other[1]))
    truth, called = one[1][:n], other[1][:n]
    counts = count(truth, called)
    matrix = confusion_matrix(truth.astype(int), called.astype(int), 2)
    assert counts.true_positive == sum(t and c for t, c in zip(truth, called)) == matrix[1, 1]
    assert counts.false_negative == sum(t and not c for t, c in zip(truth, called)) == matrix[1, 0]
    assert counts.false_positive == sum(c and not t for t, c in zip(truth, called)) == matrix[0, 1]
    assert counts.true_negative == n - matrix[1].sum() - matrix[0, 1] == matrix[0, 0]
