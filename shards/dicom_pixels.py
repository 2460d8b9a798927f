"""The pixels of a DICOM file as they are stored: raw, RLE, JPEG, JPEG-LS, JPEG 2000, HTJ2K.

One image in one frame, so offset tables are not needed: the fragments are joined. Bytes behind the
end of a codestream are cut off, as dcmtk and pydicom do. What a codestream says of its size must be
what the header says; what it says of its precision and sign goes before the header (PS3.5, 8.2).
imagecodecs decodes what is compressed. (pylibjpeg's JPEG plugin is under the GPL.)
"""

from dataclasses import dataclass

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments
from pydicom.uid import UID

from shards.bad_image import BadImage
from shards.jpeg_scan import as_stored, read_frame

RAW = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
_JPEG_LS = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))  # HTJ2K too
_ITEM, _END_OF_ITEMS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_EOI = b"\xff\xd9"  # ends a JPEG, a JPEG-LS and a JPEG 2000 stream
_CUT = "the encoded pixels are cut short"
_OTHER = "the encoded pixels are not what the DICOM header says"


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
    words: bool  # raw bytes lie in words of 16 bits (OW)

    @property
    def dtype(self) -> np.dtype:
        order = ">" if self.syntax == BIG_ENDIAN else "<"
        return np.dtype(f"{order}u{self.allocated // 8}")

    @property
    def bytes(self) -> int:
        """Of the pixels, decoded."""
        return self.rows * self.columns * self.samples * self.allocated // 8

    @property
    def lowest(self) -> int:
        """The lowest value that BitsStored allows."""
        return -(1 << self.stored - 1) if self.signed else 0


@dataclass(frozen=True)
class StoredPixels:
    """values: (H, W) or (H, W, 3), as stored or as the codec gives them; luma: of three colours
    the first is it already."""

    values: np.ndarray
    luma: bool = False


def read_pixels(dataset: Dataset, layout: Layout) -> StoredPixels:
    """BadImage when they are cut short, damaged, or of a kind that is not read."""
    ybr = layout.photometric.startswith("YBR")
    if layout.syntax in RAW:
        values = np.frombuffer(_raw_bytes(dataset, layout), layout.dtype)
        return StoredPixels(_shaped(values, layout), luma=ybr)
    _, *fragments = generate_fragments(dataset.PixelData)  # the first is the offset table
    frame = b"".join(fragments)
    if layout.syntax == RLE:
        return StoredPixels(_shaped(_read_rle(frame, layout), layout), luma=ybr)
    if layout.syntax in _JPEG:
        return _read_jpeg(frame, layout)
    if layout.syntax in _JPEG_LS:
        return StoredPixels(_read_jpeg_ls(frame, layout), luma=ybr)
    if layout.syntax in _JPEG_2000:
        return _read_jpeg_2000(frame, layout)
    known = UID(layout.syntax)
    name = known.name if known.name != layout.syntax else "unknown"
    raise BadImage(f"transfer syntax {name} is not read")


