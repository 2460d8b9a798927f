"""train.batch: copies by label, mixed as a permutation, cut into micro-batches that cover them."""

import numpy as np
import torch
from all_copies import all_copies
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order import global_batch, rank_slice
from shards.philox import name_words
from train.augment import EIGHT, NONE, SEVENTY_TWO, Augment, Varied, affine_matrices
from train.batch import Batch, micro_batches, part_sizes, render
from train.expand import Copies, Expander
from train.store import Store
from train.warp import normalise

SIZE = 32
N = 12


def make_store() -> Store:
    """12 images, labels one of three in turn."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE), np.uint8))
    return Store(
        tuple(f"key{i}" for i in range(N)), images, np.eye(3, dtype=np.int8)[np.arange(N) % 3]
    )


STORE = make_store()
EXPANDER = Expander({0: EIGHT, 2: SEVENTY_TWO}, NONE, seed=1, size=SIZE)
SAMPLES = st.lists(st.integers(0, N - 1), min_size=1, max_size=6, unique=True).map(np.array)


def as_rows(copies: Copies) -> list[tuple[float, ...]]:
    parts = [copies.sample, copies.matrices, copies.jitter, copies.elastic]
    flat = np.concatenate([part.reshape(len(copies), -1) for part in parts], axis=1)
    return [tuple(row) for row in flat.tolist()]


def test_factors_follow_the_labels():
    assert EXPANDER.factors(STORE.labels).tolist() == [8, 1, 72] * 4
    unknown = np.array([[-1, 0, 0], [1, -1, 1], [0, 0, 0]], np.int8)
    assert EXPANDER.factors(unknown).tolist() == [1, 72, 1]  # the largest where several hold


@given(SAMPLES, st.integers(0, 100))
def test_copies_count_and_begin_with_the_image(samples, epoch):
    copies = EXPANDER.copies(STORE, samples, epoch)
    factors = EXPANDER.factors(STORE.labels[samples])
    assert np.array_equal(copies.sample, np.repeat(samples, factors))
    starts = np.concatenate([[0], np.cumsum(factors)[:-1]])
    assert np.array_equal(copies.matrices[starts], np.tile(np.eye(2, 3), (len(samples), 1, 1)))


@given(SAMPLES, st.integers(0, 100))
def test_a_samples_copies_do_not_depend_on_its_batch(samples, epoch):
    together = EXPANDER.copies(STORE, samples, epoch)
    alone = EXPANDER.copies(STORE, samples[-1:], epoch)
    assert as_rows(together)[-len(alone) :] == as_rows(alone)
    expansion = {0: EIGHT, 1: NONE, 2: SEVENTY_TWO}[samples[-1] % 3]
    words = np.array([name_words(STORE.keys[samples[-1]])], np.uint32)
    parameters = all_copies(words, expansion, seed=1, epoch=epoch, size=SIZE)
    assert np.array_equal(alone.matrices, affine_matrices(parameters, SIZE))


@given(SAMPLES, st.integers(0, 100), st.integers(0, 9))
def test_chosen_copies_are_those_of_all(samples, epoch, seed):
    factors = EXPANDER.factors(STORE.labels[samples])
    numbers = np.random.default_rng(seed).integers(factors)
    which = np.stack([samples, numbers], axis=1)
    starts = np.cumsum(factors) - factors
    every = as_rows(EXPANDER.copies(STORE, samples, epoch))
    chosen = as_rows(EXPANDER.chosen_copies(STORE, which, epoch))
    assert chosen == [every[row] for row in starts + numbers]


def test_of_a_chosen_copy_nothing_else_is_computed(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "train.augment.uniform", lambda c, key: drawn.append(len(c)) or np.zeros((len(c), 4))
    )
    EXPANDER.chosen_copies(STORE, np.array([[2, 71], [5, 0], [0, 7]]), 0)
    assert sum(drawn) == 3 * 2  # a rotation and a translation each


@given(SAMPLES, st.integers(0, 100))
def test_mixed_copies_are_a_permutation(samples, epoch):
    plain = EXPANDER.copies(STORE, samples, epoch)
    mixed = EXPANDER.mixed_copies(STORE, samples, epoch)
    assert sorted(as_rows(mixed)) == sorted(as_rows(plain))
    assert as_rows(mixed) == as_rows(EXPANDER.mixed_copies(STORE, samples, epoch))


def test_mixed_copies_are_mixed():
    samples = np.arange(9)
    copies = EXPANDER.mixed_copies(STORE, samples, 0)
    for start in range(0, len(copies) - 32, 32):
        assert len(set(copies.sample[start : start + 32])) >= 3


def test_an_augment_takes_the_place_of_images_without_an_expansion():
    expander = Expander({0: EIGHT}, Augment(mirror=1.0), seed=1, size=SIZE)
    copies = expander.copies(STORE, np.arange(3), 4)
    assert copies.sample.tolist() == [0] * 8 + [1, 2]
    mirrored = copies.matrices[:, 0, 0] < 0
    assert not mirrored[0]
    assert mirrored[8:].all()


def test_variations_keep_the_image_and_equal_rules_share_their_numbers():
    varied = Varied(5, Augment(max_rotation_deg=10, brightness=0.3, elastic_px=4))
    expander = Expander({1: varied, 2: Varied(5, varied.augment)}, NONE, seed=1, size=SIZE)
    copies = expander.copies(STORE, np.arange(6), 0)
    assert expander.factors(STORE.labels[:6]).tolist() == [1, 5, 5, 1, 5, 5]
    plain = (copies.jitter == 1).all(axis=1) & ~copies.elastic.any(axis=(1, 2, 3))
    assert plain.tolist() == ([True] + ([True] + [False] * 4) * 2) * 2
    with_nobody = expander.copies(STORE, np.arange(0), 0)
    assert len(with_nobody) == 0


@given(st.integers(0, 3), st.sampled_from([1, 2, 3, 4, 7, 16]))
def test_a_steps_copies_are_the_same_on_any_number_of_ranks(step, world):
    expander = Expander({0: EIGHT, 2: SEVENTY_TWO}, Augment(mirror=0.5, contrast=0.4), 1, SIZE)
    batch = global_batch(np.arange(N)[::-1], step, 5, "wrap") if step < 3 else np.arange(N)
    whole = as_rows(expander.mixed_copies(STORE, batch, step))
    parts = [rank_slice(batch, rank, world) for rank in range(world)]
    shares = [expander.mixed_copies(STORE, part, step) for part in parts if len(part)]
    assert sorted(row for share in shares for row in as_rows(share)) == sorted(whole)


@settings(deadline=None, max_examples=30)
@given(SAMPLES, st.integers(2, 64))
def test_micro_batches_cover_and_have_a_fixed_size(samples, micro_batch):
    copies = EXPANDER.copies(STORE, samples, 0)
    batches = micro_batches(STORE, copies, micro_batch)
    parts = [Batch(batch.images.clone(), batch.labels) for batch in batches]
    sizes = [len(part.images) for part in parts]
    assert sizes == part_sizes(len(copies), micro_batch)
    whole = render(STORE, copies)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def test_render_shows_the_image_itself_first():
    batch = render(STORE, EXPANDER.copies(STORE, np.array([2]), 7))
    assert batch.images.shape == (72, 3, SIZE, SIZE)
    assert batch.labels.tolist() == [[0, 0, 1]] * 72
    assert (batch.images[:1] - normalise(STORE.images[2:3])).abs().max() <= 1e-6


@given(st.integers(1, 2000), st.integers(2, 128))
def test_all_parts_but_the_last_two_have_the_fixed_size(count, micro_batch):
    sizes = part_sizes(count, micro_batch)
    least = min(8, (micro_batch + 1) // 2)
    assert sum(sizes) == count
    assert len(sizes) == -(-count // micro_batch)
    assert set(sizes[:-2]) <= {micro_batch}
    assert max(sizes) <= micro_batch
    assert min(sizes) >= min(count, least)
    if count % micro_batch == 0 or count % micro_batch >= least:
        assert set(sizes[:-1]) <= {micro_batch}
