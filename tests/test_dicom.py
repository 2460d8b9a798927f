"""shards.dicom: the pixels of every kind of DICOM file, against the standard's formulas in plain
Python, one pixel at a time."""

import contextlib
import io
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_maker import ENCODERS, RAW, dicom_bytes, item, make_dicom, to_bytes
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from ingest.encode import EncodeConfig, Encoded, Rejected, encode_image
from shards.codec import BadImage, is_dicom
from shards.dicom import decode_dicom
from shards.dicom_header import MAX_ELEMENTS, NotDicom, read_header

LOSSY = {JPEGBaseline8Bit: (8, 12), JPEGExtended12Bit: (12, 160)}  # bits, the largest error


def ramp(bits: int, *, signed: bool = False, shape: tuple[int, int] = (13, 17)) -> np.ndarray:
    """Every pixel another value, the whole range of the bits."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    codes = (y * shape[1] + x) * ((1 << bits) - 1) // (shape[0] * shape[1] - 1)
    if signed:
        return (codes - (1 << bits - 1)).astype(np.int8 if bits <= 8 else np.int16)
    return codes.astype(np.uint8 if bits <= 8 else np.uint16)


def smooth(bits: int) -> np.ndarray:
    y, x = np.mgrid[:64, :80]
    level = 0.5 + 0.4 * np.sin(x / 25) * np.cos(y / 20)
    return (level * ((1 << bits) - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def each(pixels: np.ndarray, rule) -> np.ndarray:
    """A rule for one value -> 0 to 1, over all pixels: the slow reference."""
    out = np.zeros(pixels.shape, np.uint8)
    for place, value in np.ndenumerate(pixels):
        out[place] = round(255 * min(max(rule(int(value)), 0.0), 1.0))
    return out


def window(value: float, center: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with outputs from 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (value - center) / width))
    if function == "LINEAR_EXACT":
        low, high = center - width / 2, center + width / 2
        return 0 if value <= low else 1 if value > high else (value - center) / width + 0.5
    if value <= center - 0.5 - (width - 1) / 2:
        return 0
    if value > center - 0.5 + (width - 1) / 2:
        return 1
    return (value - (center - 0.5)) / (width - 1) + 0.5


def refused(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode_dicom(data)
    return str(caught.value)


@pytest.mark.parametrize("syntax", RAW)
def test_eight_bits_stay_as_they_are(syntax):
    pixels = ramp(8)
    assert np.array_equal(decode_dicom(dicom_bytes(pixels, syntax=syntax)), pixels)
    inverted = dicom_bytes(pixels, syntax=syntax, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(decode_dicom(inverted), 255 - pixels)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (16, False)])
def test_rescale_and_window(bits, signed, function):
    pixels = ramp(bits, signed=signed)
    center, size = 40.5 * (1 << bits - 8), 100.0 * (1 << bits - 8)
    data = dicom_bytes(
        pixels,
        bits=bits,
        RescaleSlope="0.5",
        RescaleIntercept="-7",
        WindowCenter=[center, 1],
        WindowWidth=[size, 2],
        VOILUTFunction=function,
    )
    expected = each(pixels, lambda v: window(0.5 * v - 7, center, size, function))
    assert np.array_equal(decode_dicom(data), expected)


@given(
    center=st.integers(-500, 5000),
    width=st.integers(1, 5000),
    slope=st.sampled_from([0.25, 1, 2]),
    one=st.booleans(),
)
def test_windows_like_pydicom(center, width, slope, one):
    pixels = ramp(12)
    data = dicom_bytes(
        pixels,
        bits=12,
        PhotometricInterpretation="MONOCHROME1" if one else "MONOCHROME2",
        RescaleSlope=slope,
        RescaleIntercept=5,
        WindowCenter=center,
        WindowWidth=width,
    )
    dataset = pydicom.dcmread(io.BytesIO(data))
    # pydicom's windows give what all stored values span: 5 to 4095 * slope + 5.
    level = (apply_windowing(apply_modality_lut(pixels, dataset), dataset) - 5) / (4095 * slope)
    shown = decode_dicom(data).astype(int)
    assert np.abs((255 - shown if one else shown) - 255 * level).max() <= 0.5 + 1e-6


def test_a_falling_rescale_turns_the_window_round():
    pixels = ramp(12)
    elements = {"RescaleSlope": -2, "RescaleIntercept": 5, "WindowCenter": -3000}
    data = dicom_bytes(pixels, bits=12, WindowWidth=1234, **elements)
    expected = each(pixels, lambda v: window(-2 * v + 5, -3000, 1234, "LINEAR"))
    assert np.array_equal(decode_dicom(data), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_without_a_window_the_percentiles(photometric):
    rng = np.random.default_rng(0)
    pixels = rng.normal(900, 60, (80, 90)).clip(0, 4095).astype(np.uint16)
    pixels[0, :3] = 4095, 4095, 0  # dead pixels
    ordered = sorted(pixels.ravel().tolist())
    low, high = (ordered[math.ceil(q * len(ordered)) - 1] for q in (0.001, 0.999))
    expected = each(pixels, lambda v: (v - low) / (high - low))
    data = dicom_bytes(pixels, bits=12, PhotometricInterpretation=photometric)
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    assert np.array_equal(decode_dicom(data), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_counts_for_nothing(photometric):
    pixels = np.full((40, 50), 3000, np.int16)
    pixels[5:35, 5:45] = np.arange(1200).reshape(30, 40)
    pixels[0] = -2000
    pixels[1] = -1990
    data = dicom_bytes(
        pixels,
        bits=16,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=-2000,
        PixelPaddingRangeLimit=-1990,
    )
    shown = decode_dicom(data)
    assert (shown[:2] == 0).all()
    inner = shown[2:].astype(int)
    assert {inner.min(), inner.max()} == {0, 255}
    assert np.ptp(inner[5:33, 5:45]) > 90  # not squeezed by the padding's -2000


def test_bits_above_the_stored_ones_are_ignored():
    pixels = ramp(12)
    dirty = pixels | 0xA000
    windowed = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(
        decode_dicom(dicom_bytes(dirty, bits=12, **windowed)),
        decode_dicom(dicom_bytes(pixels, bits=12, **windowed)),
    )


@pytest.mark.parametrize("syntax", RAW)
@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
def test_look_up_tables(syntax, name):
    pixels = ramp(12)
    entries = [(i * i) // 70 for i in range(500)]
    table = item(LUTDescriptor=[500, 1000, 12], LUTData=entries)
    table["LUTDescriptor"].VR = "US"
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    table["LUTData"].VR = "OW"
    table["LUTData"].value = np.array(entries, f"{order}u2").tobytes()
    elements = {name: [table]}
    if name == "ModalityLUTSequence":
        table.ModalityLUTType = "US"
        elements |= {"WindowCenter": 1500, "WindowWidth": 2000}
    looked_up = np.vectorize(lambda v: entries[min(max(int(v) - 1000, 0), 499)])(pixels)
    expected = each(
        looked_up,
        lambda v: window(v, 1500, 2000, "LINEAR") if name[0] == "M" else v / max(entries),
    )
    assert np.array_equal(
        decode_dicom(dicom_bytes(pixels, syntax=syntax, bits=12, **elements)), expected
    )


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", [s for s in ENCODERS if s not in LOSSY] + [RLELossless])
def test_lossless_codecs(syntax, bits):
    pixels = ramp(bits, shape=(40, 51))
    elements = {"WindowCenter": 1 << bits - 1, "WindowWidth": 1 << bits}
    encoded = decode_dicom(dicom_bytes(pixels, syntax=syntax, bits=bits, **elements))
    assert np.array_equal(encoded, decode_dicom(dicom_bytes(pixels, bits=bits, **elements)))


def test_signed_jpeg_2000():
    pixels = ramp(16, signed=True, shape=(40, 51))
    elements = {"WindowCenter": 0, "WindowWidth": 65536}
    encoded = decode_dicom(dicom_bytes(pixels, syntax=JPEG2000Lossless, **elements))
    assert np.array_equal(encoded, decode_dicom(dicom_bytes(pixels, **elements)))


@pytest.mark.parametrize("syntax", LOSSY)
def test_lossy_codecs(syntax):
    bits, tolerance = LOSSY[syntax]
    pixels = smooth(bits)
    elements = {"WindowCenter": 1 << bits - 1, "WindowWidth": 1 << bits}
    encoded = decode_dicom(dicom_bytes(pixels, syntax=syntax, bits=bits, **elements))
    raw = decode_dicom(dicom_bytes(pixels, bits=bits, **elements))
    assert np.abs(encoded.astype(int) - raw).max() <= tolerance * 256 / (1 << bits)


@pytest.mark.parametrize("syntax", [RAW[1], RLELossless, JPEG2000Lossless])
def test_colour_becomes_luma(syntax):
    colour = np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    shown = decode_dicom(dicom_bytes(colour, syntax=syntax)).astype(int)
    assert np.abs(shown - colour @ [0.299, 0.587, 0.114]).max() <= 1


def test_other_colour_layouts():
    colour = np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    planar = make_dicom(colour, PlanarConfiguration=1)
    planar.PixelData = colour.transpose(2, 0, 1).tobytes()
    assert np.array_equal(decode_dicom(to_bytes(planar)), decode_dicom(dicom_bytes(colour)))
    ybr = dicom_bytes(colour, PhotometricInterpretation="YBR_FULL")
    assert np.array_equal(decode_dicom(ybr), colour[..., 0])


def test_what_is_refused():
    grey = ramp(8)
    wide = make_dicom(grey, Rows=20_000, Columns=20_000)
    for data, reason in [
        (to_bytes(wide), "20000 x 20000 pixels, over the limit"),
        (dicom_bytes(grey, NumberOfFrames=3), "3 frames"),
        (dicom_bytes(grey, Rows=500), "cut short"),
        (dicom_bytes(grey, Rows=None), "without Rows"),
        (dicom_bytes(grey, PhotometricInterpretation="PALETTE COLOR"), "photometric"),
        (dicom_bytes(ramp(12), bits=12, HighBit=15), "highest bit"),
        (dicom_bytes(grey, WindowCenter=3, WindowWidth=0), "without width"),
        (dicom_bytes(grey, RescaleSlope="1e308", RescaleIntercept="0"), "not numbers"),
        (dicom_bytes(grey)[:600], "cut short"),
        (dicom_bytes(grey)[:400], "without"),
        (b"\0" * 128 + b"DICM" + b"secret" * 40, ""),
    ]:
        assert reason in refused(data)
    assert isinstance(encode_image(b"\0" * 128 + b"DICM", EncodeConfig()), Rejected)


@pytest.mark.parametrize("syntax", [*ENCODERS, RLELossless])
def test_cut_short_or_of_another_size(syntax):
    bits = LOSSY.get(syntax, (8,))[0]
    pixels = smooth(bits)
    whole = make_dicom(pixels, syntax=syntax, bits=bits)
    decode_dicom(to_bytes(whole))
    other = make_dicom(pixels, syntax=syntax, bits=bits)
    other.Rows, other.Columns = 63, 80
    assert refused(to_bytes(other))
    frame = pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1).rstrip(b"\0")
    whole.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) * 2 // 3]])
    assert refused(to_bytes(whole))


def test_deflated_files_are_read_within_bounds():
    dataset = make_dicom(ramp(8))
    plain = to_bytes(dataset)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    deflated = to_bytes(dataset)
    assert np.array_equal(decode_dicom(deflated), decode_dicom(plain))
    assert read_header(io.BytesIO(deflated)) == read_header(io.BytesIO(plain))
    dataset.add_new(0x00091010, "OB", bytes(40 << 20))
    bomb = to_bytes(dataset)
    assert len(bomb) < 1 << 17
    tracemalloc.start()
    with pytest.raises(BadImage, match="of more than"):
        read_header(io.BytesIO(bomb))
    assert tracemalloc.get_traced_memory()[1] < 80 << 20
    tracemalloc.stop()
    dataset = make_dicom(ramp(8))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    assert "cut short" in refused(to_bytes(dataset)[:-20])


def test_headers_are_read_within_bounds():
    large = make_dicom(ramp(8))
    large.add_new(0x00091010, "OB", b"\1" * 300_000)
    assert read_header(io.BytesIO(to_bytes(large))).patient_id == "patient"
    large.add_new(0x00091010, "OB", b"\1" * (17 << 20))
    with pytest.raises(BadImage, match="of more than"):
        read_header(io.BytesIO(to_bytes(large)))
    many = make_dicom(ramp(8))
    for n in range(MAX_ELEMENTS):
        many.add_new(0x00110010 + (n % 0xFFF0) + (n // 0xFFF0 << 17), "SH", "")
    with pytest.raises(BadImage, match="elements"):
        read_header(io.BytesIO(to_bytes(many)))
    with pytest.raises(NotDicom):
        read_header(io.BytesIO(b"\x89PNG" + b"\0" * 300))
    assert not is_dicom(b"")


@given(st.binary(max_size=400), st.integers(132, 700))
def test_damage_is_always_a_reason(noise, at):
    data = bytearray(dicom_bytes(ramp(8)))
    data[at : at + len(noise)] = noise
    with contextlib.suppress(BadImage):  # and nothing else
        assert decode_dicom(bytes(data)).dtype == np.uint8


def test_keep_refuses_dicom():
    outcome = encode_image(dicom_bytes(ramp(8)), EncodeConfig("keep", None))
    assert isinstance(outcome, Rejected)
    assert "header, which names the patient" in outcome.reason


def test_real_files_invert_each_other(shared_data: Path):
    paths = sorted((shared_data / "dicom").glob("*.dcm"))
    images = [decode_dicom(path.read_bytes()) for path in paths]
    assert [image.shape for image in images] == [(1024, 1024)] * 2
    assert np.array_equal(images[0], 255 - images[1])
    assert all(isinstance(encode_image(p.read_bytes(), EncodeConfig()), Encoded) for p in paths)
