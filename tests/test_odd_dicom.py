"""shards.dicom on files that break or stretch the standard, each after a public report, with the
pixels that dcmtk, GDCM and pydicom give."""

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_maker import dicom_bytes, item, make_dicom, to_bytes
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from shards.codec import BadImage, decode_source
from shards.dicom import decode_dicom

# Without symmetry, its first row begins 3, 3, 4, 4 and it has all grey levels.
PICTURE = (np.add.outer(np.arange(48) * 4, np.arange(64)) // 2 + 3).clip(3, 255).astype(np.uint8)
PICTURE[-1] = np.linspace(0, 255, 64)
COLOURS = np.dstack([PICTURE, 255 - PICTURE, PICTURE // 2])  # as RGB its luma is 149 at first


def refused(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode_dicom(data)
    return str(caught.value)


def shown(dataset: Dataset) -> np.ndarray:
    return decode_dicom(to_bytes(dataset))


def compressed(
    stream: bytes, syntax: UID, pixels: np.ndarray = PICTURE, *, fragments: int = 1, **elements
) -> Dataset:
    """A file whose frame is this stream, whatever its header says."""
    dataset = make_dicom(pixels, **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream], fragments_per_frame=fragments)
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    return dataset


def jpeg(pixels: np.ndarray = PICTURE, **options) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, level=95, **options))


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEG2000Lossless, lambda a: imagecodecs.jpeg2k_encode(a, level=0, mct=False)),
        (JPEGLosslessSV1, imagecodecs.ljpeg_encode),
    ],
)
def test_ybr_full_is_luma_already(syntax, encode):
    if syntax == JPEGLosslessSV1:
        stream = bytes(imagecodecs.jpeg8_encode(COLOURS, lossless=True, colorspace="RGB"))
    else:
        stream = bytes(encode(COLOURS))
    dataset = compressed(stream, syntax, COLOURS, PhotometricInterpretation="YBR_FULL")
    assert np.array_equal(shown(dataset), PICTURE)
    dataset.PhotometricInterpretation = "RGB"
    assert shown(dataset)[0, :4].tolist() == [149] * 4


def test_ybr_of_a_codestream_with_a_colour_transform_is_rgb_again():
    stream = bytes(imagecodecs.jpeg2k_encode(COLOURS, level=0, mct=True))
    for name in ("YBR_RCT", "RGB"):
        dataset = compressed(stream, JPEG2000Lossless, COLOURS, PhotometricInterpretation=name)
        assert shown(dataset)[0, :4].tolist() == [149] * 4, name


@pytest.mark.parametrize(("photometric", "first"), [("RGB", 149), ("YBR_FULL", 3)])
def test_the_header_says_what_colours_are_where_the_jpeg_does_not(photometric, first):
    plain = jpeg(COLOURS, colorspace="RGB", outcolorspace="RGB", subsampling="444")
    segments, at = [], 2
    while plain[at + 1] != 0xDA:  # without JFIF and Adobe, and with the components 1, 2, 3
        end = at + 2 + int.from_bytes(plain[at + 2 : at + 4], "big")
        if plain[at + 1] not in (0xE0, 0xEE):
            segments.append(plain[at:end])
        at = end
    stream = b"\xff\xd8" + b"".join(segments) + plain[at:]
    stream = stream.replace(b"\x03R\x11\x00G\x11\x00B\x11\x00", b"\x03\1\x11\0\2\x11\0\3\x11\0")
    stream = stream.replace(b"\x03R\x00G\x00B\x00", b"\x03\1\0\2\0\3\0")
    dataset = compressed(stream, JPEGBaseline8Bit, COLOURS, PhotometricInterpretation=photometric)
    assert abs(int(shown(dataset)[0, 0]) - first) <= 3


@pytest.mark.parametrize("shape", [(48, 64), (7, 9)])
def test_big_endian_words_of_two_pixels(shape):
    pixels = PICTURE[: shape[0], : shape[1]]
    dataset = make_dicom(pixels, syntax=ExplicitVRBigEndian)
    data = pixels.tobytes() + b"\0" * (pixels.size % 2)
    dataset.PixelData = np.frombuffer(data, "<u2").byteswap().tobytes()
    dataset["PixelData"].VR = "OW"
    assert np.array_equal(shown(dataset), pixels)


def test_padding_written_with_the_other_sign_or_beyond_the_stored_bits():
    pixels = PICTURE.astype(np.uint16) * 16
    pixels[:5] = 63536  # -2000
    for bits, elements in ((16, {}), (12, {"WindowCenter": 2048, "WindowWidth": 4096})):
        dataset = make_dicom(pixels, bits=bits, **elements)
        dataset.add_new("PixelPaddingValue", "SS", -2000)
        found = shown(dataset)
        assert (found[:5] == 0).all()
        assert found[5:].max() >= 254, bits


def test_a_rescale_by_zero_is_none():
    for slope in (0, None, 1):
        dataset = make_dicom(PICTURE, RescaleSlope=slope, RescaleIntercept=0)
        assert np.array_equal(shown(dataset), PICTURE)


