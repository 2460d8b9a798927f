"""shards.tiff: each kind of TIFF gives the right grey, or says why it is not read."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
from deep_images import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiff_maker import packed, tiff

from shards.bad_image import BadImage
from shards.codec import decode_source, read_header

GREY = (picture(16) >> 8).astype(np.uint8)
DEEP = picture(16)
SIZE = GREY.shape
WHITE = 65535 - DEEP.astype(np.int64)


def bytes_of(values: np.ndarray, kind: str, order: str = "<") -> bytes:
    return values.astype(f"{order}{kind}").tobytes()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB").convert("L"))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("white", [False, True])
def test_few_bits_fill_the_scale(order, bits, white):
    values = GREY >> (8 - bits)
    stored = (1 << bits) - 1 - values if white else values
    data = tiff(packed(stored, bits), *SIZE, order=order, t258=bits, t262=int(not white))
    assert np.array_equal(decode_source(data), np.round(values * (255 / ((1 << bits) - 1))))


@pytest.mark.parametrize("order", "<>")
def test_white_is_zero_of_16_bits_is_turned_round(order):
    data = tiff(bytes_of(WHITE, "u2", order), *SIZE, order=order, t258=16, t262=0)
    assert np.array_equal(decode_source(data), DEEP >> 8)


def test_white_is_zero_of_16_bits_that_uses_fewer_has_no_known_black():
    data = tiff(bytes_of(picture(12), "u2"), *SIZE, t258=16, t262=0)
    with pytest.raises(BadImage, match="of 16 bits the values use 12; save it with 0 as black"):
        decode_source(data)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("white", [False, True])
def test_packed_values_have_their_declared_depth(bits, white):
    values = picture(bits)
    stored = (1 << bits) - 1 - values if white else values
    data = tiff(packed(stored, bits), *SIZE, t258=bits, t262=int(not white))
    assert np.array_equal(decode_source(data, depth=None), values >> (bits - 8))


def test_rows_of_packed_values_begin_with_a_byte():
    values = picture(12, 17, 33)
    assert np.array_equal(decode_source(tiff(packed(values, 12), 17, 33, t258=12)), values >> 4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("extra", [0, 2])
def test_transparency_of_16_bits_is_dropped(order, extra):
    pairs = np.dstack([DEEP, np.full_like(DEEP, 7)])
    tags = {"t258": (16, 16), "t277": 2, "t338": extra}
    data = tiff(bytes_of(pairs, "u2", order), *SIZE, order=order, **tags)
    assert np.array_equal(decode_source(data), DEEP >> 8)


def test_colours_that_a_transparency_multiplies_are_refused_unless_it_is_full():
    for full in (65535, 7):
        pairs = np.dstack([DEEP, np.full_like(DEEP, full)])
        data = tiff(bytes_of(pairs, "u2"), *SIZE, t258=(16, 16), t277=2, t338=1)
        if full == 65535:
            assert np.array_equal(decode_source(data), DEEP >> 8)
        else:
            with pytest.raises(BadImage, match="multiplied by a transparency"):
                decode_source(data)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("apart", [False, True])
def test_colours_of_16_bits_become_luma(order, apart):
    colours = np.dstack([DEEP, 65535 - DEEP, DEEP // 2])
    stored = np.moveaxis(colours, 2, 0) if apart else colours
    tags = {"t258": (16,) * 3, "t262": 2, "t277": 3}
    if apart:
        data = bytes(imagecodecs.tiff_encode(stored.copy(), planarconfig=2, photometric="rgb"))
    else:
        data = tiff(bytes_of(stored, "u2", order), *SIZE, order=order, **tags)
    expected = colours @ np.array([0.299, 0.587, 0.114]) / 256
    assert np.abs(decode_source(data) - np.floor(expected)).max() <= 1


@pytest.mark.parametrize("shift", [0, 8])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_colour_map_may_hold_8_bits_or_16(shift, bits):
    ramp = np.round(np.arange(1 << bits) * (255 / ((1 << bits) - 1))).astype(int)
    colours = tuple((np.concatenate([ramp, ramp, ramp]) << shift).tolist())
    data = tiff(packed(GREY >> (8 - bits), bits), *SIZE, t258=bits, t262=3, t320=colours)
    assert np.array_equal(decode_source(data), ramp[GREY >> (8 - bits)])


def test_a_colour_map_of_another_size_is_refused():
    data = tiff(GREY.tobytes(), *SIZE, t258=8, t262=3, t320=(1, 2, 3))
    with pytest.raises(BadImage, match="a colour map of 3 values, not 768"):
        decode_source(data)


@pytest.mark.parametrize("kind", ["i1", "i2", "i4"])
def test_signed_values_are_read_where_none_is_below_0(kind):
    values = GREY >> 1 if kind == "i1" else DEEP >> 1
    bits = 8 * int(kind[1])
    data = tiff(bytes_of(values, kind), *SIZE, t258=bits, t339=2)
    assert np.array_equal(decode_source(data), values if kind == "i1" else values >> 8)
    below = tiff(bytes_of(values.astype(np.int64) - 5, kind), *SIZE, t258=bits, t339=2)
    with pytest.raises(BadImage, match="signed values from -5: the file does not say which is"):
        decode_source(below)


def test_32_bits_are_read_where_16_hold_them():
    low = tiff(bytes_of(DEEP, "u4"), *SIZE, t258=32)
    assert np.array_equal(decode_source(low), DEEP >> 8)
    with pytest.raises(BadImage, match="over 65535: the file does not say which is white"):
        decode_source(tiff(bytes_of(DEEP.astype(np.int64) * 65537, "u4"), *SIZE, t258=32))


def test_floating_point_is_refused():
    data = tiff(bytes_of(DEEP / 65535, "f4"), *SIZE, t258=32, t339=3)
    with pytest.raises(BadImage, match="values in floating point"):
        decode_source(data)


@pytest.mark.parametrize("compression", [34712, 33003, 65000])
def test_a_compression_that_is_not_read_is_named(compression):
    data = tiff(DEEP.tobytes(), *SIZE, t258=16, t259=compression)
    with pytest.raises(BadImage, match=f"a TIFF image of compression {compression}: this kind"):
        decode_source(data)


@pytest.mark.parametrize("values", [GREY, DEEP], ids=["8", "16"])
@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize(
    "options",
    [{}, {"predictor": True}, {"bigtiff": True}, {"tile": (32, 16)}],
    ids=str,
)
def test_compressed_tiled_and_large_files_are_read(values, compression, options):
    if compression not in ("lzw", "deflate", "zstd"):
        options.pop("predictor", None)
    data = bytes(imagecodecs.tiff_encode(values, compression=compression, **options))
    assert np.array_equal(decode_source(data), values >> (8 * (values.itemsize - 1)))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_compressed_values_of_either_byte_order_are_read(mode, compression):
    image = Image.frombytes(mode, SIZE[::-1], bytes_of(DEEP, "u2", ">" if mode[-1] == "B" else "<"))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression=compression)
    assert np.array_equal(decode_source(buffer.getvalue()), DEEP >> 8)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("rows", [16, 48])
def test_jpegs_in_a_tiff_are_pillows_pixels_and_damage_is_refused(mode, rows):
    buffer = io.BytesIO()
    image = Image.fromarray(GREY).convert(mode)
    image.save(buffer, "TIFF", compression="jpeg", tiffinfo={278: rows})
    data = buffer.getvalue()
    assert np.abs(decode_source(data).astype(int) - by_pillow(data)).max() <= 1
    if mode != "CMYK":
        at = data.rindex(b"\xff\xda") + 60
        with pytest.raises(BadImage, match="does not decode"):
            decode_source(data[:at] + bytes(150) + data[at + 150 :])


def test_a_cut_file_and_several_images_are_refused():
    data = tiff(GREY.tobytes(), *SIZE, t258=8)
    for length in (5, 12, len(data) // 2, len(data) - 20):
        with pytest.raises(BadImage):
            decode_source(data[:length])
    frames = io.BytesIO()
    Image.fromarray(GREY).save(
        frames, "TIFF", save_all=True, append_images=[Image.new("L", (2, 2))]
    )
    with pytest.raises(BadImage, match="several images"):
        decode_source(frames.getvalue())


def test_sizes_are_bounded_before_decoding():
    data = tiff(GREY.tobytes(), *SIZE, t258=8)
    assert (read_header(data).format, read_header(data).width) == ("TIFF", SIZE[1])
    with pytest.raises(BadImage, match="over the limit of 1000"):
        decode_source(data, 1000)
    tiles = tiff(GREY.tobytes(), *SIZE, t258=8, t322=60000, t323=60000, t324=8, t325=100)
    with pytest.raises(BadImage, match="tiles are over the limit"):
        decode_source(tiles)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from([8, 16]))
def test_any_damage_decodes_or_is_bad(place, value, bits):
    content = GREY[:8, :8].tobytes() * (bits // 8)
    data = bytearray(tiff(content, 8, 8, t258=bits, t320=tuple(range(40))))
    data[place % len(data)] = value
    try:
        assert decode_source(bytes(data), 10_000).dtype == np.uint8
    except BadImage:
        return


def test_a_tag_that_counts_more_than_the_file_holds_is_refused():
    data = bytearray(tiff(GREY.tobytes(), *SIZE, t258=8))
    at = data.index(struct.pack("<HH", 279, 4))
    data[at + 4 : at + 8] = b"\xff" * 4
    with pytest.raises(BadImage, match="its tags are damaged"):
        decode_source(bytes(data))
