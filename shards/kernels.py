"""The compiled loops: PNG filters, resize, warp, JPEG scans. Only `compiled` imports this, where
they are not compiled yet.

Arrays come as addresses, contiguous unless a stride is given. Lines that look alike are the lanes
of vectors: LLVM makes them of loops without branches over 8-bit and 32-bit integers.
"""

import numpy as np
from numba import carray, cfunc, njit

from shards.compiled import BITS, MIRROR, PLAIN, ROWS, TAPS, WARP

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


@cfunc(
    f"void({_BYTES}, CPointer(uint16), CPointer(int32), CPointer(int64), "
    "int64, int64, int64, int64, int64)",
    error_model="numpy",
)
def walk_scan(data_at, tables_at, plan_at, found_at, begin, end, blocks, units, restart):  # type: ignore[no-untyped-def]
    """Read every Huffman code of a scan of a JPEG (`jpeg_scan` tells why).

    data: the file, (end,) bytes, the scan from `begin`; tables: (8, 65536), for 16 bits the length
    of the code that they begin with << 8 | its value, 0: none; plan: (blocks, 2), of each block of
    a unit the tables of its first and of its other codes (-1: lossless, which has no others);
    restart: units between restart markers, 0: none; found: what is wrong (0: nothing; 1: the data
    end early, 2: no such code, 3: data left over, 4: no restart marker), and where the scan ends.
    """
    data = carray(data_at, (end,))
    tables = carray(tables_at, (8 * 65536,))
    plan = carray(plan_at, (blocks * 2,))
    found = carray(found_at, (2,))
    at, wrong = begin, 0
    bits, have, made = (
        np.int64(0),
        np.int64(0),
        np.int64(0),
    )  # the last `have` bits are unread, `made` of them made up
    next_marker = 0xD0
    unit = 0
    while wrong == 0 and unit <= units:
        if unit == units or (restart > 0 and unit > 0 and unit % restart == 0):
            if have - made >= 8 or (at < end and data[at] != 0xFF):
                wrong = 3
            elif unit < units:
                while at + 1 < end and data[at] == 0xFF and data[at + 1] == 0xFF:
                    at += 1
                if at + 1 < end and data[at] == 0xFF and data[at + 1] == next_marker:
                    next_marker = 0xD0 + ((next_marker + 1) & 7)
                    at, bits, have, made = at + 2, np.int64(0), np.int64(0), np.int64(0)
                else:
                    wrong = 4
            if unit == units or wrong:
                break
        for block in range(blocks):
            k = np.int64(0)
            while k < 64 and wrong == 0:
                while have < 32:
                    byte = np.int64(0)
                    if at < end and data[at] != 0xFF:
                        byte = np.int64(data[at])
                        at += 1
                    elif at + 1 < end and data[at + 1] == 0:
                        byte = np.int64(0xFF)
                        at += 2
                    else:
                        made += 8
                    bits = ((bits << 8) | byte) & 0xFFFFFFFFFF
                    have += 8
                which = plan[2 * block + (1 if k > 0 else 0)]
                code = np.int64(tables[which * 65536 + ((bits >> (have - 16)) & 0xFFFF)])
                size = code & 15
                if code == 0:
                    wrong = 2
                elif k == 0:
                    size = code & 0xFF
                    wrong = 2 if size > 16 else 0
                    size = np.int64(0) if size == 16 else size
                    k = np.int64(64 if plan[2 * block + 1] < 0 else 1)
                else:
                    run = (code >> 4) & 15
                    if size == 0 and run < 15:
                        k = np.int64(64)
                    else:
                        k += run + 1
                        wrong = 2 if k > 64 else 0
                have -= (code >> 8) + size
                if have < made:
                    wrong = 1
        unit += 1
    found[0] = wrong
    found[1] = at


@njit(error_model="numpy")
def _pack_corners(image, corners):  # type: ignore[no-untyped-def]
    """corners (size + 2, size + 2): at [y, x] the four pixels of image (size, size), black outside,
    whose upper left one is (x - 1, y - 1), a byte each: upper two, lower two."""
    size = len(image)
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


