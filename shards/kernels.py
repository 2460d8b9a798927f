"""The loops that are compiled. Only `compiled` imports this, where they are not compiled yet.

Arrays come as addresses, contiguous unless a stride is given. Lines that look alike are the lanes
of vectors: LLVM makes them of loops without branches over 8-bit and 32-bit integers.
"""

import numpy as np
from numba import carray, cfunc

from shards.compiled import BITS, ROWS, TAPS

_BYTE = np.uint8
_BYTES = "CPointer(uint8)"


@cfunc(f"void({_BYTES}, {_BYTES}, {_BYTES}, {_BYTES}, {_BYTES}, int64)", error_model="numpy")
def unfilter_rows(lanes_at, filters_at, above_at, scratch_at, done_at, width):  # type: ignore[no-untyped-def]
    """PNG's filters undone in one block of rows (`unfilter` tells how it is laid out).

    lanes: (width + ROWS, ROWS), at [s, r] the filtered byte of row r at x = s - r, or any outside
    the image; filters: (ROWS, width + 1), of each row the first; above: (width,), the pixels above
    the block; scratch: (8, ROWS + 1); done: the pixels, in the order of `lanes`.

    `x - y if x > y else 0` is a saturating difference. Paeth: of left, up and corner that one which
    is nearest to left + up - corner; with low and high the smaller and larger of left and up, that
    is low where 2 (high - corner) <= corner - low, high where 2 (corner - low) <= high - corner,
    else corner.
    """
    lanes = carray(lanes_at, (width + ROWS, ROWS))
    filters = carray(filters_at, (ROWS * (width + 1),))
    above = carray(above_at, (width,))
    history = carray(scratch_at, (8, ROWS + 1))  # of the last 4 steps; at 0 the row above the block
    done = carray(done_at, (width + ROWS, ROWS))
    is_sub, is_up, is_average, is_paeth = history[4], history[5], history[6], history[7]
    for r in range(ROWS):
        filter_ = filters[r * (width + 1)]
        is_sub[r] = 255 if filter_ == 1 else 0
        is_up[r] = 255 if filter_ == 2 else 0
        is_average[r] = 255 if filter_ == 3 else 0
        is_paeth[r] = 255 if filter_ == 4 else 0
    for step in range(4):
        for r in range(ROWS + 1):
            history[step, r] = 0
    zero = _BYTE(0)
    for s in range(width + ROWS):
        before, last, now = history[s & 3], history[(s + 1) & 3], history[(s + 2) & 3]
        given, result = lanes[s], done[s]
        last[0] = above[s] if s < width else 0
        for r in range(ROWS):
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
        for r in range(s + 1, ROWS):
            now[r + 1] = 0  # left of the image
        for r in range(ROWS):
            result[r] = now[r + 1]


@cfunc(
    f"void({_BYTES}, CPointer(int64), CPointer(int32), {_BYTES}, CPointer(int32),"
    " int64, int64, int64, int64)",
    error_model="numpy",
)
def add_rows(image_at, starts_at, weights_at, out_at, sums_at, given, width, wanted, taps):  # type: ignore[no-untyped-def]
    """out (wanted, width): row i the sum of image's (given, width) rows from starts[i], times
    weights[i] (taps,) in units of 2**-BITS, rounded; sums: (width,), scratch. Rows behind the last
    must have the weight 0."""
    image = carray(image_at, (given, width))
    starts = carray(starts_at, (wanted,))
    weights = carray(weights_at, (wanted, taps))
    out = carray(out_at, (wanted, width))
    sums = carray(sums_at, (width,))
    end = given - 1
    for row in range(wanted):
        for i in range(width):
            sums[i] = 1 << (BITS - 1)
        for tap in range(0, taps, TAPS):
            at = starts[row] + tap
            a, b, c = image[min(at, end)], image[min(at + 1, end)], image[min(at + 2, end)]
            d, e, f = image[min(at + 3, end)], image[min(at + 4, end)], image[min(at + 5, end)]
            u, v, w = weights[row, tap], weights[row, tap + 1], weights[row, tap + 2]
            x, y, z = weights[row, tap + 3], weights[row, tap + 4], weights[row, tap + 5]
            for i in range(width):
                sums[i] += (
                    np.int32(a[i]) * u
                    + np.int32(b[i]) * v
                    + np.int32(c[i]) * w
                    + np.int32(d[i]) * x
                    + np.int32(e[i]) * y
                    + np.int32(f[i]) * z
                )
        for i in range(width):
            out[row, i] = np.uint8(sums[i] >> BITS)