def test_header_and_codestream_of_different_signs():
    signed = PICTURE.astype(np.int16) * 16 - 2048
    unsigned = bytes(
        imagecodecs.jpeg2k_encode(
            (signed & 0xFFF).astype(np.uint16), level=0, codecformat="J2K", bitspersample=12
        )
    )
    window = {"WindowCenter": 0, "WindowWidth": 4096}
    expected = decode_dicom(dicom_bytes(signed, bits=16, **window))
    found = shown(compressed(unsigned, JPEG2000Lossless, signed, bits=16, **window))
    assert np.array_equal(found, expected)
    stream = bytes(imagecodecs.jpeg2k_encode(signed, level=0, codecformat="J2K", bitspersample=12))
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    whole = (PICTURE.astype(np.uint16)) * 16
    found = shown(compressed(stream, JPEG2000Lossless, whole, bits=12, **window))
    assert np.array_equal(found, decode_dicom(dicom_bytes(whole, bits=12, **window)))


@pytest.mark.parametrize("behind", [b"\xff\xff", b"  ", b"\0\0\0"])
@pytest.mark.parametrize(
    ("syntax", "encode"),
    [(JPEGBaseline8Bit, jpeg), (JPEGLSLossless, imagecodecs.jpegls_encode)],
)
def test_bytes_behind_the_end_are_cut_off(syntax, encode, behind):
    stream = bytes(encode(PICTURE))
    found = shown(compressed(stream + behind, syntax))
    assert np.abs(found.astype(int) - PICTURE).max() <= 4
    assert np.array_equal(found, shown(compressed(stream, syntax)))


def test_offset_tables_of_one_frame_are_not_needed():
    stream = jpeg()
    expected = shown(compressed(stream, JPEGBaseline8Bit))
    dataset = compressed(stream, JPEGBaseline8Bit, fragments=3)
    assert np.array_equal(shown(dataset), expected)
    third = len(stream) // 3 & ~1
    parts = [stream[:third], stream[third : 2 * third], stream[2 * third :]]
    dataset.PixelData = encapsulate(parts)  # a table with an entry for each fragment
    assert np.array_equal(shown(dataset), expected)


def test_an_rle_segment_with_a_byte_too_many():
    odd = PICTURE[:47, :63]
    dataset = make_dicom(odd, syntax=RLELossless)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame + b"\0\7"])
    assert np.array_equal(shown(dataset), odd)
    deep = odd.astype(np.uint16) * 257
    dataset = make_dicom(deep, syntax=RLELossless, WindowCenter=32768, WindowWidth=65536)
    expected = shown(dataset)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame + b"\0\7"])
    assert np.array_equal(shown(dataset), expected)


@pytest.mark.parametrize(
    ("syntax", "stream", "bits"),
    [
        (JPEGBaseline8Bit, jpeg(), 8),
        (JPEGExtended12Bit, jpeg(PICTURE.astype(np.uint16) * 16, bitspersample=12), 12),
        (JPEGLosslessSV1, bytes(imagecodecs.ljpeg_encode(PICTURE)), 8),
    ],
)
def test_a_scan_that_ends_in_its_middle(syntax, stream, bits):
    pixels = PICTURE if bits == 8 else PICTURE.astype(np.uint16) * 16
    half = stream[: len(stream) * 3 // 4]
    for end in (b"\xff\xd9", b""):
        reason = refused(to_bytes(compressed(half + end, syntax, pixels, bits=bits)))
        assert "JPEG" in reason, reason


def test_a_file_cut_in_its_pixels_is_not_one_without_pixels():
    whole = to_bytes(compressed(jpeg(), JPEGBaseline8Bit))
    assert refused(whole[:-300]) == "the file is cut short in its pixels"
    without = make_dicom(PICTURE)
    del without.PixelData
    assert refused(to_bytes(without)) == "a DICOM file without pixels"


def test_other_spellings_and_numbers():
    for elements in ({"NumberOfFrames": 0}, {"PhotometricInterpretation": "monochrome2"}):
        assert np.array_equal(shown(make_dicom(PICTURE, **elements)), PICTURE)
    table = item(LUTDescriptor=[256, 0, 8])  # without its data
    window = {"WindowCenter": 128, "WindowWidth": 256}
    dataset = make_dicom(PICTURE, **window, VOILUTSequence=[table])
    assert np.array_equal(shown(dataset), shown(make_dicom(PICTURE, **window)))


def test_pixels_that_are_not_what_the_header_says():
    twice = make_dicom(PICTURE)
    twice.PixelData = twice.PixelData * 2
    assert "where the header declares 3072" in refused(to_bytes(twice))
    other = compressed(jpeg(), JPEGBaseline8Bit)
    other.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    other.Rows, other.Columns = 8, 8
    assert refused(to_bytes(other)).startswith("encapsulated pixels")
    assert "cut short" in refused(
        to_bytes(compressed(bytes(imagecodecs.jpegls_encode(PICTURE))[:-40], JPEGLSLossless))
    )


def test_a_file_without_its_preamble_is_called_so():
    whole = to_bytes(make_dicom(PICTURE))
    for data in (whole[132:], b"\x08\0\x16\0UI\x1c\0" + bytes(40)):
        with pytest.raises(BadImage, match="a DICOM file without its preamble: this kind is not"):
            decode_source(data)
