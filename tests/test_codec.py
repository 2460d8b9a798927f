"""shards.codec: every readable kind of image becomes the right grey, the rest says why not."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.codec import (
    MAX_PIXELS,
    BadImage,
    _is_plain_jpeg,
    decode_doubtful,
    decode_grey,
    encode,
    is_htj2k,
    read_header,
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (128 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 9), st.sampled_from(["htj2k", "png"]))
def test_lossless_encodings_give_the_pixels_back(height, width, seed, encoding):
    image = noise(height, width, seed)
    assert np.array_equal(decode_grey(encode(image, encoding)), image)


def test_jpeg_is_close():
    image = smooth(64, 80)
    back = decode_grey(encode(image, "jpeg")).astype(int)
    assert np.abs(back - image).mean() < 1.5


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 9))
def test_plain_jpegs_are_pillows_pixels(height, width, seed):
    data = encode(noise(height, width, seed), "jpeg")
    assert _is_plain_jpeg(data, MAX_PIXELS)
    assert np.array_equal(decode_grey(data), decode_doubtful(data))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("CMYK", {}),
        ("L", {"progressive": True}),
        ("L", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),
    ],
)
def test_other_jpegs_are_left_to_pillow(mode, options):
    data = saved(Image.fromarray(smooth(40, 30)).convert(mode), "JPEG", **options)
    assert not _is_plain_jpeg(data, MAX_PIXELS)
    assert np.array_equal(decode_grey(data), decode_doubtful(data))


@given(st.binary(max_size=40))
def test_any_beginning_of_a_jpeg_is_looked_at(middle):
    assert not _is_plain_jpeg(b"\xff\xd8\xff" + middle + b"\xff\xd9", 0)


@pytest.mark.parametrize("length", [0, 7])
def test_a_box_that_has_no_length_ends_the_search(length: int):
    data = bytearray(encode(noise(20, 30), "htj2k"))
    data[12:16] = length.to_bytes(4, "big")
    with pytest.raises(BadImage, match="cut short"):
        decode_grey(bytes(data))


def test_encoding_is_deterministic():
    image = smooth(50, 60)
    for encoding in ("htj2k", "jpeg", "png"):
        assert encode(image, encoding) == encode(image.copy(), encoding)


def test_keep_has_no_encoder():
    with pytest.raises(ValueError, match="htj2k, jpeg, png"):
        encode(smooth(4, 4), "keep")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
def test_modes_of_png(mode):
    grey = smooth(40, 30)
    image = Image.fromarray(grey).convert(mode)
    assert np.array_equal(decode_grey(saved(image, "PNG")), grey)


def test_alpha_is_dropped_not_blended():
    grey = smooth(20, 20)
    rgba = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    assert np.array_equal(decode_grey(saved(Image.fromarray(rgba, "RGBA"), "PNG")), grey)


def test_colour_becomes_itu_601_luma():
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode_grey(saved(Image.fromarray(rgb), "PNG")) - luma).max() <= 1


def test_sixteen_bits_keep_the_high_byte():
    deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    assert np.array_equal(decode_grey(saved(Image.fromarray(deep), "PNG")), deep >> 8)


def test_one_bit_png():
    bits = smooth(24, 24) > 128
    image = Image.fromarray(bits)
    assert np.array_equal(decode_grey(saved(image, "PNG")), bits * np.uint8(255))


def test_exif_turn_is_applied():
    grey = smooth(32, 48)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned = decode_grey(saved(Image.fromarray(grey), "JPEG", quality=95, exif=exif))
    assert turned.shape == (48, 32)
    assert np.abs(turned.astype(int) - np.rot90(grey, -1)).mean() < 2


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "PPM"])
def test_other_formats(kind):
    grey = smooth(20, 30)
    assert np.array_equal(decode_grey(saved(Image.fromarray(grey), kind)), grey)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not an image"),
        (encode(smooth(64, 64), "png")[:300], "does not decode"),
        (encode(noise(64, 64), "jpeg")[:-500], "does not decode"),
        (encode(smooth(64, 64), "htj2k")[:300], "cut short"),
        (encode(smooth(64, 64), "htj2k")[:30], "cut short"),
    ],
)
def test_bad_bytes_say_why(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode_grey(data)


def test_a_flipped_bit_in_a_png_is_found():
    data = bytearray(encode(noise(64, 64), "png"))
    data[len(data) // 2] ^= 1
    with pytest.raises(BadImage):
        decode_grey(bytes(data))


@pytest.mark.parametrize("encoding", ["png", "jpeg", "htj2k"])
def test_declared_size_is_bounded_before_decoding(encoding):
    with pytest.raises(BadImage, match="over the limit of 1000"):
        decode_grey(encode(smooth(40, 40), encoding), max_pixels=1000)


def test_animation_is_refused():
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImage, match="several images"):
        decode_grey(data)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_bad(data):
    for prefix in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"):
        with contextlib.suppress(BadImage):
            assert decode_grey(prefix + data, 10_000).dtype == np.uint8


def test_header_and_signature():
    data = encode(smooth(30, 50), "png")
    header = read_header(data)
    assert (header.format, header.mode, header.width, header.height) == ("PNG", "L", 50, 30)
    assert is_htj2k(encode(smooth(8, 8), "htj2k"))
    assert not is_htj2k(data)


@pytest.mark.parametrize("shape", [(512, 624), (40, 30), (1, 1)])
def test_htj2k_is_of_the_kind_that_nvjpeg2000_decodes(shape):
    """Its library refuses other profiles, several layers, SOP and EPH markers, and code blocks that
    are not all HT; DALI would then decode on the CPU without a word."""
    data = encode(np.random.default_rng(0).integers(0, 256, shape, np.uint8), "htj2k")
    at, found = data.index(b"\xff\x4f") + 2, {}
    while (marker := data[at : at + 2]) != b"\xff\x90":  # the first tile
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found[marker[1]] = data[at + 4 : at + 2 + length]
        at += 2 + length
    size, capabilities, style = found[0x51], found[0x50], found[0x52]
    assert size[:2] == b"\x40\x00"  # Rsiz: HTJ2K, no profile
    assert size[2:10] == size[18:26]  # one tile
    assert size[34:36] == b"\x00\x01"  # one component
    assert capabilities == b"\x00\x02\x00\x00" + b"\x00\x02"  # all HT, one set, reversible
    assert style[0] & 6 == 0  # neither SOP nor EPH
    assert style[2:4] == b"\x00\x01"  # layers
    assert (style[6], style[7], style[8]) == (4, 4, 64)  # blocks of 64 x 64, HT
