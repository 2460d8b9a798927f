"""PNG of 16 bits -> grey values, and what it declares of their depth.

By libpng: a third faster than Pillow, which keeps the high byte of colours and of what has a
transparency.
"""

import zlib

import imagecodecs
import numpy as np

from shards.depth import Values
from shards.netpbm import luma
from shards.orientation import exif_orientation, turned
from shards.png import png_chunks

_COLOUR = 2  # in IHDR's colour type


def decode_png_16(data: bytes) -> Values:
    """(H, W) uint16, turned as eXIf says. RuntimeError of what does not decode. The checksums are
    the caller's."""
    pixels = imagecodecs.png_decode(data)
    if data[25] & _COLOUR:
        values = luma(pixels[..., :3])
    else:
        values = pixels if pixels.ndim == 2 else pixels[..., 0]
    exif = next((data[b + 4 : e] for kind, b, e in png_chunks(data) if kind == b"eXIf"), b"")
    return Values(turned(values, exif_orientation(exif)), _declared(data, values))


def _declared(data: bytes, values: np.ndarray) -> int | None:
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
            channels = 3 if data[25] & _COLOUR else 1
            bits = max(data[begin + 4 : end][:channels], default=0)
            return bits if sound and 8 <= bits <= 16 else None
        if kind == b"IDAT":
            return None
    return None
