"""The commonest radiograph file, a plain grey 8-bit PNG, decoded at 1.7 times kornia-rs's rate.

Only files in which everything is as it should be: all others are for the other decoders of
`codec.decode_doubtful`, which read more kinds and tell what is wrong. All give the same pixels.
"""

import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np
from isal import isal_zlib

from shards.bad_image import BadImage

MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535  # DICOM's and JPEG's; one line of 50,000,000 costs the HTJ2K encoder 4 GB
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BEGIN = PNG_SIGNATURE + b"\0\0\0\rIHDR"
_HEADER = struct.Struct(">IIBBBBB")  # of IHDR: size, bits, colour, compression, filter, interlace
_PLAIN_GREY = (8, 0, 0, 0, 0)
_CHANNELS = {2: 3, 4: 2, 6: 4}  # of IHDR's colour; of the other ones 1
_ADAM_7 = [  # the passes of an interlaced image: first column and row, step of both
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
    (0, 1, 1, 2),
]
_PIXELS = (b"IDAT", b"IEND")
# That leave the pixels as they are. A turn (eXIf), an animation and transparency are not here.
_HARMLESS = {b"tIME", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"sRGB", b"cHRM", b"sBIT"}
# That decide no grey level. An unknown one may be a turn (eXIf) whose name is damaged.
_IDLE = _HARMLESS - {b"sBIT"} | {b"iCCP", b"bKGD", b"hIST", b"sPLT", b"tRNS"}


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin, end) of a PNG's chunks: kind and content are data[begin:end], then a CRC."""
    begin = 12
    while begin <= len(data):
        end = begin + 4 + int.from_bytes(data[begin - 4 : begin], "big")
        yield data[begin : begin + 4], begin, end
        begin = end + 8


def sound_png(data: bytes) -> bytes:
    """A PNG's chunks that may decide its pixels. A wrong CRC of another one, as of a text, is
    harmless. BadImage when one of these has a wrong CRC, or the end is missing."""
    view = memoryview(data)
    parts = [view[:8]]
    for kind, begin, end in png_chunks(data):
        if kind in _IDLE:
            continue
        right = _crc(view[begin:end]) == int.from_bytes(data[end : end + 4], "big")
        if right:
            parts.append(view[begin - 4 : end + 4])
        elif kind != b"sBIT":  # one that is damaged says nothing
            raise BadImage(f"does not decode: wrong CRC of the chunk {kind.decode('latin-1')!r}")
        if kind == b"IEND":
            return b"".join(parts)
    raise BadImage("does not decode: the file is cut short")


def with_right_adler(data: bytes) -> bytes:
    """A sound PNG with the Adler-32 that its compressed pixels have. Where all CRCs are right the
    pixels are those that were written: kornia-rs and libvips do not look at this second check sum,
    libpng and Pillow refuse a wrong one. BadImage when the compressed pixels are not whole: Pillow
    fills up with black."""
    chunks = list(png_chunks(data))
    packed = b"".join(data[begin + 4 : end] for kind, begin, end in chunks if kind == b"IDAT")
    size = _size(data)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        pixels = stream.decompress(packed[2:], size + 1)
    except zlib.error as error:
        raise BadImage(f"does not decode: {error}") from error
    if not stream.eof or len(pixels) != size:
        raise BadImage(f"does not decode: the compressed pixels are not {size} bytes")
    whole = packed[: len(packed) - len(stream.unused_data)] + zlib.adler32(pixels).to_bytes(4)
    parts = [data[begin - 4 : end + 4] for kind, begin, end in chunks if kind not in _PIXELS]
    content = b"IDAT" + whole
    idat = len(whole).to_bytes(4) + content + zlib.crc32(content).to_bytes(4)
    return PNG_SIGNATURE + b"".join(parts) + idat + b"\0\0\0\0IEND\xae\x42\x60\x82"


def _size(data: bytes) -> int:
    """Of a PNG's pixels in bytes, each row with its filter's number before it."""
    width, height, bits, colour, _, _, interlaced = _HEADER.unpack_from(data, 16)
    bits *= _CHANNELS.get(colour, 1)
    sizes = [(width, height)]
    if interlaced:
        sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _ADAM_7]
    return sum(high * (1 + -(-wide * bits // 8)) for wide, high in sizes if wide > 0)


def check_palette(data: bytes, largest: int) -> None:
    """BadImage when a PNG's largest palette index is beyond its palette: an error by the
    standard, and black or noise in other decoders."""
    colours = sum(
        (end - begin - 4) // 3 for kind, begin, end in png_chunks(data) if kind == b"PLTE"
    )
    if largest >= colours:
        raise BadImage(f"does not decode: palette index {largest}, of {colours} colours")


def decode_plain_png(data: bytes, max_pixels: int) -> np.ndarray | None:
    """(H, W) uint8, or None where others are to decode."""
    from shards.unfilter import padded, unfilter  # 0.13 s, for those who have such files

    if not data.startswith(_BEGIN) or len(data) < 33:
        return None
    width, height, *kind = _HEADER.unpack_from(data, 16)
    if tuple(kind) != _PLAIN_GREY or not 0 < width * height <= max_pixels:
        return None
    packed = _packed(data)
    if packed is None or max(width, height) > MAX_SIDE:
        return None
    size = height * (width + 1)
    stream = isal_zlib.decompressobj()
    try:
        found = stream.decompress(packed, size + 1)  # 1.8 ms of 1024 x 1024, libdeflate 2.2
    except isal_zlib.error:  # type: ignore[misc]  # the stub has it as an instance
        return None
    if len(found) != size or not stream.eof:  # at the end Adler-32 was right
        return None
    flat = np.empty(padded(width, height), np.uint8)
    flat[:size] = np.frombuffer(found, np.uint8)
    if flat[: size : width + 1].max() > 4:
        return None
    return unfilter(flat, width, height)


def _crc(part: memoryview) -> int:
    return imagecodecs.deflate_crc32(part)  # type: ignore[arg-type]  # any buffer


def _packed(data: bytes) -> bytes | None:
    """The compressed pixels. None unless every chunk is known and whole, and they are in order."""
    view = memoryview(data)
    parts: list[memoryview] = []
    last = b""
    for kind, begin, end in png_chunks(data):
        if _crc(view[begin:end]) != int.from_bytes(data[end : end + 4], "big"):
            return None
        if kind == b"IEND":
            return b"".join(parts) if parts else None
        if kind == b"IDAT":
            if parts and last != b"IDAT":
                return None
            parts.append(view[begin + 4 : end])
        elif kind not in _HARMLESS and not (kind == b"IHDR" and not last):
            return None
        last = kind
    return None
