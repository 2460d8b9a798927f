"""shards.orientation: in every format and depth the EXIF tag turns, and nothing else."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from shards.codec import decode_source
from shards.orientation import exif_orientation, turned

Y, X = np.mgrid[:24, :40]
GREY = (3 * Y + 4 * X).astype(np.uint8)
MODES = {
    "L": Image.fromarray(GREY),
    "RGB": Image.fromarray(np.dstack([GREY] * 3)),
    "LA": Image.fromarray(GREY).convert("LA"),
    "P": Image.fromarray(GREY).convert("P"),
    "I;16": Image.fromarray(GREY.astype(np.uint16) * 257),
}
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>"""


def exif(orientation: int, order: str = "<") -> bytes:
    entry = struct.pack(f"{order}HHIHH", 274, 3, 1, orientation, 0)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(orientation: int) -> np.ndarray:
    image = Image.fromarray(GREY)
    image.getexif()[274] = orientation
    return np.array(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_each_turn_is_the_one_of_pillow(orientation, order):
    assert exif_orientation(b"Exif\0\0" + exif(orientation, order)) == orientation
    assert np.array_equal(turned(GREY, orientation), by_pillow(orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_a_png_of_any_depth_is_turned_by_its_exif(mode, orientation):
    data = saved(MODES[mode], "PNG", exif=exif(orientation))
    assert np.array_equal(decode_source(data), by_pillow(orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_a_tiff_of_any_depth_is_turned_by_its_tag(mode, orientation):
    data = saved(MODES[mode], "TIFF", tiffinfo={274: orientation})
    assert np.array_equal(decode_source(data), by_pillow(orientation))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["JPEG", "WebP"])
def test_a_jpeg_and_a_webp_are_turned_by_their_exif(kind, mode, orientation):
    options = {"exif": b"Exif\0\0" + exif(orientation), "quality": 100, "lossless": True}
    found = decode_source(saved(MODES[mode], kind, **options))
    assert found.shape == by_pillow(orientation).shape
    assert np.abs(found.astype(int) - by_pillow(orientation)).max() <= 4


@pytest.mark.parametrize("mode", MODES)
def test_xmp_turns_no_png(mode):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    assert np.array_equal(decode_source(saved(MODES[mode], "PNG", pnginfo=info)), GREY)


@pytest.mark.parametrize("mode", MODES)
def test_a_raw_profile_turns_no_png(mode):
    info = PngImagePlugin.PngInfo()
    block = b"Exif\0\0" + exif(6)
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    assert np.array_equal(decode_source(saved(MODES[mode], "PNG", pnginfo=info)), GREY)


@pytest.mark.parametrize("mode", [*MODES, "CMYK"])
def test_xmp_turns_no_tiff(mode):
    image = MODES["RGB"].convert("CMYK") if mode == "CMYK" else MODES[mode]
    found = decode_source(saved(image, "TIFF", tiffinfo={700: XMP}))
    assert np.abs(found.astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["JPEG", "WebP"])
def test_xmp_turns_no_jpeg_and_no_webp(kind, mode):
    data = saved(MODES[mode], kind, xmp=XMP, quality=100, lossless=True)
    assert decode_source(data).shape == GREY.shape


@pytest.mark.parametrize(
    "block",
    [b"", b"II*\0", exif(9), exif(0), exif(6)[:14], b"II*\0" + b"\xff" * 30, b"XX" + exif(6)[2:]],
)
def test_a_damaged_tag_turns_nothing(block):
    assert exif_orientation(block) == 1


@given(st.binary(max_size=60), st.sampled_from([b"II*\0", b"MM\0*", b"Exif\0\0II*\0\x08\0\0\0"]))
def test_any_block_has_an_orientation(rest, begin):
    assert 1 <= exif_orientation(begin + rest) <= 8
