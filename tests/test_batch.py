"""train.batch: copies by label, mixed as a permutation, cut into micro-batches that cover them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.augment import EIGHT, SEVENTY_TWO, affine_matrices, copy_parameters, random_mirror
from train.batch import Copies, Expander, known_labels, micro_batches, render
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
EXPANDER = Expander({0: EIGHT, 2: SEVENTY_TWO}, mirror=0.0, seed=1, size=SIZE)
SAMPLES = st.lists(st.integers(0, N - 1), min_size=1, max_size=6, unique=True).map(np.array)


def as_rows(copies: Copies) -> list[tuple[float, ...]]:
    flat = copies.matrices.reshape(len(copies), 6)
    return [(int(s), *m) for s, m in zip(copies.sample, flat.tolist())]


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
    key, expansion = STORE.keys[samples[-1]], EXPANDER.expansion_of(STORE.labels[samples[-1]])
    parameters = copy_parameters(key, expansion, seed=1, epoch=epoch, size=SIZE)
    assert np.array_equal(alone.matrices, affine_matrices(parameters, SIZE))


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


def test_mirror_takes_the_place_of_the_original():
    expander = Expander({}, mirror=0.5, seed=1, size=SIZE)
    mirrored = expander.copies(STORE, np.arange(N), 4).matrices[:, 0, 0] < 0
    expected = [random_mirror(key, probability=0.5, seed=1, epoch=4) for key in STORE.keys]
    assert mirrored.tolist() == expected
    assert 0 < mirrored.sum() < N


@settings(deadline=None, max_examples=30)
@given(SAMPLES, st.integers(2, 64))
def test_micro_batches_cover_and_are_even(samples, micro_batch):
    copies = EXPANDER.copies(STORE, samples, 0)
    parts = list(micro_batches(STORE, copies, micro_batch))
    sizes = [len(part.images) for part in parts]
    assert max(sizes) <= micro_batch
    assert max(sizes) - min(sizes) <= 1
    whole = render(STORE, copies)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def test_render_shows_the_image_itself_first():
    batch = render(STORE, EXPANDER.copies(STORE, np.array([2]), 7))
    assert batch.images.shape == (72, 3, SIZE, SIZE)
    assert batch.labels.tolist() == [[0, 0, 1]] * 72
    assert torch.equal(batch.images[:1], normalise(STORE.images[2:3]))


def test_known_labels():
    labels = np.array([[1, 0, -1], [-1, -1, -1], [0, 0, 1]], np.int8)
    assert known_labels(labels).tolist() == [2, 0, 3]
