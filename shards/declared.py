"""The depth that an image file of more than 8 bits declares of itself, where it does.

A file of 16 bits says nothing by that: it is the least that its format has above 8. TIFF's
MaxSampleValue is no depth either: it is the largest value that the image uses, and "not to be used
to affect the visual appearance" (TIFF 6.0).
"""

import zlib

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from shards.png import png_chunks

_BITS_PER_SAMPLE = 258  # TIFF's tag
_SIZ = b"\xff\x4f\xff\x51"  # a JPEG 2000 codestream's first two markers
_SSIZ = 42  # bytes from there to the first component's precision


def declared_depth(image: Image.Image, data: bytes, values: np.ndarray) -> int | None:
    """Of grey `values` (H, W) uint16 as Pillow gives those of `image`, out of these bytes. None:
    it declares none."""
    if image.format == "PNG":
        return _of_png(data, values)
    if isinstance(image, TiffImageFile):
        bits: int = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
        return bits if bits < 16 else None
    if image.format == "JPEG2000":  # Pillow moves values of another number of bits to fill 16
        at = data.find(_SIZ) + _SSIZ
        return 16 if at < len(data) and (data[at] & 0x7F) != 15 else None
    return None


def _of_png(data: bytes, values: np.ndarray) -> int | None:
    """By PNG's standard the bits that sBIT counts are the highest of the 16; those who write raw
    detector values and sBIT leave them at the lowest. A file of the second kind has no value beyond
    them, and some lower than the first kind can have but 0."""
    bits = _significant_bits(data)
    if bits is None:
        return None
    lowest = int(values.max()) < 1 << bits and bool((values & ((1 << 16 - bits) - 1)).any())
    return bits if lowest else 16


def _significant_bits(data: bytes) -> int | None:
    """What the chunk sBIT says of the grey or colour channels; None where it is not there, or
    damaged, or says nothing of use."""
    for kind, begin, end in png_chunks(data):
        if kind == b"sBIT":
            sound = zlib.crc32(data[begin:end]) == int.from_bytes(data[end : end + 4], "big")
            colours = 3 if data[25] & 2 else 1
            bits = max(data[begin + 4 : end][:colours], default=0)
            return bits if sound and 8 <= bits <= 16 else None
        if kind == b"IDAT":
            return None
    return None
