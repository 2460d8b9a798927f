"""shards.order: each epoch is a permutation, shared out without loss over 1 to 16 ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.order import (
    copy_order,
    epoch_order,
    global_batch,
    rank_slice,
    samples_of,
    steps_per_epoch,
)
from train.sampling import balanced_order

COUNT = st.integers(1, 300)
BATCH = st.integers(1, 40)


@given(st.integers(0, 500), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_an_epoch_is_a_permutation(count, seed, epoch):
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, epoch_order(count, seed=seed, epoch=epoch))


def test_epochs_and_seeds_differ():
    orders = [epoch_order(100, seed=s, epoch=e).tolist() for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@given(COUNT, BATCH)
def test_short_covers_every_sample_once(count, batch):
    order = epoch_order(count, seed=0, epoch=0)
    steps = steps_per_epoch(count, batch, "short")
    batches = [global_batch(order, step, batch, "short") for step in range(steps)]
    assert np.array_equal(np.concatenate(batches), order)
    assert all(len(b) == batch for b in batches[:-1])


@given(COUNT, BATCH)
def test_wrap_fills_the_last_batch(count, batch):
    order = epoch_order(count, seed=0, epoch=0)
    steps = steps_per_epoch(count, batch, "wrap")
    batches = [global_batch(order, step, batch, "wrap") for step in range(steps)]
    assert all(len(b) == batch for b in batches)
    assert set(np.concatenate(batches).tolist()) == set(range(count))


@given(COUNT, BATCH)
def test_drop_has_whole_batches_only(count, batch):
    order = epoch_order(count, seed=0, epoch=0)
    steps = steps_per_epoch(count, batch, "drop")
    assert steps == count // batch
    for step in range(steps):
        assert len(global_batch(order, step, batch, "drop")) == batch


@pytest.mark.parametrize("world", range(1, 17))
def test_ranks_share_a_batch_without_loss(world):
    order = epoch_order(97, seed=5, epoch=2)
    for step in range(steps_per_epoch(97, 24, "short")):
        batch = global_batch(order, step, 24, "short")
        shares = [rank_slice(batch, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(shares).tolist()) == sorted(batch.tolist())
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_no_step_beyond_the_epoch():
    order = epoch_order(10, seed=0, epoch=0)
    with pytest.raises(IndexError):
        global_batch(order, 2, 5, "short")
    with pytest.raises(IndexError):
        global_batch(order, -1, 5, "short")


WORLD = st.integers(1, 16)


def shares_of_epoch(order, steps, batch, remainder, world):
    """[rank][step] -> what that rank trains on."""
    batches = [global_batch(order, step, batch, remainder) for step in steps]
    return [[rank_slice(b, rank, world) for b in batches] for rank in range(world)]


@given(COUNT, BATCH, WORLD, st.sampled_from(["wrap", "drop"]), st.booleans())
def test_every_rank_takes_every_step(count, batch, world, remainder, single_copies):
    batch = max(batch, world)  # check_stage demands it
    order = epoch_order(count, seed=1, epoch=2)
    if single_copies:
        order = copy_order(order, 1 + order % 5, seed=1, epoch=2)
    steps = range(steps_per_epoch(len(order), batch, remainder))
    ranks = shares_of_epoch(order, steps, batch, remainder, world)
    assert {len(shares) for shares in ranks} == {len(steps)}
    assert all(len(share) for shares in ranks for share in shares)
    units = [tuple(np.atleast_1d(u)) for shares in ranks for share in shares for u in share]
    everything = {tuple(np.atleast_1d(unit)) for unit in order}
    if remainder == "drop":
        assert len(units) == len(set(units)) == len(order) // batch * batch
    else:  # once, and what fills up the last step
        assert set(units) == everything
        assert len(units) - len(everything) == -len(order) % batch


def order_of(count: int, kind: str) -> np.ndarray:
    if kind == "balanced":
        labels = np.eye(2, dtype=np.int8)[(np.arange(count) % 5 == 0).astype(int)]
        return balanced_order(labels, 1 + np.arange(count) % 3, seed=3, epoch=4)
    order = epoch_order(count, seed=3, epoch=4)
    return copy_order(order, 1 + order % 3, seed=3, epoch=4) if kind == "copies" else order


@given(
    COUNT,
    BATCH,
    WORLD,
    WORLD,
    st.integers(0, 20),
    st.sampled_from(["samples", "copies", "balanced"]),
    st.sampled_from(["wrap", "drop"]),
)
def test_an_epoch_goes_on_with_other_ranks(count, batch, before, after, stop, kind, remainder):
    order = order_of(count, kind)
    total = steps_per_epoch(len(order), batch, remainder)
    stop = min(stop, total)
    first = shares_of_epoch(order, range(stop), batch, remainder, before)
    # (seed, epoch, step) is all that the second run knows.
    second = shares_of_epoch(order_of(count, kind), range(stop, total), batch, remainder, after)
    whole = shares_of_epoch(order, range(total), batch, remainder, 1)[0]
    for step in range(total):
        ranks, number = (first, step) if step < stop else (second, step - stop)
        found = np.concatenate([shares[number] for shares in ranks])
        assert sorted(found.tolist()) == sorted(whole[step].tolist())


@given(st.integers(0, 300), WORLD)
def test_evaluation_sees_each_sample_once(count, world):
    shares = [rank_slice(np.arange(count), rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 72)), max_size=40), st.integers(0, 9))
def test_the_copies_of_an_epoch_come_once_each(drawn, epoch):
    samples = np.array([sample for sample, _ in drawn], np.int64)
    factors = np.array([factor for _, factor in drawn], np.int64)
    order = copy_order(samples, factors, seed=7, epoch=epoch)
    expected = sorted([s, copy] for s, f in drawn for copy in range(f))
    assert sorted(order.tolist()) == expected
    assert np.array_equal(order, copy_order(samples, factors, seed=7, epoch=epoch))
    assert np.array_equal(samples_of(order), order[:, 0])
    assert np.array_equal(samples_of(samples), samples)


def test_copies_are_shuffled_over_the_whole_epoch():
    order = copy_order(np.arange(20), np.full(20, 8), seed=0, epoch=0)
    assert len(set(order[:32, 0].tolist())) > 10
    other = copy_order(np.arange(20), np.full(20, 8), seed=0, epoch=1)
    assert not np.array_equal(order, other)


def test_orders_are_those_of_the_versions_before():
    """A run that goes on with a newer version must see the rest of its epoch, no other one."""
    assert epoch_order(12, seed=7, epoch=3).tolist() == [6, 0, 3, 1, 4, 2, 8, 9, 11, 10, 5, 7]
    last_seed = epoch_order(12, seed=2**32 - 1, epoch=0)
    assert last_seed.tolist() == [3, 2, 9, 8, 1, 7, 10, 11, 5, 6, 4, 0]
    copies = copy_order(np.array([4, 0, 2]), np.array([1, 3, 2]), seed=7, epoch=3)
    assert copies.tolist() == [[4, 0], [0, 2], [0, 0], [2, 0], [0, 1], [2, 1]]
    labels = np.eye(3, dtype=np.int8)[np.repeat([0, 1, 2], [7, 2, 1])]
    drawn = balanced_order(labels, np.repeat([1, 2, 1], [7, 2, 1]), seed=7, epoch=3)
    assert drawn.tolist() == [3, 9, 8, 3, 9, 9, 7, 4, 4, 9]
