"""train.sampling: balanced, with replacement, a function of its arguments; in the loop's order."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shards.console import UserError
from shards.labels import Vocabulary
from shards.order import global_batch, rank_slice, steps_per_epoch
from train.augment import EIGHT, Augment
from train.config import LabelExpansion, LabelVariation, Stage, TrainConfig, expansions_of
from train.expand import Expander
from train.loop import Trainer
from train.phases import Phase
from train.sampling import _shares, balanced_copies, balanced_order
from train.store import Store

LABELS = arrays(
    np.int8, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=st.integers(-1, 1)
)
SEED = st.integers(0, 2**32 - 1)
EPOCH = st.integers(0, 1000)


def drawn(labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Where every sample has one copy."""
    return balanced_order(labels, np.ones(len(labels), np.int64), seed=seed, epoch=epoch)


def one_label(counts: list[int]) -> np.ndarray:
    """(sum, L) labels, so many samples of each."""
    return np.eye(len(counts), dtype=np.int8)[np.repeat(np.arange(len(counts)), counts)]


@given(LABELS, SEED, EPOCH)
def test_as_many_draws_as_samples_and_nothing_but_the_arguments_counts(labels, seed, epoch):
    order = drawn(labels, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert order.shape == (len(labels),)
    assert ((order >= 0) & (order < len(labels))).all()
    assert np.array_equal(order, drawn(labels.copy(), seed=seed, epoch=epoch))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), SEED, EPOCH)
def test_every_class_is_drawn_as_often(counts, seed, epoch):
    labels = one_label(counts)
    times = labels[drawn(labels, seed=seed, epoch=epoch)].sum(axis=0)
    assert times.max() - times.min() <= 1


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 72)), min_size=1, max_size=4), SEED, EPOCH
)
def test_the_network_sees_as_many_copies_of_each_class(classes, seed, epoch):
    labels = one_label([count for count, _ in classes])
    factor = np.array([factor for _, factor in classes])
    order = balanced_order(labels, labels @ factor, seed=seed, epoch=epoch)
    assert len(order) == len(labels)
    copies = labels[order].sum(axis=0) * factor
    assert copies.max() - copies.min() <= 2 * factor.max()


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=4), SEED, EPOCH
)
def test_single_copies_are_drawn_as_often_of_each_class(classes, seed, epoch):
    labels = one_label([count for count, _ in classes])
    factors = labels @ np.array([factor for _, factor in classes])
    order = balanced_copies(labels, factors, seed=seed, epoch=epoch)
    assert order.shape == (factors.sum(), 2)
    samples, numbers = order.T
    assert ((numbers >= 0) & (numbers < factors[samples])).all()
    times = labels[samples].sum(axis=0)
    assert times.max() - times.min() <= 1
    assert np.array_equal(order, balanced_copies(labels, factors, seed=seed, epoch=epoch))


def test_within_a_class_every_copy_is_as_likely():
    labels, factors = one_label([20, 4]), np.repeat([1, 5], [20, 4])
    orders = [balanced_copies(labels, factors, seed=0, epoch=epoch) for epoch in range(400)]
    drawn = np.concatenate(orders)
    for number in range(5):
        times = np.bincount(drawn[drawn[:, 1] == number, 0], minlength=24)[20:] / 400
        assert np.abs(times - 1).max() < 0.2  # 20 of the 40 draws, of 20 copies
    assert np.abs(np.bincount(drawn[:, 0])[:20] / 400 - 1).max() < 0.2


def test_the_largest_rests_are_rounded_up():
    assert _shares(np.array([12.0, 12.0, 1.0]), 10).tolist() == [5, 5, 0]  # 4.8, 4.8, 0.4
    assert _shares(np.array([1.0, 1.0, 1.0]), 5).tolist() == [2, 2, 1]


def test_a_sample_without_labels_has_its_class():
    labels = np.concatenate([one_label([50, 2]), np.zeros((8, 2), np.int8)])
    order = drawn(labels, seed=0, epoch=0)
    assert (order >= 52).sum() == 20
    several = np.array([[1, 1], [1, 0], [-1, -1]], np.int8)
    orders = [drawn(several, seed=0, epoch=epoch) for epoch in range(20)]
    assert set(np.concatenate(orders)) == {0, 1, 2}


def test_within_a_class_every_sample_is_as_likely_and_epochs_differ():
    labels = one_label([90, 10])
    orders = [drawn(labels, seed=0, epoch=epoch) for epoch in range(400)]
    times = np.bincount(np.concatenate(orders), minlength=100) / 400
    assert np.abs(times[:90] - 50 / 90).max() < 0.15
    assert np.abs(times[90:] - 5).max() < 0.5
    assert len({tuple(order) for order in orders}) == 400
    # classes are mixed: no step sees one only
    assert all(0 < (orders[0][at : at + 20] >= 90).sum() < 20 for at in range(0, 100, 20))


@given(LABELS, SEED, EPOCH, st.sampled_from([1, 2, 4, 5]), st.integers(1, 9))
def test_ranks_share_the_draws(labels, seed, epoch, world, batch):
    order = drawn(labels, seed=seed, epoch=epoch)
    for step in range(steps_per_epoch(len(order), batch, "short")):
        samples = global_batch(order, step, batch, "short")
        shares = [rank_slice(samples, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(shares)) == sorted(samples)


def test_the_loop_draws_by_it():
    store = Store(tuple(f"k{i}" for i in range(12)), torch.empty(0), one_label([9, 3]))
    variation = LabelVariation("COVID-19", 5, Augment(mirror=0.5))
    phases = (Phase("all", 1, "all", lr=0.1),)
    stage = Stage("s", "d", phases, batch=4, variations=(variation,), balance=True)
    rules = expansions_of(stage, Vocabulary(("Normal", "COVID-19"), True))
    stepper = SimpleNamespace(store=store, expander=Expander(rules, stage.augment, 7, 32))
    trainer = Trainer.__new__(Trainer)
    trainer.config = TrainConfig("r", "densenet121", (stage,), seed=7)
    order = trainer._order(stage, stepper, 3)
    expected = balanced_order(store.labels, np.repeat([1, 5], [9, 3]), seed=7, epoch=3)
    assert np.array_equal(order, expected)
    assert (order >= 9).sum() == 2  # 2 x 5 copies beside 10 x 1
    single = trainer._order(replace(stage, batch_unit="augmented"), stepper, 3)
    copies = balanced_copies(store.labels, np.repeat([1, 5], [9, 3]), seed=7, epoch=3)
    assert np.array_equal(single, copies)
    assert (single[:, 0] >= 9).sum() == 12  # of the 9 + 3 x 5 copies that there are


def test_a_label_has_one_rule():
    stage = Stage(
        "s",
        "d",
        (Phase("all", 1, "all", lr=0.1),),
        batch=4,
        expansions=(LabelExpansion("a", EIGHT),),
        variations=(LabelVariation("a", 5, Augment(mirror=0.5)),),
    )
    with pytest.raises(UserError, match="a label has two expansions or variations"):
        expansions_of(stage, Vocabulary(("a", "b"), True))
