"""TIFF -> grey values: libtiff reads the samples, and here stands what they mean (TIFF 6.0).

Pillow reads fewer kinds (no 16-bit WhiteIsZero in big-endian files), and others wrongly: it leaves
16-bit WhiteIsZero negative, and takes signed bytes for unsigned ones.
"""

import struct

import imagecodecs
import numpy as np
from PIL import Image

from shards.bad_image import BadImage
from shards.depth import Values, bits_of
from shards.jpeg import decode_jpeg
from shards.netpbm import luma
from shards.orientation import ORIENTATION, turned
from shards.png import MAX_PIXELS

_BEGIN = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # 42; 43 is BigTIFF
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES = (
    256,
    257,
    258,
    259,
    262,
    277,
    284,
)
_COLOURS, _EXTRA, _FORMAT, _JPEG_TABLES = 320, 338, 339, 347
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_STRIPS, _TILES = (273, 279), (324, 325)  # where each is, how long
_TAGS = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _COLOURS, _EXTRA),
    *(_FORMAT, _JPEG_TABLES, _TILE_WIDTH, _TILE_HEIGHT, *_STRIPS, *_TILES, ORIENTATION),
}
_NUMBERS = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}  # TIFF's type -> struct's letter
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = range(4)
_BY_PILLOW = {5: "CMYK", 6: "YCbCr", 8: "Lab"}
_JPEG = 7
_SIGNED = 2  # of SampleFormat
_READ = {  # by libtiff
    *(1, 2, 3, 4, 5, 8, 32773, 32946),  # none, fax, LZW, deflate, PackBits
    *(6, _JPEG, 34887, 34925, 50000, 50001),  # JPEG, LERC, LZMA, Zstandard, WebP
}
_MOST_SAMPLES = 5  # a pixel: RGB, transparency and one more
Tags = dict[int, tuple[int, ...]]


def is_tiff(data: bytes) -> bool:
    """Whether bytes begin as a TIFF or BigTIFF file does."""
    return data.startswith(_BEGIN)


def tiff_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels as stored. BadImage when they are not there."""
    tags, _ = _directory(data)
    return _one(tags, _WIDTH, 0), _one(tags, _HEIGHT, 0)


def decode_tiff(data: bytes) -> Values | None:
    """(H, W) values, turned as the file's orientation says. None of colours that Pillow is to
    read: CMYK, YCbCr and Lab. BadImage with the reason of the rest."""
    tags, following = _directory(data)
    if following:
        raise BadImage("does not decode: an animation or a stack of several images")
    _check(data, tags)
    if _photometric(tags) in _BY_PILLOW:
        return None
    try:
        samples = imagecodecs.tiff_decode(data)
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        raise BadImage(f"does not decode: {error}") from error
    values = _grey(_pixels(samples, tags), tags)
    return Values(turned(values.array, _one(tags, ORIENTATION, 1)), values.declared)


def _check(data: bytes, tags: Tags) -> None:
    """BadImage of what is not read, before libtiff sees it."""
    compression = _one(tags, _COMPRESSION, 1)
    if compression not in _READ:
        raise BadImage(f"a TIFF image of compression {compression}: this kind is not read")
    photometric = _photometric(tags)
    if photometric not in _BY_PILLOW and photometric > _PALETTE:
        raise BadImage(f"a TIFF image of photometric interpretation {photometric}: not read")
    if len(set(tags.get(_BITS, (1,)))) > 1 or _one(tags, _SAMPLES, 1) > _MOST_SAMPLES:
        raise BadImage("a TIFF image of uneven or more than 5 samples a pixel: not read")
    if _one(tags, _FORMAT, 1) == _SIGNED and _one(tags, _BITS, 1) % 8:
        raise BadImage("a TIFF image of packed signed values: this kind is not read")
    if _one(tags, _TILE_WIDTH, 0) * _one(tags, _TILE_HEIGHT, 0) > MAX_PIXELS:
        raise BadImage(f"a TIFF image whose tiles are over the limit of {MAX_PIXELS} pixels")
    if compression == _JPEG and photometric != 5:
        _check_jpegs(data, tags)


def _check_jpegs(data: bytes, tags: Tags) -> None:
    """BadImage of a damaged one: libtiff passes libjpeg's warnings over."""
    tables = bytes(tags.get(_JPEG_TABLES, ()))[:-2]
    places, lengths = (tags.get(tag, ()) for tag in (_TILES if _TILES[0] in tags else _STRIPS))
    for place, length in zip(places, lengths):
        part = data[place : place + length]
        decode_jpeg(tables + part[2:] if tables else part)


