"""DICOM bytes -> grey 8-bit pixels, as a viewer would first show them. Only in a worker process.

One rule, PS3.3 C.11 in its order: stored value -> modality LUT or rescale -> the first VOI LUT,
else the first window (LINEAR, LINEAR_EXACT, SIGMOID) -> 0..255 -> inverted for MONOCHROME1. What
0..255 spans: the window; with a VOI LUT, its lowest to its highest entry (many declare more bits
than they use); with neither, all values that BitsStored allows for 8 bits and less (so 8-bit
pixels stay as they are), and for more bits the 0.1st to the 99.9th percentile, because 12 bits in
16 are the rule, and one dead pixel or one lead letter would decide minimum or maximum. Padding
counts for no percentile and becomes black. Since MONOCHROME1 decides the inversion,
PresentationLUTShape, which repeats it, does not. Overlays are not drawn.

Every pixel goes through a table of at most 65,536 entries, so no rule costs more than a look-up.
pydicom reads the header, and imagecodecs, which decodes all else here, what is compressed: JPEG
lossy and lossless, JPEG-LS, JPEG 2000 and HTJ2K. (pylibjpeg's JPEG plugin is under the GPL.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.uid import UID

from shards.codec import MAX_PIXELS, BadImage
from shards.dicom_header import contained, read_header

LOW, HIGH = 0.001, 0.999  # of the pixels, where nothing says what range to show
_RAW = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_RLE = "1.2.840.10008.1.2.5"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
_JPEG_LS = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))  # HTJ2K too
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_TAGS = """Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames
BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
RescaleSlope RescaleIntercept ModalityLUTSequence VOILUTSequence VOILUTFunction WindowCenter
WindowWidth PixelData"""


@dataclass(frozen=True)
class Layout:
    """How the pixels lie in the file; samples: 1 grey, 3 colour; allocated, stored: bits."""

    syntax: str
    photometric: str
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    signed: bool
    planar: bool  # colour by colour, as RLE always does

    @property
    def dtype(self) -> np.dtype:
        order = ">" if self.syntax == _BIG_ENDIAN else "<"
        return np.dtype(f"{order}u{self.allocated // 8}")

    @property
    def bytes(self) -> int:
        """Of the pixels, decoded."""
        return self.rows * self.columns * self.samples * self.allocated // 8

    @property
    def lowest(self) -> int:
        """The lowest value that BitsStored allows."""
        return -(1 << self.stored - 1) if self.signed else 0


def decode_dicom(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A DICOM file -> (H, W) uint8 grey. BadImage, without any content of the file, when it does
    not hold exactly one image that decodes as a whole."""
    read_header(BytesIO(data))  # the same refusals as before the pixels were read
    with contained():
        dataset = dcmread(BytesIO(data), specific_tags=list(_TAGS.split()))
        layout = _layout(dataset, max_pixels)
        if layout.samples == 3:
            return _luma(_read_pixels(dataset, layout), layout)
        return _show(_codes(_read_pixels(dataset, layout), layout), dataset, layout)


def _layout(dataset: Dataset, max_pixels: int) -> Layout:
    """Everything that is refused before a decoder runs."""
    if "PixelData" not in dataset:
        raise BadImage("a DICOM file without pixels")
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if not 0 < rows * columns <= max_pixels:
        raise BadImage(f"{columns} x {rows} pixels, over the limit of {max_pixels}")
    frames = _integer(dataset, "NumberOfFrames", 1)
    if frames != 1:
        raise BadImage(f"{frames} frames in one DICOM file, expected one image")
    samples = _integer(dataset, "SamplesPerPixel", 1)
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    if photometric not in {1: _GREY, 3: _COLOUR}.get(samples, ()):
        known = ", ".join(_GREY + _COLOUR)
        raise BadImage(f"photometric interpretation not read; there are: {known}")
    allocated = _integer(dataset, "BitsAllocated")
    stored = _integer(dataset, "BitsStored", allocated)
    if allocated not in (8, 16) or not 1 <= stored <= allocated or (samples, allocated) == (3, 16):
        raise BadImage(f"{stored} of {allocated} bits, {samples} samples: not read")
    if _integer(dataset, "HighBit", stored - 1) != stored - 1:
        raise BadImage("the highest bit is not BitsStored - 1: not read")
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", _RAW[0]))
    return Layout(
        syntax=syntax,
        photometric=photometric,
        rows=rows,
        columns=columns,
        samples=samples,
        allocated=allocated,
        stored=stored,
        signed=_integer(dataset, "PixelRepresentation", 0) == 1,
        planar=syntax == _RLE or _integer(dataset, "PlanarConfiguration", 0) == 1,
    )


