"""DeLong's test and McNemar's against the published example, plain loops and the bootstrap."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.compare import exact_mcnemar, holm
from serve.delong import delong_test
from serve.intervals import auroc

# Albumin, total protein, K-G score and outcome (1: surgery did not help) of the patients in DeLong,
# DeLong and Clarke-Pearson (Biometrics 1988) who have all three; printed in SAS/STAT's manual too,
# "Comparing Receiver Operating Characteristic Curves", with the results below.
PATIENTS = """
3.0 5.8 10 0, 3.2 6.3 5 1, 3.9 6.8 3 1, 2.8 4.8 6 0, 3.2 5.8 3 1, 0.9 4.0 5 0, 2.5 5.7 8 0,
1.6 5.6 5 1, 3.8 5.7 5 1, 3.7 6.7 6 1, 3.2 5.4 4 1, 3.8 6.6 6 1, 4.1 6.6 5 1, 3.6 5.7 5 1,
4.3 7.0 4 1, 3.6 6.7 4 0, 2.3 4.4 6 1, 4.2 7.6 4 0, 4.0 6.6 6 0, 3.5 5.8 6 1, 3.8 6.8 7 1,
3.0 4.7 8 0, 4.5 7.4 5 1, 3.7 7.4 5 1, 3.1 6.6 6 1, 4.1 8.2 6 1, 4.3 7.0 5 1, 4.3 6.5 4 1,
3.2 5.1 5 1, 2.6 4.7 6 1, 3.3 6.8 6 0, 1.7 4.0 7 0, 3.7 6.1 5 1, 3.3 6.3 7 1, 4.2 7.7 6 1,
3.5 6.2 5 1, 2.9 5.7 9 0, 2.1 4.8 7 1, 2.8 6.2 8 0, 4.0 7.0 7 1, 3.3 5.7 6 1, 3.7 6.9 5 1,
3.6 6.6 5 1
"""
TABLE = np.array([row.split() for row in PATIENTS.replace("\n", " ").split(",")], float)
ALBUMIN, PROTEIN, KG, HELPED = TABLE[:, 0], TABLE[:, 1], 10 - TABLE[:, 2], TABLE[:, 3] == 1


@pytest.mark.parametrize(
    ("scores", "area", "low", "high"),
    [
        (ALBUMIN, 0.7366, 0.5549, 0.9182),
        (KG, 0.7258, 0.5243, 0.9273),
        (PROTEIN, 0.6478, 0.4518, 0.8439),
    ],
)
def test_areas_of_the_published_example(scores, area, low, high):
    found = auroc(scores, HELPED)
    assert (found.value, found.low, found.high) == pytest.approx((area, low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("scores", "difference", "low", "high", "p"),
    [
        (ALBUMIN, 0.0108, -0.1761, 0.1976, 0.9102),
        (PROTEIN, -0.0780, -0.2830, 0.1271, 0.4561),
    ],
)
def test_differences_of_the_published_example(scores, difference, low, high, p):
    found = delong_test(scores, KG, HELPED)
    ends = (found.difference.value, found.difference.low, found.difference.high)
    assert ends == pytest.approx((difference, low, high), abs=5e-5)
    assert found.p == pytest.approx(p, abs=5e-5)


def slow_variance(scores, other, truth):
    """Of the difference of the areas, from the table of all pairs, one component at a time."""

    def pairs(values):
        return [
            [1.0 if a > b else 0.5 if a == b else 0.0 for b in values[~truth]]
            for a in values[truth]
        ]

    psi = np.array(pairs(scores)) - np.array(pairs(other))
    m, n = psi.shape
    by_positive = sum((psi[i].mean() - psi.mean()) ** 2 for i in range(m)) / (m - 1) / m
    by_negative = sum((psi[:, j].mean() - psi.mean()) ** 2 for j in range(n)) / (n - 1) / n
    return by_positive + by_negative


@given(st.integers(0, 10**6), st.integers(4, 20))
def test_the_variance_equals_pair_counting(seed, n):
    rng = np.random.default_rng(seed)
    scores, other = rng.integers(0, 6, (2, n)) / 6
    truth = np.arange(n) % 3 == 0
    if truth.sum() < 2:
        return
    found, variance = delong_test(scores, other, truth), slow_variance(scores, other, truth)
    if variance < 1e-20:
        assert found.p is None
        return
    difference = auroc(scores, truth).value - auroc(other, truth).value
    z = difference / math.sqrt(variance)
    assert found.z == pytest.approx(z, abs=1e-6)
    swapped = delong_test(other, scores, truth)
    assert (swapped.z, swapped.p) == pytest.approx((-found.z, found.p))


def test_delong_agrees_with_the_bootstrap():
    rng = np.random.default_rng(5)
    truth = np.arange(300) < 120
    signal = truth + rng.normal(size=300)
    one, other = signal + rng.normal(size=300), signal + 1.6 * rng.normal(size=300)
    found = delong_test(one, other, truth)
    drawn = []
    for _ in range(600):
        rows = np.r_[rng.choice(np.arange(120), 120), rng.choice(np.arange(120, 300), 180)]
        areas = [auroc(s[rows], truth[rows]).value for s in (one, other)]
        drawn.append(areas[0] - areas[1])
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert found.difference.low == pytest.approx(low, abs=0.015)
    assert found.difference.high == pytest.approx(high, abs=0.015)


def test_one_kind_and_equal_scores_have_no_test():
    scores = np.array([0.1, 0.4, 0.3])
    assert delong_test(scores, scores, np.array([True] * 3)) is None
    same = delong_test(np.r_[scores, 0.2], np.r_[scores, 0.2], np.array([True, True, False, False]))
    assert (same.difference.value, same.z, same.p) == (0, None, None)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_equals_exact_fractions(one, other):
    n = one + other
    tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(min(one, other) + 1))
    assert exact_mcnemar(one, other) == pytest.approx(float(min(Fraction(1), 2 * tail)))


def test_holm_equals_its_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
