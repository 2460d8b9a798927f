"""PNG's row filters undone for grey 8-bit images, 128 rows at a time (PNG specification, part 9).

A pixel needs the one before it, the one above it and the one before that, so row r of a block may
follow the row above it by one pixel: at step s it is at x = s - r, and the rows of a block are the
lanes of vectors. Turned sheared rows, in which lanes lie side by side, are OpenCV's work. 1024 x
1024: 0.5 ms; row after row it takes 1.9 ms at best. Importing this compiles it (2 s), or loads what
was compiled before (0.1 s).
"""

import cv2
import numpy as np
from numba import njit

_ROWS = 128  # lanes: 64 take 1.3 times as long
_BYTE = np.uint8
_SIGNATURE = "void(uint8[:, ::1], uint8[:], uint8[::1], uint8[:, ::1])"


def unfilter(flat: np.ndarray, width: int, height: int) -> np.ndarray:
    """(padded(width, height),) uint8, height rows of a filter's number and width bytes -> (height,
    width) uint8 pixels. Filters over 4 are taken for 0."""
    steps = width + _ROWS
    lanes, done = np.empty((2, steps, _ROWS), np.uint8)
    rows = np.empty((_ROWS, steps), np.uint8)
    image = np.empty((height, width), np.uint8)
    above = np.zeros(width, np.uint8)
    for top in range(0, height, _ROWS):
        begin = top * (width + 1)
        # Rows of width + 1 bytes, read as of width: each begins one pixel behind that above it.
        sheared = np.ndarray((_ROWS, steps), np.uint8, flat, begin + 1, (width, 1))
        # In two parts, because OpenCV takes no rows that overlap.
        cv2.transpose(sheared[:, :width], lanes[:width])
        cv2.transpose(sheared[:, width:], lanes[width:])
        filters = flat[begin : begin + _ROWS * (width + 1) : width + 1]
        _unfilter(lanes, filters, above, done)
        cv2.transpose(done, rows)
        upright = np.ndarray((_ROWS, width), np.uint8, rows, 0, (steps + 1, 1))
        there = image[top : top + _ROWS]
        there[:] = upright[: len(there)]
        above = there[-1]
    return image


def padded(width: int, height: int) -> int:
    """Bytes of the array that unfilter() wants; those behind the last row may hold anything."""
    return -(-height // _ROWS) * _ROWS * (width + 1) + 1


def _compute(lanes: np.ndarray, filters: np.ndarray, above: np.ndarray, done: np.ndarray) -> None:
    """One block. lanes: (width + rows, rows), at [s, r] the filtered byte of row r at x = s - r, or
    any outside the image; filters: (rows,); above: (width,), the pixels above the block; done: the
    pixels, in the order of `lanes`.

    All is unsigned 8-bit without a branch, which LLVM makes vectors of. `x - y if x > y else 0` is
    its saturating difference. Paeth: of left, up and corner that one which is nearest to left + up
    - corner; with low and high the smaller and larger of left and up, that is low where
    2 (high - corner) <= corner - low, high where 2 (corner - low) <= high - corner, else corner.
    """
    steps, rows = lanes.shape
    width = len(above)
    zero = _BYTE(0)
    is_sub, is_up = np.empty(rows, np.uint8), np.empty(rows, np.uint8)
    is_average, is_paeth = np.empty(rows, np.uint8), np.empty(rows, np.uint8)
    for r in range(rows):
        is_sub[r] = 255 if filters[r] == 1 else 0
        is_up[r] = 255 if filters[r] == 2 else 0
        is_average[r] = 255 if filters[r] == 3 else 0
        is_paeth[r] = 255 if filters[r] == 4 else 0
    history = np.zeros((4, rows + 1), np.uint8)  # of the last steps; at 0 the row above the block
    for s in range(steps):
        before, last, now = history[s & 3], history[(s + 1) & 3], history[(s + 2) & 3]
        given, result = lanes[s], done[s]
        last[0] = above[s] if s < width else 0
        for r in range(rows):
            left, up, corner = last[r + 1], last[r], before[r]
            low = left if left < up else up
            high = up if left < up else left
            over = _BYTE(high - corner) if high > corner else zero
            under = _BYTE(corner - low) if corner > low else zero
            more_under = _BYTE(under - over) if under > over else zero
            more_over = _BYTE(over - under) if over > under else zero
            paeth = low if over <= more_under else corner
            paeth = high if under <= more_over else paeth
            average = _BYTE(_BYTE(left & up) + _BYTE(_BYTE(left ^ up) >> 1))
            predicted = _BYTE(
                _BYTE(left & is_sub[r])
                | _BYTE(up & is_up[r])
                | _BYTE(average & is_average[r])
                | _BYTE(paeth & is_paeth[r])
            )
            now[r + 1] = _BYTE(given[r] + predicted)
        for r in range(s + 1, rows):
            now[r + 1] = 0  # left of the image
        for r in range(rows):
            result[r] = now[r + 1]


try:
    _unfilter = njit(_SIGNATURE, nogil=True, error_model="numpy", cache=True)(_compute)
except RuntimeError:  # neither this folder nor the user's cache can be written to
    _unfilter = njit(_SIGNATURE, nogil=True, error_model="numpy")(_compute)