@njit(error_model="numpy")
def _warp(corners, matrix, out, places, four, across, down):  # type: ignore[no-untyped-def]
    """out (size, size): the image of these corners, flat, sampled bilinearly at matrix (2, 3) times
    (x, y, 1) and rounded; the rest is scratch, (size,) each. A row in three passes, so that all but
    the look-up are vectors."""
    size = len(out)
    first, behind, half = np.float32(0), np.float32(size + 1), np.float32(0.5)
    wide, byte = np.int32(size + 2), np.uint32(255)
    a, d = matrix[0, 0], matrix[1, 0]
    for y in range(size):
        c = np.float32(matrix[0, 1] * np.float32(y) + matrix[0, 2]) + np.float32(1)
        f = np.float32(matrix[1, 1] * np.float32(y) + matrix[1, 2]) + np.float32(1)
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


@njit(error_model="numpy")
def _mirror(image, out):  # type: ignore[no-untyped-def]
    size = len(image)
    for y in range(size):
        given, row = image[y], out[y]
        for x in range(size):
            row[x] = given[size - 1 - x]


@njit(error_model="numpy")
def _normalise(grey, factors, out):  # type: ignore[no-untyped-def]
    """out (size, 3 * size): of each grey level (size, size) three channels, level * factors[0, c] +
    factors[1, c], rounded after each step."""
    a, b, c = factors[0, 0], factors[0, 1], factors[0, 2]
    u, v, w = factors[1, 0], factors[1, 1], factors[1, 2]
    for y in range(len(grey)):
        levels, row = grey[y], out[y]
        for x in range(len(grey)):
            level = np.float32(levels[x])
            row[3 * x] = level * a + u
            row[3 * x + 1] = level * b + v
            row[3 * x + 2] = level * c + w


@njit(error_model="numpy")
def _look_up(grey, table, out):  # type: ignore[no-untyped-def]
    """out (size, 3 * size): of each grey level (size, size) the first three of table's (256, 4)
    row. Four are written at a time, which is one store; the next pixel overwrites the last."""
    last = len(grey) - 1
    for y in range(len(grey)):
        levels, row = grey[y], out[y]
        for x in range(last):
            found = table[levels[x]]
            a, b, c, d = found[0], found[1], found[2], found[3]
            row[3 * x], row[3 * x + 1], row[3 * x + 2], row[3 * x + 3] = a, b, c, d
        for channel in range(3):
            row[3 * last + channel] = table[levels[last], channel]


@njit(error_model="numpy")
def _render(finish, table, images, plan, matrices, out, packing, warped, found, shares):  # type: ignore[no-untyped-def]
    """Copies of images (N, size, size) -> out (K, size, 3 * size). Each row of plan (n, 3): a
    copy's image, its number in matrices (K, 2, 3) and out, and one of PLAIN, MIRROR and WARP;
    best the copies of one image one after another. The rest is scratch."""
    corners, flat_corners = packing
    packed = -1
    for i in range(len(plan)):
        sample, number, how = plan[i, 0], plan[i, 1], plan[i, 2]
        image = images[sample]
        if how == MIRROR:
            _mirror(image, warped)
        elif how == WARP:
            if sample != packed:
                _pack_corners(image, corners)
            packed = sample
            matrix, places, four = matrices[number], found[0], found[1]
            _warp(flat_corners, matrix, warped, places, four, shares[0], shares[1])
        if how == PLAIN:
            finish(image, table, out[number])
        else:
            finish(warped, table, out[number])


def _renderer(kind, finish, shape):  # type: ignore[no-untyped-def]
    """`_render` for an output of that type, with a table of that shape."""
    floats, words = "CPointer(float32)", "CPointer(uint32)"
    given = f"CPointer({kind}), {_BYTES}, CPointer(int64), {floats}, CPointer({kind})"
    many = 1 << 30  # in the place of a length that is not needed

    @cfunc(
        f"void({given}, {words}, {_BYTES}, {words}, {floats}, int64, int64)", error_model="numpy"
    )
    def render(table, images, plan, matrices, out, corners, warped, found, shares, size, count):  # type: ignore[no-untyped-def]
        wide = size + 2
        _render(
            finish,
            carray(table, shape),
            carray(images, (many, size, size)),
            carray(plan, (count, 3)),
            carray(matrices, (many, 2, 3)),
            carray(out, (many, size, 3 * size)),
            (carray(corners, (wide, wide)), carray(corners, (wide * wide,))),
            carray(warped, (size, size)),
            carray(found, (2, size)),
            carray(shares, (2, size)),
        )

    return render


render_float32 = _renderer("float32", _normalise, (2, 3))
render_uint16 = _renderer("uint16", _look_up, (256, 4))
