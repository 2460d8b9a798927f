"""train.loss and train.metrics against plain loops; unknown labels count nowhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from train.loss import Loss, masked_bce_sum, masked_softmax_sum, probabilities
from train.metrics import Metrics, _ranks, auroc, evaluate_logits

LABEL = st.sampled_from([-1, 0, 1])
LOGIT = st.integers(-200, 200).map(lambda value: value / 10)  # coarse, so that ties occur


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """logits (N, L) float32, labels (N, L) int8."""
    n, width = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    logits = draw(st.lists(LOGIT, min_size=n * width, max_size=n * width))
    labels = draw(st.lists(LABEL, min_size=n * width, max_size=n * width))
    shape = (n, width)
    return np.array(logits, np.float32).reshape(shape), np.array(labels, np.int8).reshape(shape)


def bce(logit: float, label: int) -> float:
    """Minus the log of the probability that the sigmoid gives the truth."""
    signed = logit if label == 1 else -logit
    return math.log1p(math.exp(-signed)) if signed > -30 else -signed


def loss_rows(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    return [
        sum(bce(float(z), int(y)) for z, y in zip(row, truth) if y != -1)
        for row, truth in zip(logits, labels)
    ]


@given(predictions())
def test_masked_bce_matches_loops(case):
    logits, labels = case
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    rows = loss_rows(logits, labels)
    per_row = masked_bce_sum(*tensors, per_row=True).numpy()
    # torch takes a logit from itself in float32: a loss near 0 is right to some of its last bits.
    bits = 1e-6 + 4 * np.finfo(np.float32).eps * np.abs(logits).max(initial=0)
    np.testing.assert_allclose(per_row, rows, rtol=1e-5, atol=bits)
    total = masked_bce_sum(*tensors).item()
    np.testing.assert_allclose(total, sum(rows), rtol=1e-5, atol=len(rows) * bits)


@given(predictions(), st.sampled_from([None, (1.0, 2.0, 0.5, 3.0)]))
def test_masked_softmax_matches_loops(case, weights):
    logits, labels = case
    labels = np.where(np.arange(labels.shape[1]) == labels.argmax(1)[:, None], labels, 0)
    own = None if weights is None else torch.tensor(weights[: labels.shape[1]])
    rows = []
    for row, truth in zip(logits.astype(float), labels):
        total = math.log(sum(math.exp(z) for z in row))
        chosen = [i for i, y in enumerate(truth) if y == 1]
        rows.append(sum((total - row[i]) * (weights[i] if weights else 1) for i in chosen))
    tensors = torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int8))
    per_row = masked_softmax_sum(*tensors, weights=own, per_row=True).numpy()
    np.testing.assert_allclose(per_row, rows, rtol=1e-4, atol=1e-4)
    loss = Loss("softmax", own)
    np.testing.assert_allclose(loss.sum(*tensors).item(), sum(rows), rtol=1e-4, atol=1e-4)
    assert loss.terms(labels).tolist() == [int(1 in truth) for truth in labels.tolist()]


def test_softmax_is_torchs_cross_entropy():
    torch.manual_seed(0)
    logits, truth = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    labels = torch.nn.functional.one_hot(truth).to(torch.int8)
    expected = torch.nn.functional.cross_entropy(logits, truth, reduction="sum")
    torch.testing.assert_close(Loss("softmax").sum(logits, labels), expected)
    labels[3] = -1  # unknown: the row counts nothing
    kept = torch.arange(6) != 3
    expected = torch.nn.functional.cross_entropy(logits[kept], truth[kept], reduction="sum")
    torch.testing.assert_close(Loss("softmax").sum(logits, labels), expected)


@given(predictions())
def test_class_weights_multiply_the_yes_terms(case):
    logits, labels = case
    weights = [2.0, 0.5, 3.0, 1.0][: labels.shape[1]]
    loss = Loss("sigmoid", torch.tensor(weights))
    found = loss.sum(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    terms = [
        bce(float(z), int(y)) * (w if y == 1 else 1)
        for row, truth in zip(logits, labels)
        for z, y, w in zip(row, truth, weights)
        if y != -1
    ]
    np.testing.assert_allclose(found, sum(terms), rtol=1e-4, atol=1e-4)
    assert loss.terms(labels).tolist() == (labels != -1).sum(1).tolist()


def test_scores_order_images_as_the_probabilities_do():
    logits = np.array([[2.0, 5.0], [1.0, 0.0]])
    tensor = torch.from_numpy(logits)
    for output in ("sigmoid", "softmax"):
        shown = probabilities(tensor, output).numpy()
        assert (Loss(output).scores(logits).argsort(0) == shown.argsort(0)).all()
    # Of softmax the larger logit (2 against 1) is the smaller probability (0.05 against 0.73).
    assert (probabilities(tensor, "softmax")[:, 0] > 0.5).tolist() == [False, True]


def test_unknown_labels_give_no_gradient():
    logits = torch.tensor([[1.0, -2.0, 3.0]], requires_grad=True)
    masked_bce_sum(logits, torch.tensor([[1, -1, 0]], dtype=torch.int8)).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert (logits.grad[0, [0, 2]] != 0).all()


def test_loss_of_half_precision_is_computed_in_float32():
    logits = torch.full((1000, 3), 4.0, dtype=torch.bfloat16)
    loss = masked_bce_sum(logits, torch.zeros((1000, 3), dtype=torch.int8))
    assert loss.dtype == torch.float32
    assert abs(loss.item() / 3000 - bce(4.0, 0)) < 1e-4


def pair_count(truth: np.ndarray, score: np.ndarray) -> float | None:
    pairs = [
        1.0 if yes > no else 0.5 if yes == no else 0.0
        for yes in score[truth == 1]
        for no in score[truth == 0]
    ]
    return sum(pairs) / len(pairs) if pairs else None


@given(st.lists(st.tuples(LABEL, st.integers(0, 5)), min_size=1, max_size=30))
def test_auroc_matches_pair_count(rows):
    truth, score = (np.array(column) for column in zip(*rows))
    expected = pair_count(truth, score)
    found = auroc(truth.astype(np.int8), score.astype(float))
    assert found == (expected if expected is None else pytest.approx(expected))


@given(st.lists(st.floats(allow_nan=True, width=16), max_size=30))
def test_ranks_are_scipys(values):
    expected = rankdata(np.array(values, float))
    np.testing.assert_array_equal(_ranks(np.array(values, float)), expected)


@given(predictions())
def test_evaluate_logits_matches_loops(case):
    logits, labels = case
    known = int((labels != -1).sum())
    if not known:
        return
    metrics = evaluate_logits(logits, labels, exclusive=False)
    assert metrics.loss == pytest.approx(sum(loss_rows(logits, labels)) / known, rel=1e-6, abs=1e-9)
    assert metrics.accuracy is None
    for i, value in enumerate(metrics.auroc):
        expected = pair_count(labels[:, i], logits[:, i])
        assert value == (expected if expected is None else pytest.approx(expected))


def test_accuracy_is_of_the_argmax():
    logits = np.array([[3, 1, 0], [-5, -1, -2], [0, 0, 1], [9, 0, 0]], np.float32)
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [-1, -1, -1]], np.int8)
    assert evaluate_logits(logits, labels, exclusive=True).accuracy == pytest.approx(2 / 3)
    # the row with unknown labels leaves nothing to judge
    assert evaluate_logits(logits[2:], labels[2:], exclusive=True).accuracy == 1.0


def test_auroc_mean_leaves_out_what_has_none():
    assert Metrics(0.0, None, (0.5, None, 1.0)).auroc_mean == 0.75
    assert Metrics(0.0, None, (None,)).auroc_mean is None


@given(predictions(), st.booleans())
def test_f1_is_that_of_counting(drawn, exclusive):
    logits, labels = drawn
    found = evaluate_logits(logits, labels, exclusive)
    expected = []
    for column in range(labels.shape[1]):
        hits = misses = false = 0
        for row, truth in enumerate(labels[:, column]):
            called = logits[row, column] >= 0
            if exclusive:
                called = int(np.argmax(logits[row])) == column
            hits += truth == 1 and called
            misses += truth == 1 and not called
            false += truth == 0 and called
        expected.append(2 * hits / (2 * hits + misses + false) if hits + misses else None)
    assert found.f1 == pytest.approx(expected)
    known = [value for value in expected if value is not None]
    assert found.f1_mean == (pytest.approx(np.mean(known)) if known else None)
