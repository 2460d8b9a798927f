"""PNGs with a damaged part: what decides the pixels must be right, the rest is harmless."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.codec import BadImage, decode_source, read_header
from shards.png import png_chunks

GREY = (
    np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))
    + np.arange(40, dtype=np.uint8)[:, None] // 8
)
IMAGES = {
    "1": Image.fromarray(GREY > 99),
    "L": Image.fromarray(GREY),
    "P": Image.fromarray(GREY).convert("P"),
    "RGB": Image.fromarray(np.dstack([GREY] * 3)),
    "RGBA": Image.fromarray(np.dstack([GREY] * 4)),
    "I;16": Image.fromarray(GREY.astype(np.uint16) * 257),
}


def png(mode: str) -> bytes:
    buffer = io.BytesIO()
    IMAGES[mode].save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes, *, right: bool = True) -> bytes:
    checksum = zlib.crc32(kind + content) ^ (not right)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def with_pixels(data: bytes, packed: bytes) -> bytes:
    """With these compressed pixels instead of its own."""
    chunks = [(kind, data[begin + 4 : end]) for kind, begin, end in png_chunks(data)]
    kept = [chunk(kind, part) for kind, part in chunks if kind not in (b"IDAT", b"IEND")]
    return data[:8] + b"".join(kept) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def packed_of(data: bytes) -> bytes:
    return b"".join(
        data[begin + 4 : end] for kind, begin, end in png_chunks(data) if kind == b"IDAT"
    )


@pytest.mark.parametrize("mode", IMAGES)
@pytest.mark.parametrize("kind", [b"tEXt", b"iTXt", b"zTXt", b"iCCP", b"pHYs", b"tIME", b"tRNS"])
def test_a_wrong_crc_of_what_decides_no_pixel_is_harmless(mode, kind):
    data = png(mode)
    damaged = data[:33] + chunk(kind, b"Comment\0x", right=False) + data[33:]
    assert np.array_equal(decode_source(damaged), decode_source(data))
    assert read_header(damaged) == read_header(data)


@pytest.mark.parametrize("mode", IMAGES)
@pytest.mark.parametrize("kind", [b"eXIf", b"acTL"])
def test_a_wrong_crc_of_what_decides_the_picture_is_not(mode, kind):
    data = png(mode)
    with pytest.raises(BadImage, match=f"wrong CRC of the chunk '{kind.decode()}'"):
        decode_source(data[:33] + chunk(kind, b"12345678", right=False) + data[33:])


@pytest.mark.parametrize("mode", IMAGES)
def test_a_wrong_crc_of_the_pixels_is_not(mode):
    data = bytearray(png(mode))
    data[data.index(b"IEND") - 5] ^= 1
    with pytest.raises(BadImage, match="wrong CRC of the chunk 'IDAT'"):
        decode_source(bytes(data))


@pytest.mark.parametrize("mode", IMAGES)
def test_a_wrong_adler_is_passed_over_where_every_crc_is_right(mode):
    data = png(mode)
    packed = packed_of(data)
    wrong = packed[:-1] + bytes([packed[-1] ^ 1])
    assert np.array_equal(decode_source(with_pixels(data, wrong)), decode_source(data))


@pytest.mark.parametrize("mode", IMAGES)
def test_pixels_that_end_early_are_refused(mode):
    data = png(mode)
    rows = zlib.decompress(packed_of(data))
    for packed in (
        zlib.compress(rows[: len(rows) // 2]),
        packed_of(data)[: len(packed_of(data)) // 2],
    ):
        with pytest.raises(BadImage, match="does not decode"):
            decode_source(with_pixels(data, packed))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 5), (8, 8), (17, 9)])
def test_interlaced_pixels_of_few_bits_are_read(bits, width, height):
    """All of the largest value, so that the order of the passes does not matter."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    content = b""
    for x, y, across, down in [*passes, (0, 1, 1, 2)]:
        columns = len(range(x, width, across))
        row = b"\0" + b"\xff" * ((columns * bits + 7) // 8)
        content += row * len(range(y, height, down)) if columns else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 1))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b"")
    assert (decode_source(with_pixels(data, zlib.compress(content))) == 255).all()
    with pytest.raises(BadImage, match=f"are not {len(content)} bytes"):
        decode_source(with_pixels(data, zlib.compress(content[:-1])))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_index_beyond_the_palette_is_refused(bits):
    indices = np.array([[0, 1], [2, 3]], np.uint8)
    shifts = np.arange(0, 8, bits)[::-1][:2]
    lines = [
        bytes([0, *row]) if bits == 8 else bytes([0, int((row << shifts).sum())]) for row in indices
    ]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, bits, 3, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")
    for colours in (4, 3):
        palette = chunk(b"PLTE", bytes(value for n in range(colours) for value in (n * 9,) * 3))
        data = b"\x89PNG\r\n\x1a\n" + header + palette + end
        if colours == 4:
            assert np.array_equal(decode_source(data), indices * 9)
        else:
            with pytest.raises(BadImage, match="palette index 3, of 3 colours"):
                decode_source(data)