@cfunc(f"void({_BYTES}, CPointer(float32), CPointer(float32), int64)", error_model="numpy")
def normalise_pixels(grey_at, factors_at, out_at, count):  # type: ignore[no-untyped-def]
    """out (count, 3): of each grey level (count,) three channels, level * factors[0, c] +
    factors[1, c], rounded after each step."""
    grey, factors = carray(grey_at, (count,)), carray(factors_at, (2, 3))
    out = carray(out_at, (count, 3))
    a, b, c = factors[0, 0], factors[0, 1], factors[0, 2]
    u, v, w = factors[1, 0], factors[1, 1], factors[1, 2]
    for i in range(count):
        level = np.float32(grey[i])
        out[i, 0] = level * a + u
        out[i, 1] = level * b + v
        out[i, 2] = level * c + w


@cfunc("void(CPointer(uint8), CPointer(uint16), CPointer(uint16), int64)", error_model="numpy")
def look_up_pixels(grey_at, table_at, out_at, count):  # type: ignore[no-untyped-def]
    """out (3 * count,): of each grey level (count,) the first three of table's (256, 4) row. Four
    are written at a time, which is one store; the next pixel overwrites the last."""
    grey, table = carray(grey_at, (count,)), carray(table_at, (256, 4))
    out = carray(out_at, (3 * count,))
    for i in range(count - 1):
        row = table[grey[i]]
        a, b, c, d = row[0], row[1], row[2], row[3]
        out[3 * i], out[3 * i + 1], out[3 * i + 2], out[3 * i + 3] = a, b, c, d
    if count > 0:
        row = table[grey[count - 1]]
        for channel in range(3):
            out[3 * count - 3 + channel] = row[channel]


@cfunc("void(CPointer(uint8), CPointer(uint32), int64)", error_model="numpy")
def pack_corners(image_at, corners_at, size):  # type: ignore[no-untyped-def]
    """corners (size + 2, size + 2): at [y, x] the four pixels of image (size, size), black outside,
    whose upper left one is (x - 1, y - 1), a byte each: upper two, lower two."""
    image = carray(image_at, (size, size))
    corners = carray(corners_at, (size + 2, size + 2))
    last = size - 1
    for y in range(size + 2):
        over, under, row = image[min(max(y - 1, 0), last)], image[min(y, last)], corners[y]
        has_over = np.uint32(255 if 0 < y <= size else 0)
        has_under = np.uint32(255 if y < size else 0)
        row[0] = (over[0] & has_over) << 8 | (under[0] & has_under) << 24
        for x in range(1, size):
            row[x] = (
                (np.uint32(over[x - 1]) & has_over)
                | (np.uint32(over[x]) & has_over) << 8
                | (np.uint32(under[x - 1]) & has_under) << 16
                | (np.uint32(under[x]) & has_under) << 24
            )
        row[size] = (over[last] & has_over) | (under[last] & has_under) << 16
        row[size + 1] = 0


@cfunc(
    f"void(CPointer(uint32), CPointer(float32), {_BYTES}, CPointer(uint32), CPointer(float32),"
    " int64)",
    error_model="numpy",
)
def warp_affine(corners_at, matrix_at, out_at, found_at, shares_at, size):  # type: ignore[no-untyped-def]
    """out (size, size): the image of `pack_corners`, sampled bilinearly at matrix (2, 3) times
    (x, y, 1), rounded; found: (2, size), shares: (2, size), scratch. A row in three passes, so that
    all but the look-up are vectors."""
    corners = carray(corners_at, ((size + 2) * (size + 2),))
    matrix, out = carray(matrix_at, (6,)), carray(out_at, (size, size))
    found, shares = carray(found_at, (2, size)), carray(shares_at, (2, size))
    places, four, across, down = found[0], found[1], shares[0], shares[1]
    first, behind, half = np.float32(0), np.float32(size + 1), np.float32(0.5)
    wide, byte = np.int32(size + 2), np.uint32(255)
    a, d = matrix[0], matrix[3]
    for y in range(size):
        c = np.float32(matrix[1] * np.float32(y) + matrix[2]) + np.float32(1)
        f = np.float32(matrix[4] * np.float32(y) + matrix[5]) + np.float32(1)
        row = out[y]
        for x in range(size):
            column = np.float32(np.int32(x))
            u, v = a * column + c, d * column + f
            u = u if u > first else first
            u = u if u < behind else behind
            v = v if v > first else first
            v = v if v < behind else behind
            left, top = np.int32(u), np.int32(v)
            across[x], down[x] = u - np.float32(left), v - np.float32(top)
            places[x] = np.uint32(top * wide + left)
        for x in range(size):
            four[x] = corners[np.uint64(places[x])]
        for x in range(size):
            k = four[x]
            p, q = np.float32(np.int32(k & byte)), np.float32(np.int32((k >> 8) & byte))
            r, s = np.float32(np.int32((k >> 16) & byte)), np.float32(np.int32(k >> 24))
            over, under = p + (q - p) * across[x], r + (s - r) * across[x]
            row[x] = np.uint8(np.int32(over + (under - over) * down[x] + half))
