"""shards.order: each epoch is a permutation, shared out without loss over 1 to 16 ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.order import epoch_order, global_batch, rank_slice, steps_per_epoch

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
