"""ingest.near: copies are found, other images are not, and no pair is overlooked."""

import cv2
import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ingest.near import BITS, THRESHOLD, distance, near_hash, near_pairs
from ingest.radiograph import draw
from shards.codec import decode_grey


def flipped(value: int, bits: set[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


@st.composite
def hash_lists(draw_):
    """Few random hashes, each with some copies of 0 to 30 flipped bits."""
    seeds = draw_(st.lists(st.integers(0, 2**BITS - 1), min_size=1, max_size=4))
    flips = st.sets(st.integers(0, BITS - 1), max_size=30)
    rows = draw_(st.lists(st.tuples(st.sampled_from(seeds), flips), max_size=20))
    return [f"{flipped(value, bits):064x}" for value, bits in rows]


@given(hash_lists(), st.integers(0, 24))
@settings(deadline=None)
def test_against_comparing_every_pair(hashes, threshold):
    found = near_pairs(hashes, threshold)
    assert found == sorted(set(found))
    first = {}
    for i, value in enumerate(hashes):
        first.setdefault(value, i)
    plain = []
    for j, right in enumerate(hashes):
        for i, left in enumerate(hashes[:j]):
            bits = bin(int(left, 16) ^ int(right, 16)).count("1")
            stands = first[left] == i and (first[right] == j or bits == 0)
            if bits <= threshold and stands:
                plain.append((i, j, bits))
    assert found == sorted(plain)
    assert all(d == distance(hashes[i], hashes[j]) for i, j, d in found)


def test_blocks_hide_no_pair(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2, (40, BITS), np.uint8).repeat(5, 0)
    noise = rng.random(seeds.shape) < 0.02
    hashes = [np.packbits(row).tobytes().hex() for row in seeds ^ noise]
    whole = near_pairs(hashes)
    monkeypatch.setattr("ingest.near._BLOCK", 3)
    assert near_pairs(hashes) == whole
    assert len(whole) > 200


def test_many_equal_images_give_one_pair_each():
    assert near_pairs(["00" * 32] * 5000) == [(0, i, 0) for i in range(1, 5000)]
    assert near_pairs([]) == []


def copies(grey: np.ndarray) -> dict[str, np.ndarray]:
    """What public sets do to each other's images."""
    height, width = grey.shape
    small = cv2.resize(grey, (299, 299), interpolation=cv2.INTER_AREA)
    half = cv2.resize(grey, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    large = cv2.resize(grey, (width * 3 // 2, height * 3 // 2), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return {
        "299": small,
        "half": half,
        "large": large,
        "jpeg": cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE),
    }


def test_drawn_copies_are_near():
    greys = [draw(seed, frozenset(), size=256) for seed in range(12)]
    hashes = [near_hash(grey) for grey in greys]
    for grey, own in zip(greys, hashes):
        assert len(own) == BITS // 4
        for name, copy in copies(grey).items():
            assert distance(own, near_hash(copy)) <= THRESHOLD, name


@pytest.mark.parametrize(("height", "width"), [(100, 130), (257, 300), (300, 259)])
def test_an_image_that_has_no_exact_half_is_drawn_at_once(height, width):
    grey = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    drawn = cv2.resize(grey, (128, 128), interpolation=cv2.INTER_AREA)
    bits = imagehash.phash(Image.fromarray(drawn), hash_size=16).hash
    assert near_hash(grey) == np.packbits(bits).tobytes().hex()


def test_an_image_and_its_exact_half_have_the_same_hash():
    grey = draw(3, frozenset(), size=800)[:512, :768]
    half = cv2.resize(grey, (384, 256), interpolation=cv2.INTER_AREA)
    assert near_hash(half) == near_hash(grey)


def test_real_copies_are_near_and_other_patients_are_not(shared_data):
    """Real radiographs are the measure of THRESHOLD; drawn ones are too much alike."""
    paths = sorted((shared_data / "covid-radiography").glob("[CV]*/*"))[::6]
    paths += sorted((shared_data / "covid-chestxray-dataset/images").iterdir())[::4]
    greys = [decode_grey(path.read_bytes()) for path in paths]
    hashes = [near_hash(grey) for grey in greys]
    worst = max(
        distance(own, near_hash(copy))
        for grey, own in zip(greys, hashes)
        for copy in copies(grey).values()
    )
    assert worst <= THRESHOLD / 2
    others = [
        distance(hashes[i], hashes[j])
        for j in range(len(hashes))
        for i in range(j)
        if not np.array_equal(greys[i], greys[j])
    ]
    # The nearest pairs are copies too: none may lie between.
    assert not [d for d in others if THRESHOLD < d <= 2 * THRESHOLD]