def _integer(dataset: Dataset, name: str, default: int | None = None) -> int:
    value = dataset.get(name)
    if value is None or value == "":
        if default is None:
            raise BadImage(f"a DICOM file without {name}")
        return default
    return int(value)


def _read_pixels(dataset: Dataset, layout: Layout) -> np.ndarray:
    """(H, W) or (H, W, 3), as stored or as the codec gives it."""
    if layout.syntax in _RAW:
        return _shaped(np.frombuffer(_raw_bytes(dataset, layout), layout.dtype), layout)
    decode = _decoder(layout)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if layout.syntax == _RLE:
        return _shaped(np.frombuffer(decode(frame), layout.dtype), layout)
    _check_codestream(frame, layout)
    pixels = np.asarray(decode(frame))
    expected = (layout.rows, layout.columns, *([3] if layout.samples == 3 else []))
    if pixels.shape != expected or pixels.dtype.itemsize > 2 or pixels.dtype.kind not in "iu":
        raise BadImage("the encoded pixels are not what the DICOM header says")
    return pixels


def _raw_bytes(dataset: Dataset, layout: Layout) -> memoryview:
    if layout.photometric == "YBR_FULL_422":
        raise BadImage("YBR_FULL_422 without compression is not read")
    data = memoryview(dataset.PixelData)
    if len(data) < layout.bytes:
        raise BadImage(f"{len(data)} of {layout.bytes} bytes of pixels: cut short")
    return data[: layout.bytes]


def _shaped(values: np.ndarray, layout: Layout) -> np.ndarray:
    if layout.samples == 1:
        return values.reshape(layout.rows, layout.columns)
    if layout.planar:
        return values.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0)
    return values.reshape(layout.rows, layout.columns, 3)


def _decoder(layout: Layout) -> Callable[[bytes], Any]:
    if layout.syntax == _RLE:
        return partial(imagecodecs.dicomrle_decode, dtype=layout.dtype.str, out=layout.bytes)
    if layout.syntax in _JPEG:
        return imagecodecs.jpeg8_decode  # 12 bits and lossless too
    if layout.syntax in _JPEG_LS:
        return imagecodecs.jpegls_decode
    if layout.syntax in _JPEG_2000:
        return imagecodecs.jpeg2k_decode  # for HTJ2K too: OpenJPH decodes a stream that is cut
    known = UID(layout.syntax)
    name = known.name if known.name != layout.syntax else "unknown"
    raise BadImage(f"transfer syntax {name} is not read")


