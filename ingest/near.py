"""Near duplicates: copies of one radiograph that were re-encoded, resized or toned otherwise.

`near_hash(grey)` -> 256 bits, `near_pairs(hashes)` -> the pairs within THRESHOLD bits. The hash is
imagehash's phash (the signs of the 16 x 16 lowest frequencies of a cosine transform, against their
median) of the image drawn to 128 x 128.
"""

from collections.abc import Iterator

import cv2
import imagehash
import numpy as np
from PIL import Image

NAME = "phash-256"  # in the settings: hashes of another kind cannot be compared with these
BITS = 256
# Bits that may differ. On 429 real radiographs of three public sets (ChestX-ray14, COVID-19
# Radiography Database, covid-chestxray-dataset) copies at 299 px, at 224 x 224, at 512 px and JPEG
# quality 75, at quality 50 and enlarged 1.5 times differ by at most 10 bits, and at gamma 0.8 by at
# most 20. Not found: copies cropped by 2 % at each side (median 38 bits), and some that are 10 %
# brighter with clipping (up to 30). Of the 91,806 pairs two differ by 8 and 16, and are copies
# indeed (one patient's, listed under two days); the nearest different images differ by 62. All
# pairs: 120.5 +- 10.8.
THRESHOLD = 20
_DRAWN = 128  # px; phash reduces by itself, slowly: 2.8 ms from 1024 px, 0.2 ms this way
_BLOCK = 1 << 20  # candidate pairs compared at a time: 64 MiB


def near_hash(grey: np.ndarray) -> str:
    """(H, W) uint8 -> 64 hexadecimal digits.

    Halved as long as that is exact, because OpenCV does that 4 times as fast: so an image and its
    exact half have the same hash.
    """
    while min(grey.shape) >= 2 * _DRAWN and not (grey.shape[0] % 2 or grey.shape[1] % 2):
        half = (grey.shape[1] // 2, grey.shape[0] // 2)
        grey = cv2.resize(grey, half, interpolation=cv2.INTER_AREA)
    drawn = cv2.resize(grey, (_DRAWN, _DRAWN), interpolation=cv2.INTER_AREA)
    bits = imagehash.phash(Image.fromarray(drawn), hash_size=16).hash
    return np.packbits(bits).tobytes().hex()


def distance(one: str, other: str) -> int:
    """Bits in which two hashes differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def near_pairs(hashes: list[str], threshold: int = THRESHOLD) -> list[tuple[int, int, int]]:
    """(i, j, distance) of the pairs i < j within `threshold` bits, sorted. Of hashes that are
    equal the first stands for all: the others are paired with it alone, which keeps a set of many
    equal images from giving a pair for each two of them.

    Exact: two hashes that differ in t bits agree on at least one of t + 1 bands of bits, so only
    hashes that share a band are compared. 112,120 hashes of radiographs: about 65 million
    comparisons instead of 6.3 billion.
    """
    if not hashes:
        return []
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), -1)
    _, first, group = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    equal = [(int(first[g]), i, 0) for i, g in enumerate(group) if first[g] != i]
    once = packed[first]
    found: dict[tuple[int, int], int] = {}
    for left, right, bits in _compared(once, threshold):
        pairs = np.sort(np.stack([first[left], first[right]], 1), 1)
        found |= {(int(i), int(j)): int(d) for (i, j), d in zip(pairs, bits)}
    return sorted([*equal, *((i, j, d) for (i, j), d in found.items())])


def _compared(
    hashes: np.ndarray, threshold: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(N, 32) uint8 -> blocks of (left, right, distance) within the threshold; pairs may repeat."""
    words = np.ascontiguousarray(hashes).view(np.uint64)
    for band in _bands(hashes, threshold + 1):
        for left, right in _equal_pairs(band):
            bits = np.bitwise_count(words[left] ^ words[right]).sum(1, dtype=np.int64)
            near = bits <= threshold
            if near.any():
                yield left[near], right[near], bits[near]


def _bands(hashes: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """The value of each band of bits, (N,) int64. Bits next to each other go to different bands:
    radiographs agree on whole rows of frequencies, and mixed bands halve the candidates."""
    bits = np.unpackbits(hashes, axis=1)
    for band in range(count):
        own = bits[:, band::count].astype(np.int64)
        yield own @ (1 << np.arange(own.shape[1], dtype=np.int64))


def _equal_pairs(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (left, right) of all pairs of equal values, in blocks."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    # Each position is paired with those behind it up to the end of its run of equal values.
    ends = np.searchsorted(ordered, ordered, side="right")
    following = ends - np.arange(len(values)) - 1
    total = np.concatenate([[0], np.cumsum(following)])
    start = 0
    while start < len(values):
        # At least one position at a time: a run is no longer than the data set.
        stop = max(start + 1, int(np.searchsorted(total, total[start] + _BLOCK, side="right")) - 1)
        counts = following[start:stop]
        left = np.repeat(np.arange(start, stop), counts)
        right = (
            left + 1 + np.arange(len(left)) - np.repeat(total[start:stop] - total[start], counts)
        )
        yield order[left], order[right]
        start = stop
