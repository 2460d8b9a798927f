"""shards.png and shards.unfilter: the pixels that Pillow reads, or left to the other decoders."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards import codec, png
from shards.codec import BadImage, decode_doubtful, decode_source

MAX = 10**8


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def written(
    rows: np.ndarray, *, header: tuple[int, ...] = (8, 0, 0, 0, 0), extra: bytes = b""
) -> bytes:
    """A PNG of (H, 1 + W) filtered rows, its pixels in three IDAT chunks."""
    packed = zlib.compress(rows.tobytes())
    size = struct.pack(">II5B", rows.shape[1] - 1, rows.shape[0], *header)
    cuts = [packed[:7], packed[7:30], packed[30:]]
    parts = [chunk(b"IDAT", part) for part in cuts]
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", size), extra, *parts, chunk(b"IEND", b"")]
    )


def filtered(filters: np.ndarray, seed: int, width: int) -> np.ndarray:
    """Rows of random bytes after these filters: every byte is a valid one."""
    rows = np.random.default_rng(seed).integers(0, 256, (len(filters), width + 1), np.uint8)
    rows[:, 0] = filters
    return rows


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image)


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize(
    ("width", "height"), [(300, 257), (1, 300), (300, 1), (128, 128), (5, 129)]
)
def test_each_filter_gives_the_pixels_of_pillow(kind, width, height):
    data = written(filtered(np.full(height, kind), kind, width))
    assert np.array_equal(png.decode_plain_png(data, MAX), by_pillow(data))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=300), st.integers(1, 200), st.integers(0, 9)
)
@example([4, 3, 2, 1, 0] * 60, 131, 0)
@settings(max_examples=60, deadline=None)
def test_filters_in_any_order_do_too(filters, width, seed):
    data = written(filtered(np.array(filters), seed, width))
    assert np.array_equal(png.decode_plain_png(data, MAX), by_pillow(data))


def test_pixels_at_the_ends_of_the_scale_do_too():
    """Where the predictors meet their limits: only 0, 1, 254 and 255, each with each."""
    rows = np.random.default_rng(0).choice(np.array([0, 1, 254, 255], np.uint8), (640, 641))
    rows[:, 0] = np.arange(640) % 5
    data = written(rows)
    assert np.array_equal(png.decode_plain_png(data, MAX), by_pillow(data))


def test_a_file_that_pillow_wrote():
    y, x = np.mgrid[:400, :333]
    image = ((np.hypot(y - 200, x - 160) * 3) % 256).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    assert np.array_equal(png.decode_plain_png(file.getvalue(), MAX), image)


ROWS = filtered(np.arange(40) % 5, 1, 50)
GOOD = written(ROWS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:20],
        GOOD[:-12],
        written(ROWS, header=(8, 0, 0, 0, 1)),
        written(np.zeros((40, 1 + 3 * 50), np.uint8), header=(8, 2, 0, 0, 0)),
        written(ROWS, extra=chunk(b"tRNS", b"\0\7")),
        written(ROWS, extra=chunk(b"eXIf", b"II*\0")),
        written(ROWS, extra=chunk(b"acTL", bytes(8))),
        written(ROWS, extra=chunk(b"IDAT", b"") + chunk(b"tEXt", b"a\0b")),
        written(filtered(np.full(40, 5), 0, 50)),
        written(ROWS[:-1]).replace(struct.pack(">II", 50, 39), struct.pack(">II", 50, 40)),
        b"\xff\xd8\xff\xe0" + bytes(100),
    ],
)
def test_what_is_not_plain_is_left_to_the_others(data):
    assert png.decode_plain_png(data, MAX) is None


def test_too_many_pixels_are_left_to_the_others():
    assert png.decode_plain_png(GOOD, 50 * 40) is not None
    assert png.decode_plain_png(GOOD, 50 * 40 - 1) is None
    with pytest.raises(BadImage, match="over the limit of 1999"):
        decode_source(GOOD, 1999)


@pytest.mark.parametrize("place", range(0, len(GOOD), 7))
def test_no_flipped_bit_gives_other_pixels(place):
    damaged = bytearray(GOOD)
    damaged[place] ^= 4
    found = png.decode_plain_png(bytes(damaged), MAX)
    assert found is None
    try:
        found = decode_source(bytes(damaged), MAX)
    except BadImage:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "decode_plain_png", lambda *_: None)
        assert np.array_equal(found, decode_doubtful(bytes(damaged)))