def _check_codestream(frame: bytes, layout: Layout) -> None:
    """A codestream that declares another size could make its decoder take any amount of memory;
    and JPEG's decoder fills up what is cut off without a word."""
    if layout.syntax in _JPEG_2000:
        start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers keep the boxes of a JP2
        words = np.frombuffer(frame[start + 8 : start + 24], ">u4").tolist()
        size = (words[1] - words[3], words[0] - words[2]) if start >= 0 else None
    else:
        size = _jpeg_size(frame)
        if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise BadImage("the encoded pixels are cut short")
    if size != (layout.rows, layout.columns):
        raise BadImage("the encoded pixels are not what the DICOM header says")


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) of the frame header of a JPEG or JPEG-LS."""
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = np.frombuffer(frame[at + 5 : at + 9], ">u2").tolist()
            return rows, columns
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _luma(pixels: np.ndarray, layout: Layout) -> np.ndarray:
    """(H, W, 3) uint8 -> ITU-R 601 luma. Y is luma already; codecs give RGB."""
    if layout.photometric == "YBR_FULL" and layout.syntax in (*_RAW, _RLE):
        return np.ascontiguousarray(pixels[..., 0])
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))


def _codes(pixels: np.ndarray, layout: Layout) -> np.ndarray:
    """(H, W) uint16: stored value - lowest, the bits above BitsStored (old overlays) dropped.
    Codecs give signed values as such or as the same bits unsigned."""
    codes = pixels.astype(np.uint16) & np.uint16((1 << layout.stored) - 1)
    return codes ^ np.uint16(1 << layout.stored - 1) if layout.signed else codes


def _show(codes: np.ndarray, dataset: Dataset, layout: Layout) -> np.ndarray:
    """Stored values, as `_codes` gives them -> (H, W) uint8."""
    inputs = np.arange(layout.lowest, layout.lowest + (1 << layout.stored))
    padding = _padding(inputs, dataset, layout)
    values = _modality(inputs.astype(np.float64), dataset)
    shown = _voi(values, dataset)
    if shown is None:
        low, high = float(values.min()), float(values.max())
        if layout.stored > 8:
            low, high = _range(values, np.where(padding, 0, _histogram(codes, len(inputs))))
        shown = (values - low) / max(high - low, np.finfo(float).tiny)
    if not np.isfinite(shown).all():
        raise BadImage("its rescale or window values are not numbers")
    table = np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8)
    if layout.photometric == "MONOCHROME1":
        table = 255 - table
    table[padding] = 0
    return np.take(table, codes)


def _histogram(codes: np.ndarray, size: int) -> np.ndarray:
    # In parts: bincount makes 8 bytes of every pixel.
    parts = np.array_split(codes, 16)
    return np.sum([np.bincount(part.ravel(), minlength=size) for part in parts], axis=0)


def _padding(inputs: np.ndarray, dataset: Dataset, layout: Layout) -> np.ndarray:
    """(len(inputs),) bool: the stored values that stand for no tissue. They may be written as the
    same bits with the other sign."""
    first = dataset.get("PixelPaddingValue")
    if first is None or first == "":
        return np.zeros(len(inputs), bool)
    last = _integer(dataset, "PixelPaddingRangeLimit", int(first))
    low, high = (int(v) - (1 << 16) * (layout.signed and int(v) > 32767) for v in (first, last))
    return (inputs >= min(low, high)) & (inputs <= max(low, high))


def _modality(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """PS3.3 C.11.1."""
    tables = dataset.get("ModalityLUTSequence")
    if tables:
        return _look_up(values, tables[0], dataset)
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    return values * (1 if slope is None else slope) + (intercept or 0)


def _voi(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """PS3.3 C.11.2: what to show, 0 to 1 (beyond: clipped). None when the file does not say."""
    tables = dataset.get("VOILUTSequence")
    if tables:
        found = _look_up(values, tables[0], dataset)
        entries = _entries(tables[0], dataset)
        return (found - entries.min()) / max(np.ptp(entries), 1)
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None or width is None:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip()
    if function not in _FUNCTIONS:
        raise BadImage(f"VOI LUT function not read; there are: {', '.join(_FUNCTIONS)}")
    if not width > 0 or (function == "LINEAR" and width < 1):
        raise BadImage("a window without width")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50)))
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1) + 0.5


def _range(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The percentiles LOW and HIGH (nearest rank) of values that occur `counts` times."""
    order = np.argsort(values, kind="stable")
    ranks = np.cumsum(counts[order])
    if ranks[-1] == 0:
        return 0.0, 0.0
    low, high = np.searchsorted(ranks, np.ceil(np.array([LOW, HIGH]) * ranks[-1]))
    return float(values[order[low]]), float(values[order[high]])


def _number(dataset: Dataset, name: str) -> float | None:
    """The first value of an element."""
    value = dataset.get(name)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)


def _look_up(values: np.ndarray, table: Dataset, dataset: Dataset) -> np.ndarray:
    """PS3.3 C.11.1.1: values before the first entry get the first, those behind it the last."""
    entries = _entries(table, dataset)
    first = int(table.LUTDescriptor[1])
    if first > 32767 and values.min() < 0:
        first -= 1 << 16  # written unsigned, meant signed
    places = np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.intp)
    return entries[places].astype(np.float64)


def _entries(table: Dataset, dataset: Dataset) -> np.ndarray:
    count = int(table.LUTDescriptor[0]) or 1 << 16
    data = table.LUTData
    if isinstance(data, bytes):
        order = ">" if dataset.file_meta.get("TransferSyntaxUID") == _BIG_ENDIAN else "<"
        data = np.frombuffer(data, f"{order}u{2 if len(data) >= 2 * count else 1}")
    entries = np.atleast_1d(np.asarray(data, np.int64))[:count]
    if len(entries) < count:
        raise BadImage("a look-up table is cut short")
    return entries