def _pixels(samples: np.ndarray, tags: Tags) -> np.ndarray:
    """(H, W, samples) of what `tiff_decode` gave."""
    if samples.ndim == 2:
        return samples[..., None]
    return np.moveaxis(samples, 0, 2) if _one(tags, _PLANES, 1) == 2 else samples


def _grey(pixels: np.ndarray, tags: Tags) -> Values:
    photometric, bits = _photometric(tags), _one(tags, _BITS, 1)
    _check_alpha(pixels, tags, bits)
    channels = 3 if photometric == _RGB else 1
    if pixels.ndim != 3 or pixels.shape[2] < channels:
        raise BadImage("does not decode: fewer samples a pixel than its colours need")
    values = _whole(pixels[..., :channels])
    if photometric == _PALETTE:
        return Values(_luma(_palette(tags, bits)[values[..., 0]]))
    if photometric == _WHITE_IS_ZERO:
        values = _inverted(values, bits)
    if bits > 8:
        grey = luma(values) if channels == 3 else values[..., 0].astype(np.uint16)
        return Values(grey, bits if bits < 16 else None)
    if bits < 8:
        values = values * np.float32(255 / ((1 << bits) - 1)) + np.float32(0.5)
    values = values.astype(np.uint8)
    return Values(_luma(values) if channels == 3 else values[..., 0])


def _whole(values: np.ndarray) -> np.ndarray:
    """Them, where they are whole numbers from 0 to 65535. BadImage."""
    if values.dtype.kind not in "bui":
        raise BadImage("values in floating point: the file does not say which is black or white")
    least, most = int(values.min()), int(values.max())
    if least < 0:
        raise BadImage(f"signed values from {least}: the file does not say which is black")
    if most > 0xFFFF:
        raise BadImage(f"values up to {most}, over 65535: the file does not say which is white")
    return values


def _inverted(values: np.ndarray, bits: int) -> np.ndarray:
    """Of WhiteIsZero, where black is the largest value that so many bits hold."""
    used = bits_of(int(values.max()))
    if bits > 16 or (bits == 16 and used < 15):
        raise BadImage(
            f"0 is white and black is not known: of {bits} bits the values use {used}; save it "
            "with 0 as black (BlackIsZero)"
        )
    return ((1 << bits) - 1 - values.astype(np.int32)).astype(np.uint16)


def _check_alpha(pixels: np.ndarray, tags: Tags, bits: int) -> None:
    """BadImage where the colours are multiplied by a transparency that is not full."""
    if _one(tags, _EXTRA, 0) == 1 and int(pixels[..., -1].min()) < (1 << bits) - 1:
        raise BadImage("colours multiplied by a transparency: what lies below is not known")


def _palette(tags: Tags, bits: int) -> np.ndarray:
    """(2 ** bits, 3) uint8. By TIFF 6.0 a colour map holds 16 bits; some writers put 8 there."""
    colours = np.array(tags.get(_COLOURS, ()), np.uint16)
    if colours.size != 3 << bits:
        raise BadImage(f"does not decode: a colour map of {colours.size} values, not {3 << bits}")
    shift = 8 if colours.max() > 255 else 0
    return (colours >> shift).astype(np.uint8).reshape(3, -1).T


def _luma(colours: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))


def _photometric(tags: Tags) -> int:
    """Where it is missing, as libtiff takes it."""
    return _one(tags, _PHOTOMETRIC, _RGB if _one(tags, _SAMPLES, 1) >= 3 else _BLACK_IS_ZERO)


def _one(tags: Tags, tag: int, otherwise: int) -> int:
    return next(iter(tags.get(tag, ())), otherwise)


def _directory(data: bytes) -> tuple[Tags, int]:
    """The whole-number tags of the first image, and where the second one's stand: 0, if there is
    none. BadImage."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    pointer, count, length, inside = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    tags: Tags = {}
    try:
        (begin,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
        (entries,) = struct.unpack_from(order + count, data, begin)
        begin += struct.calcsize(count)
        for at in range(begin, begin + length * entries, length):
            tag, kind, many = struct.unpack_from(f"{order}HH{pointer}", data, at)
            if tag not in _TAGS or kind not in _NUMBERS:
                continue
            letter, place = _NUMBERS[kind], at + length - inside
            if many * struct.calcsize(letter) > inside:
                (place,) = struct.unpack_from(order + pointer, data, place)
            tags[tag] = struct.unpack_from(f"{order}{min(many, len(data))}{letter}", data, place)
        (following,) = struct.unpack_from(order + pointer, data, begin + length * entries)
    except (struct.error, OverflowError):
        raise BadImage("does not decode: the file is cut short, or its tags are damaged") from None
    return tags, following
