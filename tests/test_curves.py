"""Curves, thresholds, histograms, subgroups and comparisons against loops and scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, roc_curve
from test_bootstrap import case
from test_evaluate import joined

from serve.compare import compare
from serve.curves import MAX_POINTS, histograms, operating, rank_curves, threshold_tables
from serve.judged import judge
from serve.metrics import MeasureConfig, measure
from serve.subgroups import group_of, subgroups
from shards.console import UserError


@given(st.integers(0, 10**6))
def test_curves_equal_scikit_learn(seed):
    judged = judge(case(n=30, labels=1, seed=seed))
    truth, scores = judged.truth[:, 0], judged.probabilities[:, 0]
    if truth.min() == truth.max():
        assert rank_curves(judged) == ()
        return
    (found,) = rank_curves(judged)
    fpr, tpr, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.false_positive_rate, fpr[1:])
    np.testing.assert_allclose(found.true_positive_rate, tpr[1:])
    np.testing.assert_allclose(found.threshold, thresholds[1:])
    precision, recall, _ = precision_recall_curve(truth, scores)
    np.testing.assert_allclose(found.precision, precision[:-1][::-1])
    np.testing.assert_allclose(found.true_positive_rate, recall[:-1][::-1])


def test_long_curves_are_thinned_and_keep_their_ends():
    rng = np.random.default_rng(0)
    judged = judge(
        joined(
            np.arange(3000)[:, None] % 50 == 0, rng.random((3000, 1)), labels="A", exclusive=False
        )
    )
    (short,), (whole,) = rank_curves(judged), rank_curves(judged, max_points=None)
    assert short.distinct == len(whole.threshold) == 3000
    assert MAX_POINTS // 2 < len(short.threshold) <= MAX_POINTS
    assert short.threshold[0] == whole.threshold[0]
    assert short.threshold[-1] == whole.threshold[-1]
    assert set(short.threshold) <= set(whole.threshold)
    steps = np.diff(short.true_positive_rate) + np.diff(short.false_positive_rate)
    assert steps.max() < 2 / MAX_POINTS + 1 / 60 + 1e-9


@given(st.integers(0, 10**6), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_thresholds_equal_loops(seed, thresholds):
    judged = judge(case(n=25, labels=2, seed=seed))
    grid = operating(judged)
    for i, table in enumerate(threshold_tables(judged, thresholds)):
        truth, scores = judged.truth[:, i], judged.probabilities[:, i]
        for row in table.rows:
            called = [score >= row.threshold for score in scores]
            assert row.true_positive == sum(c and t == 1 for c, t in zip(called, truth))
            assert row.false_positive == sum(c and t == 0 for c, t in zip(called, truth))
            assert row.false_negative + row.true_positive == (truth == 1).sum()
            assert row.true_negative + row.false_positive == (truth == 0).sum()
        for step in (0, 137, 500, 1000):
            at = scores >= step / grid.steps
            assert grid.classes[i].true_positive[step] == (at & (truth == 1)).sum()
            assert grid.classes[i].false_positive[step] == (at & (truth == 0)).sum()


def test_histograms_count_every_known_image():
    judged = judge(
        joined(
            [[1, -1], [0, 1], [0, 0]], [[1, 0.5], [0, 0.7], [0.5, 0]], labels="AB", exclusive=False
        )
    )
    found = histograms(judged)
    assert [(sum(one.with_label), sum(one.without_label)) for one in found.classes] == [
        (1, 2),
        (1, 1),
    ]
    assert found.classes[0].with_label[-1] == 1
    assert len(found.edges) == len(found.classes[0].with_label) + 1


@pytest.mark.parametrize(
    ("by", "value", "group"),
    [
        ("age", "045Y", "40-59"),
        ("age", "17", "0-17"),
        ("age", "80.0", "80 and over"),
        ("age", "414", None),  # ChestX-ray14 has such ages
        ("age", "-1", None),
        ("age", "old", None),
        ("age", "nan", None),
        ("age", None, None),
        ("view", "PA", "PA"),
    ],
)
def test_groups(by, value, group):
    assert group_of(by, value) == group


@pytest.mark.parametrize(("replicates", "of_groups"), [(0, 0), (200, 100), (1000, 200)])
def test_subgroups_have_a_fifth_of_the_resamples_but_enough_for_an_interval(replicates, of_groups):
    data = replace(case(labels=1), meta={"sex": ("F", "M") * 30})
    found = measure(data, config=MeasureConfig(replicates=replicates)).subgroups
    assert found == subgroups(judge(data), of_groups, 0)


def test_subgroups_are_the_evaluation_of_their_part():
    data = case(n=60, labels=2, patients=tuple(f"p{i // 2}" for i in range(60)))
    views = tuple(("PA", "AP", None)[i % 3] for i in range(60))
    ages = tuple(str(i) if i < 59 else "414" for i in range(60))
    data = replace(data, meta={"view": views, "age": ages, "sex": ("M",) * 60})
    by = {part.by: part for part in subgroups(judge(data), 100, 0)}
    assert set(by) == {"view", "age"}
    assert [group.value for group in by["age"].groups] == ["0-17", "18-39", "40-59"]
    assert (by["age"].unknown, by["view"].unknown, by["view"].smaller) == (1, 20, 0)
    rows = np.array([view == "AP" for view in views])
    alone = measure(
        joined(data.targets[rows], data.probabilities[rows], labels=data.labels, exclusive=False),
        config=MeasureConfig(replicates=0),
    )
    group = next(group for group in by["view"].groups if group.value == "AP")
    assert group.images == 20
    assert group.mean_auroc.value == pytest.approx(alone.mean["auroc"])
    for one, same in zip(group.classes, alone.classes):
        assert (one.auroc, one.recall, one.specificity) == (
            same.auroc,
            same.recall,
            same.specificity,
        )


def test_subgroups_are_by_view_sex_age_and_source():
    values = {"source": "ab", "view": "ab", "age": ("30", "50"), "sex": "FM", "file": "ab"}
    data = replace(case(labels=1), meta={name: tuple(two) * 30 for name, two in values.items()})
    assert [part.by for part in subgroups(judge(data))] == ["view", "sex", "age", "source"]


def test_two_models_are_compared_on_the_same_images():
    first, second = case(n=40, labels=3, exclusive=True), case(n=40, labels=3, exclusive=True)
    rng = np.random.default_rng(9)
    second.probabilities[:] = np.clip(second.probabilities + rng.normal(size=(40, 3)), 0, 1)
    order = rng.permutation(40)[:30]
    other = judge(second).take(order)
    one = judge(first)
    found = compare(one, other, "other")
    assert (found.images, found.only_in_this, found.only_in_other) == (30, 10, 0)
    top = found.mcnemar[0]
    right = dict(zip(one.keys, one.correct))
    pairs = [(right[key], hit) for key, hit in zip(other.keys, other.correct)]
    assert top.only_this == sum(a and not b for a, b in pairs)
    assert top.only_other == sum(b and not a for a, b in pairs)
    assert top.both_right + top.only_this + top.only_other + top.both_wrong == 30
    assert found.accuracy.value - found.other_accuracy.value == pytest.approx(
        (top.only_this - top.only_other) / 30
    )
    assert [area.label for area in found.areas] == list(first.labels)
    assert all(area.p_holm >= area.p for area in found.areas)


def test_models_of_other_labels_are_compared_where_they_can_be():
    first, second = case(labels=2), case(labels=3, exclusive=True)
    found = compare(judge(replace(first, labels=("L0", "X"))), judge(second), "other")
    assert found.labels == ("L0",)
    assert (found.accuracy, found.mcnemar) == (None, ())
    assert found.omitted[:2] == (
        "not compared, the other scores lack: X",
        "not compared, these scores lack: L1, L2",
    )
    with pytest.raises(UserError, match="no evaluated label in common"):
        compare(judge(replace(first, labels=("X", "Y"))), judge(second), "other")
    with pytest.raises(UserError, match="no evaluated image in common"):
        compare(judge(first), judge(replace(second, keys=tuple("k" * i for i in range(60)))), "o")
