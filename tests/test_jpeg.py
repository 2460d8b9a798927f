"""shards.jpeg: whole JPEGs are Pillow's pixels, and damaged ones say what libjpeg found."""

import io

import numpy as np
import pytest
from PIL import Image

from shards.codec import BadImage, decode_source
from shards.jpeg import decode_jpeg

HEIGHT, WIDTH = 96, 128


def picture() -> np.ndarray:
    """(H, W, 3) uint8 without symmetry, with some noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 20, (HEIGHT, WIDTH, 3))
    waves = np.dstack([100 + 90 * np.sin(x / 9), x + y, 120 + 80 * np.cos(y / 7 + x / 40)])
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def jpeg(mode: str = "L", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, "JPEG", **{"quality": 92} | options)
    return buffer.getvalue()


def scan_at(data: bytes) -> int:
    return data.index(b"\xff\xda") + 2


def half(data: bytes) -> bytes:
    return data[: (scan_at(data) + len(data)) // 2].rstrip(b"\xff") + b"\xff\xd9"


def middle_zeroed(data: bytes) -> bytes:
    """Zeros are a valid code: of a short run of them no decoder can tell."""
    at = (scan_at(data) + len(data)) // 2
    return data[:at] + bytes(900) + data[at + 900 :]


def height_declared(data: bytes, height: int) -> bytes:
    at = next(data.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data)
    return data[: at + 5] + height.to_bytes(2, "big") + data[at + 7 :]


def without_interval(data: bytes) -> bytes:
    """Without what stands between its second and its third restart marker."""
    second, third = (data.index(mark, scan_at(data)) for mark in (b"\xff\xd1", b"\xff\xd2"))
    return data[:second] + data[third:]


KINDS = {
    "grey": jpeg(),
    "colour": jpeg("RGB"),
    "full colour": jpeg("RGB", subsampling=0),
    "progressive grey": jpeg(progressive=True),
    "progressive colour": jpeg("RGB", progressive=True),
    "restarts": jpeg(restart_marker_blocks=5),
    "colour restarts": jpeg("RGB", restart_marker_rows=1),
}


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_ones_are_pillows_pixels(kind):
    data = KINDS[kind]
    assert np.array_equal(decode_jpeg(data), by_pillow(data))
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", None)
        assert np.array_equal(decode_source(data), np.array(image))


@pytest.mark.parametrize("behind", [b"\0", b"\xff\xff", b"trailing" * 999, KINDS["grey"]])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_behind_the_image_is_harmless(kind, behind):
    assert np.array_equal(decode_jpeg(KINDS[kind] + behind), decode_jpeg(KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_between_segments_and_before_the_end_is_harmless(kind):
    data = KINDS[kind]
    padded = data[:2] + b"\xff\xff" + data[2:-2] + b"\xff\xff\xff" + data[-2:]
    assert np.array_equal(decode_source(padded), decode_source(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "damaged",
    [
        half,
        middle_zeroed,
        lambda data: data[:-2],
        lambda data: data[: len(data) // 2],
        lambda data: height_declared(data, HEIGHT // 2),
        lambda data: height_declared(data, HEIGHT * 2),
    ],
    ids=["half", "zeros", "no end", "cut", "half the height", "twice the height"],
)
def test_damage_in_the_scan_is_refused(kind, damaged):
    with pytest.raises(BadImage, match=r"does not decode: (Corrupt JPEG data|Premature end)"):
        decode_source(damaged(KINDS[kind]))


@pytest.mark.parametrize("kind", ["restarts", "colour restarts"])
def test_a_lost_restart_interval_is_refused(kind):
    with pytest.raises(BadImage, match="Corrupt JPEG data"):
        decode_source(without_interval(KINDS[kind]))


def test_no_height_is_refused():
    with pytest.raises(BadImage):
        decode_source(height_declared(KINDS["grey"], 0))


def test_the_size_is_bounded_before_decoding():
    with pytest.raises(BadImage, match=f"{WIDTH} x {HEIGHT} pixels, over the limit of 1000"):
        decode_jpeg(KINDS["colour"], 1000)


def test_inks_are_read_by_adobes_marker_alone():
    data = jpeg("CMYK")  # Pillow writes Adobe's marker
    expected = Image.fromarray(picture()).convert("CMYK").convert("RGB").convert("L")
    assert np.abs(decode_source(data).astype(int) - np.array(expected)).mean() < 2
    assert decode_jpeg(data).shape == (HEIGHT, WIDTH, 3)
    at = data.index(b"\xff\xee")
    without = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    with pytest.raises(BadImage, match="without Adobe's marker"):
        decode_source(without)
    with pytest.raises(BadImage, match="Corrupt JPEG data"):
        decode_source(half(data))


def test_colours_that_are_stored_as_rgb_are_not_turned_into_others():
    data = jpeg("RGB", keep_rgb=True)
    assert np.array_equal(decode_jpeg(data), by_pillow(data))
    luma = picture() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode_source(data) - luma).mean() < 2
