"""Addressed randomness: Philox4x32-10, vectorised. The same address always gives the same numbers.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); tested against the known
answers that its authors publish. Unlike a drawn stream it needs no state: whoever knows (seed,
epoch, key, copy) knows the numbers, on any rank, before and after a resume.
"""

import hashlib

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """counter: (N, 4) uint32; key: two 32-bit numbers -> (N, 4) uint32."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key[0] & 0xFFFFFFFF, key[1] & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _MASK,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def uniform(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """(N, 4) uint32 -> (N, 4) float64 in [0, 1)."""
    return philox(counter, key) * 2.0**-32


def name_words(name: str) -> tuple[int, int]:
    """A name as 64 bits, in two words: what stands for a sample's key in an address."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
