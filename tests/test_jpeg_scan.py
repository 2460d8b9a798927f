"""shards.jpeg_scan: whole JPEGs of each sequential kind pass, damage decoders forgive fails."""

import io

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.bad_image import BadImage
from shards.jpeg_scan import as_stored, read_frame

GREY = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8).repeat(8, 0).repeat(8, 1)
COLOUR = np.dstack([GREY, 255 - GREY, GREY // 2])
KINDS = {
    "grey": lambda: written(GREY),
    "grey with restarts": lambda: written(GREY, restart_marker_blocks=5),
    "colour": lambda: written(COLOUR, subsampling="4:4:4"),
    "colour, subsampled": lambda: written(COLOUR, subsampling="4:2:0"),
    "colour with restarts": lambda: written(COLOUR, subsampling="4:2:0", restart_marker_rows=1),
    "odd size": lambda: written(COLOUR[:75, :83], subsampling="4:2:0"),
    "12 bits": lambda: bytes(
        imagecodecs.jpeg8_encode(GREY.astype(np.uint16) * 16, bitspersample=12)
    ),
    "lossless 8": lambda: bytes(imagecodecs.ljpeg_encode(GREY)),
    "lossless 16": lambda: bytes(imagecodecs.ljpeg_encode(GREY.astype(np.uint16) * 257)),
}


def written(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def scan_of(data: bytes) -> int:
    """Where the first scan's data begin."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [b"", b"\0", b"\xff\xff\0", b"  ", b"more" * 9])
def test_a_whole_file_ends_at_its_end_whatever_stands_behind(kind, behind):
    data = KINDS[kind]()
    frame = read_frame(data + behind)
    assert frame.end == len(data)
    assert (frame.rows, frame.columns) == (75, 83) if kind == "odd size" else GREY.shape


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_scan_is_no_scan(kind):
    data = KINDS[kind]()
    begin = scan_of(data)
    half = data[: begin + (len(data) - begin) // 2]
    for end in (b"", b"\0", b"\xff\xd9"):
        with pytest.raises(BadImage, match=r"ends before its last pixel|does not have|is missing"):
            read_frame(half + end)


@pytest.mark.parametrize("kind", ["grey", "colour", "12 bits", "grey with restarts"])
def test_zeros_in_the_middle(kind):
    data = KINDS[kind]()
    begin = scan_of(data)
    third = (len(data) - begin) // 3
    with pytest.raises(BadImage, match=r"damaged JPEG|ends before"):
        read_frame(data[: begin + third] + bytes(third) + data[begin + 2 * third :])


def test_a_lost_restart_interval():
    data = KINDS["grey with restarts"]()
    first, second = data.index(b"\xff\xd1"), data.index(b"\xff\xd2")
    with pytest.raises(BadImage, match="a restart marker is missing"):
        read_frame(data[:first] + data[second:])


@pytest.mark.parametrize("rows", [GREY.shape[0] // 2, GREY.shape[0] * 2])
def test_a_height_that_is_not_there(rows):
    data = KINDS["grey"]()
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(BadImage, match=r"more data than pixels|ends before its last pixel"):
        read_frame(data[:at] + rows.to_bytes(2, "big") + data[at + 2 :])


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=30))
def test_any_damage_is_a_reason_or_harmless(at, noise):
    data = bytearray(KINDS["grey with restarts"]())
    at %= len(data)
    data[at : at + len(noise)] = noise
    try:
        frame = read_frame(bytes(data))
    except BadImage:
        return
    assert 0 < frame.end <= len(data)


def test_processes_that_are_not_walked():
    with pytest.raises(BadImage, match="progressive"):
        read_frame(written(GREY, progressive=True))
    with pytest.raises(BadImage, match="do not begin as a JPEG"):
        read_frame(b"\x89PNG" * 9)


def test_three_components_as_they_are_stored():
    data = written(COLOUR, subsampling="4:4:4")
    frame = read_frame(data)
    assert frame.ycc
    found = np.asarray(imagecodecs.jpeg8_decode(as_stored(data, frame))).astype(int)
    luma = np.asarray(Image.fromarray(COLOUR).convert("L"))
    assert np.abs(found[..., 0] - luma).max() <= 4
    again = read_frame(as_stored(data, frame))
    assert again.ycc is False
    assert again.end == len(as_stored(data, frame))
