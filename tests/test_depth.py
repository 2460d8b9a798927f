"""shards.depth, png_16, netpbm: how values of more than 8 bits become grey."""

import numpy as np
import pytest
from deep_images import jpeg_2000, netpbm, picture, png, tiff, tiff_12
from hypothesis import given
from hypothesis import strategies as st

from shards.bad_image import BadImage
from shards.codec import decode_source, decode_values
from shards.depth import DEPTHS, UNSETTLED, BeyondDepth, Values, bits_of, depth_holding

ARRAYS = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=30)


def values_of(numbers: list[int], declared: int | None = None) -> Values:
    return Values(np.array(numbers, np.uint16)[None], declared)


@given(ARRAYS, st.sampled_from(DEPTHS))
def test_the_highest_8_of_the_bits_that_count(numbers, depth):
    values = values_of(numbers)
    if max(numbers) < 1 << depth:
        expected = [int(n * 256 / 2**depth) for n in numbers]
        assert values.grey(depth).tolist() == [expected]
        assert values.grey(depth).dtype == np.uint8
    else:
        with pytest.raises(BeyondDepth) as refused:
            values.grey(depth)
        assert refused.value.bits == len(f"{max(numbers):b}")


@given(ARRAYS)
def test_a_file_alone_is_never_guessed(numbers):
    values = values_of(numbers)
    if max(numbers) >= 1 << 14:
        assert np.array_equal(values.grey(None), values.grey(16))
    else:
        with pytest.raises(BeyondDepth, match=r"give --depth .*16$"):
            values.grey(None)


@given(ARRAYS)
def test_no_image_fits_a_depth_that_is_not_settled(numbers):
    with pytest.raises(BeyondDepth) as refused:
        values_of(numbers).grey(UNSETTLED)
    assert refused.value.bits == values_of(numbers).undeclared_bits >= 1


@given(st.lists(ARRAYS, min_size=1, max_size=5))
def test_the_smallest_depth_that_holds_every_image(images):
    depth = depth_holding(max(values_of(numbers).undeclared_bits for numbers in images))
    largest = max(max(numbers) for numbers in images)
    assert depth == min(d for d in DEPTHS if largest < 2**d)
    assert bits_of(largest) <= depth


@given(st.integers(8, 16), st.sampled_from([None, UNSETTLED, *DEPTHS]))
def test_a_declared_depth_goes_first(bits, depth):
    values = Values(picture(bits, 5, 7), bits)
    assert values.undeclared_bits == 0
    assert np.array_equal(values.grey(depth), values.array >> (bits - 8))


def test_8_bits_stay_as_they_are():
    grey = picture(8).astype(np.uint8)
    assert Values(grey).grey(UNSETTLED) is grey
    assert not Values(grey).deep


def test_the_message_names_the_numbers_and_the_option():
    with pytest.raises(BadImage, match=r"uses 12 bits, .*: give --depth 12, 14 or 16$"):
        values_of([4095]).grey(None)
    with pytest.raises(BadImage, match="uses 13 bits, over the depth of 12: --depth 14 or 16 "):
        values_of([4096]).grey(12)
    with pytest.raises(BadImage, match="uses 15 bits, over the depth of 14: --depth 16 holds it"):
        values_of([1 << 14]).grey(14)


GREY_12 = picture(12) >> 4


DECLARED = {
    "sBIT": png(picture(12), b"\x0c"),
    "sBIT of the highest bits": png(picture(12) << 4, b"\x0c"),  # as the standard has it
    "sBIT of stretched values": png(picture(12) << 4 | picture(12) >> 8, b"\x0c"),
    "sBIT of an RGB PNG": png(np.stack([picture(12)] * 3, -1), b"\x0c\x0c\x0c"),
    "sBIT of a PNG with alpha": png(np.stack([picture(12), 65535 - picture(16)], -1), b"\x0c\x10"),
    "sBIT of 16": png(picture(12) << 4, b"\x10"),
    "TIFF of 12": tiff_12(picture(12)),
    "PGM": netpbm(picture(12), 4095),
    "plain PGM": netpbm(picture(12), 4095, plain=True),
    "PPM": netpbm(np.stack([picture(12)] * 3, -1), 4095),
    "J2K": jpeg_2000(picture(12), 12, "j2k"),
    "JP2": jpeg_2000(picture(12), 12, "jp2"),
}


