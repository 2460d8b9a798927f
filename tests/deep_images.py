"""Files of grey values of up to 16 bits, for tests; not a test itself."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
from PIL import Image


def picture(bits: int, height: int = 48, width: int = 64, *, seed: int = 0) -> np.ndarray:
    """(H, W) uint16 without symmetry, from 0 to the largest value of so many bits."""
    y, x = np.mgrid[:height, :width]
    a, b, c = np.random.default_rng(seed).uniform(5, 20, 3)
    waves = np.sin(x / a + y / 31) + np.cos(y / b) + np.sin(x * y / 300 + c)
    shares = (waves - waves.min()) / (waves.max() - waves.min())
    return np.round(shares * ((1 << bits) - 1)).astype(np.uint16)


def png(values: np.ndarray, significant: bytes | None = None) -> bytes:
    """(H, W) or (H, W, C) uint16 -> a PNG; significant: the content of its sBIT."""
    data = imagecodecs.png_encode(values, level=1)
    if significant is None:
        return bytes(data)
    chunk = b"sBIT" + significant
    length, checksum = (struct.pack(">I", n) for n in (len(significant), zlib.crc32(chunk)))
    return data[:33] + length + chunk + checksum + data[33:]


def tiff(values: np.ndarray, largest: int | None = None) -> bytes:
    """A TIFF of 16 bits; largest: its MaxSampleValue."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo={} if largest is None else {281: largest})
    return buffer.getvalue()


def tiff_12(values: np.ndarray) -> bytes:
    """A TIFF of packed 12-bit values, two in three bytes."""
    height, width = values.shape
    pairs = values.astype(np.uint32).reshape(-1, 2)
    words = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, words.size)]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = struct.pack("<2sHI", b"II", 42, 8 + words.size)
    return start + words.tobytes() + struct.pack("<H", len(tags)) + table + bytes(4)


def netpbm(values: np.ndarray, most: int, *, plain: bool = False) -> bytes:
    """A PGM, or of (H, W, 3) a PPM, with this declared maximum."""
    height, width, *colours = values.shape
    kind = (2 if plain else 5) + bool(colours)
    header = b"P%d # a comment\n%d %d\n# another\n%d\n" % (kind, width, height, most)
    if not plain:
        return header + values.astype(">u2").tobytes()
    return header + b" ".join(b"%d" % value for value in values.ravel().tolist())


def jpeg_2000(values: np.ndarray, bits: int, kind: str = "jp2") -> bytes:
    """Lossless, of this declared precision."""
    options = {"codecformat": kind, "level": 0, "reversible": True, "bitspersample": bits}
    return bytes(imagecodecs.jpeg2k_encode(values, **options))