def _raw_bytes(dataset: Dataset, layout: Layout) -> memoryview:
    if layout.photometric == "YBR_FULL_422":
        raise BadImage("YBR_FULL_422 without compression is not read")
    data = memoryview(dataset.PixelData)
    if _is_encapsulated(data):
        raise BadImage("encapsulated pixels, and a transfer syntax without encapsulation")
    if len(data) < layout.bytes:
        raise BadImage(f"{len(data)} of {layout.bytes} bytes of pixels: cut short")
    if len(data) >= 2 * layout.bytes:
        raise BadImage(f"{len(data)} bytes of pixels where the header declares {layout.bytes}")
    if layout.syntax == BIG_ENDIAN and layout.allocated == 8 and layout.words:
        swapped = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2")
        data = memoryview(swapped.tobytes() + bytes(data[len(data) // 2 * 2 :]))
    return data[: layout.bytes]


def _is_encapsulated(data: memoryview) -> bool:
    """Whether items (PS3.5, A.4) fill the bytes, which no picture does by chance."""
    at = 0
    while bytes(data[at : at + 4]) == _ITEM and at + 8 <= len(data):
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return at > 0 and (
        at in (len(data), len(data) - 1) or bytes(data[at : at + 4]) == _END_OF_ITEMS
    )


def _shaped(values: np.ndarray, layout: Layout) -> np.ndarray:
    if layout.samples == 1:
        return values.reshape(layout.rows, layout.columns)
    if layout.planar:
        return values.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0)
    return values.reshape(layout.rows, layout.columns, 3)


def _checked(pixels: np.ndarray, layout: Layout) -> np.ndarray:
    expected = (layout.rows, layout.columns, *([3] if layout.samples == 3 else []))
    if pixels.shape != expected or pixels.dtype.itemsize > 2 or pixels.dtype.kind not in "iu":
        raise BadImage(_OTHER)
    return pixels


def _check_size(rows: int, columns: int, layout: Layout) -> None:
    """A codestream that declares another size could make its decoder take any amount of memory."""
    if (rows, columns) != (layout.rows, layout.columns):
        raise BadImage(_OTHER)


def _as_header_says(pixels: np.ndarray, precision: int, layout: Layout) -> np.ndarray:
    """Values whose codestream and header disagree on the sign. Unsigned ones of a signed header are
    the same bits; signed ones of an unsigned header are shifted by half their range."""
    if layout.samples == 3 or precision >= 16:
        return pixels
    if layout.signed and pixels.dtype.kind == "u":
        shift = 16 - precision
        return (pixels.astype(np.uint16) << shift).view(np.int16) >> shift
    if not layout.signed and pixels.dtype.kind == "i":
        return (pixels.astype(np.int32) + (1 << precision - 1)).astype(np.uint16)
    return pixels


def _read_jpeg(frame: bytes, layout: Layout) -> StoredPixels:
    """Lossy and lossless. What three colours are, a JFIF or Adobe segment says, else the header;
    of a lossless JPEG always the header, since these segments have no meaning there."""
    found = read_frame(frame)
    _check_size(found.rows, found.columns, layout)
    data = as_stored(frame, found) if layout.samples == 3 else frame[: found.end]
    pixels = _checked(np.asarray(imagecodecs.jpeg8_decode(data)), layout)
    header_ycc = layout.photometric.startswith("YBR")
    ycc = header_ycc if found.ycc is None or found.lossless else found.ycc
    return StoredPixels(_as_header_says(pixels, found.precision, layout), luma=ycc)


def _read_jpeg_ls(frame: bytes, layout: Layout) -> np.ndarray:
    frame = _to_end(frame)
    precision, rows, columns = _jpeg_ls_size(frame)
    _check_size(rows, columns, layout)
    pixels = _checked(np.asarray(imagecodecs.jpegls_decode(frame)), layout)
    return _as_header_says(pixels, precision, layout)


def _jpeg_ls_size(frame: bytes) -> tuple[int, int, int]:
    """(precision, rows, columns) of the frame header (ITU-T T.87, C.2.2)."""
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xF7:
            rows, columns = np.frombuffer(frame[at + 5 : at + 9], ">u2").tolist()
            return frame[at + 4], rows, columns
        at += 1 if frame[at + 1] == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise BadImage(_OTHER)


def _read_jpeg_2000(frame: bytes, layout: Layout) -> StoredPixels:
    frame = _to_end(frame)
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers keep the boxes of a JP2
    if start < 0:
        raise BadImage(_OTHER)
    words = np.frombuffer(frame[start + 8 : start + 24], ">u4").tolist()
    _check_size(words[1] - words[3], words[0] - words[2], layout)
    # For HTJ2K too: OpenJPH decodes a stream that is cut.
    pixels = _checked(np.asarray(imagecodecs.jpeg2k_decode(frame)), layout)
    precision = (frame[start + 42] & 0x7F) + 1
    transformed = _has_colour_transform(frame, start)
    pixels = _as_header_says(pixels, precision, layout)
    return StoredPixels(pixels, luma=layout.photometric.startswith("YBR") and not transformed)


def _has_colour_transform(frame: bytes, start: int) -> bool:
    """Whether the codestream's COD segment (ITU-T T.800, A.6.1) has one: then it decodes to RGB."""
    at = start + 2
    while at + 9 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != 0x90:
        if frame[at + 1] == 0x52:
            return frame[at + 8] == 1
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return False


def _to_end(frame: bytes) -> bytes:
    """The codestream without what stands behind its end."""
    end = frame.rfind(_EOI)
    if end < 0 or frame[end + 2 :].strip(b"\0\xff "):
        raise BadImage(_CUT)
    return frame[: end + 2]


def _read_rle(frame: bytes, layout: Layout) -> np.ndarray:
    """(samples * H * W,) values of PS3.5, G: a segment for each byte of a value, highest first."""
    try:
        decoded = imagecodecs.dicomrle_decode(frame, dtype=layout.dtype.str, out=layout.bytes)
        return np.frombuffer(decoded, layout.dtype)
    except (ValueError, RuntimeError):  # it refuses any byte behind the last pixel
        return _read_rle_slowly(frame, layout)


def _read_rle_slowly(frame: bytes, layout: Layout) -> np.ndarray:
    """The same, for segments with a few bytes too many, which are cut off."""
    count, *offsets = np.frombuffer(frame[:64], "<u4").tolist()
    width = layout.allocated // 8
    if count != layout.samples * width:
        raise BadImage(_OTHER)
    planes = np.empty((layout.samples, width, layout.rows * layout.columns), np.uint8)
    ends = [*offsets[1:count], len(frame)]
    for number, (begin, end) in enumerate(zip(offsets, ends)):
        planes[number // width, width - 1 - number % width] = _unpacked(frame[begin:end], layout)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f"<u{width}").ravel()


def _unpacked(segment: bytes, layout: Layout) -> np.ndarray:
    """(H * W,) uint8 of a PackBits segment, which may hold less than a row more: a whole row would
    mean that the size is another. BadImage else."""
    size = layout.rows * layout.columns
    found = bytearray()
    at = 0
    while len(found) < size + layout.columns and at < len(segment):
        head = segment[at]
        if head < 128:
            found += segment[at + 1 : at + 2 + head]
            at += 2 + head
        elif head > 128:
            found += segment[at + 1 : at + 2] * (257 - head)
            at += 2
        else:
            at += 1
    if len(found) < size:
        raise BadImage(_CUT)
    if len(found) >= size + layout.columns:
        raise BadImage(_OTHER)
    return np.frombuffer(found, np.uint8, size)