@pytest.mark.parametrize("name", DECLARED)
def test_what_a_file_declares(name):
    assert decode_values(DECLARED[name]).undeclared_bits == 0
    assert np.array_equal(decode_source(DECLARED[name], depth=UNSETTLED), GREY_12)


def test_the_luma_of_16_bit_colours():
    colours = np.stack([picture(16, seed=seed) for seed in range(3)], -1)
    expected = colours @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode_values(png(colours)).array - expected).max() <= 1
    assert np.abs(decode_source(png(colours)) - expected / 256).max() <= 1


def test_16_bit_colours_of_a_jpeg_2000_are_refused():
    """Of which Pillow keeps the high byte."""
    with pytest.raises(BadImage, match="16-bit colours: this kind is not read"):
        decode_source(jpeg_2000(np.stack([picture(12)] * 3, -1), 16))


def test_a_dark_png_of_the_highest_bits_stays_dark():
    dark = picture(8) << 4  # 12 bits, of which it uses 8
    assert np.array_equal(decode_source(png(dark, b"\x0c")), dark >> 8)


DAMAGED = bytearray(DECLARED["sBIT"])
DAMAGED[42] ^= 1  # sBIT's checksum
UNDECLARED = {
    "damaged sBIT": bytes(DAMAGED),
    "PNG": png(picture(12)),
    "RGB PNG": png(np.stack([picture(12)] * 3, -1)),
    "RGBA PNG": png(np.stack([picture(12)] * 3 + [picture(16)], -1)),
    "PNG with alpha": png(np.stack([picture(12), picture(16)], -1)),
    "sBIT of 7": png(picture(12), b"\x07"),
    "sBIT of 17": png(picture(12), b"\x11"),
    "TIFF": tiff(picture(12)),
    "TIFF with its largest value": tiff(picture(12), 4095),
    "PGM": netpbm(picture(12), 65535),
    "plain PGM": netpbm(picture(12), 65535, plain=True),
    "PPM": netpbm(np.stack([picture(12)] * 3, -1), 65535),
    "J2K": jpeg_2000(picture(12), 16, "j2k"),
    "JP2": jpeg_2000(picture(12), 16, "jp2"),
}


@pytest.mark.parametrize("name", UNDECLARED)
def test_16_bits_declare_nothing(name):
    assert decode_values(UNDECLARED[name]).undeclared_bits == 12
    assert np.array_equal(decode_source(UNDECLARED[name], depth=12), GREY_12)
    assert np.array_equal(decode_source(UNDECLARED[name], depth=16), picture(12) >> 8)


@pytest.mark.parametrize("plain", [False, True])
@given(most=st.integers(256, 65534), bits=st.integers(8, 16))
def test_a_pgm_goes_up_to_its_declared_maximum(plain, most, bits):
    values = np.minimum(picture(bits, 6, 5), most)
    expected = [[value * 256 // (most + 1) for value in row] for row in values.tolist()]
    assert decode_source(netpbm(values, most, plain=plain)).tolist() == expected


@pytest.mark.parametrize("plain", [False, True])
def test_a_pgm_beyond_its_maximum_or_cut_short_is_refused(plain):
    with pytest.raises(BadImage, match="0 to 4095, the header declares at most 4000"):
        decode_source(netpbm(picture(12), 4000, plain=plain))
    with pytest.raises(BadImage, match=r"30\d\d values, the header declares 3072"):
        decode_source(netpbm(picture(12), 4095, plain=plain)[:-7])
