"""Damaged, hostile and odd image files, the same for the same seed. Used by test_fuzz.py.

`inputs(seed, count)` yields `Input`s: sound synthetic radiographs of 96 x 96 in every readable
format, files that are refused whatever they hold, and sound ones that were damaged.
"""

import functools
import io
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import cv2
import imagecodecs
import numpy as np
from PIL import Image, ImageCms

from ingest.radiograph import draw
from shards.codec import encode

SIZE = 96  # pixels
Expected = Literal["kept", "quarantined", "either"]


@dataclass(frozen=True)
class Input:
    """grey: (H, W) uint8, which the file must give if it is kept; None: any pixels will do."""

    name: str
    data: bytes = field(repr=False)
    expected: Expected
    grey: np.ndarray | None = field(default=None, repr=False)


Damage = Callable[[bytes, np.random.Generator], bytes]


def inputs(seed: int, count: int) -> Iterator[Input]:
    """`count` inputs: every sound and every refused one first, then damaged ones."""
    sound = sound_files(seed)
    fixed = [Input(name, data, "kept", grey) for name, (data, grey) in sound.items()]
    fixed += [Input(name, data, "quarantined") for name, data in refused_files(seed).items()]
    yield from fixed[:count]
    yield from damaged(sound, seed, count - len(fixed))


def damaged(
    sound: Mapping[str, tuple[bytes, np.ndarray | None]], seed: int, count: int
) -> Iterator[Input]:
    """`count` damaged copies of sound files (name -> bytes, pixels).

    PNG holds a checksum of every part: what is kept of a damaged one has the very pixels.
    """
    names = list(sound)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name = names[rng.integers(len(names))]
        kind = list(DAMAGES)[rng.integers(len(DAMAGES))]
        data, grey = sound[name]
        checked = name.startswith("png") or kind == "tail"
        harmed = DAMAGES[kind](data, rng)
        if kind == "head":
            yield Input(f"{number} {name} {kind}", harmed, "quarantined")
        else:
            yield Input(f"{number} {name} {kind}", harmed, "either", grey if checked else None)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(1, len(data))]


def _head(data: bytes, rng: np.random.Generator) -> bytes:
    """So little that no format has a pixel in it."""
    return data[: rng.integers(0, 20)]


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bits."""
    harmed = np.frombuffer(data, np.uint8).copy()
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        harmed[place] ^= 1 << rng.integers(8)
    return harmed.tobytes()


def _flip_header(data: bytes, rng: np.random.Generator) -> bytes:
    return _flip(data[:200], rng) + data[200:]


def _zero(data: bytes, rng: np.random.Generator) -> bytes:
    """A run of zero bytes, as a disk with a hole leaves it."""
    begin, end = np.sort(rng.integers(0, len(data) + 1, 2))
    return data[:begin] + bytes(end - begin) + data[end:]


def _drop(data: bytes, rng: np.random.Generator) -> bytes:
    begin = rng.integers(0, len(data))
    return data[:begin] + data[begin + rng.integers(1, 100) :]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    begin, end = np.sort(rng.integers(0, len(data) + 1, 2))
    return data[:end] + data[begin:]


def _extreme(data: bytes, rng: np.random.Generator) -> bytes:
    """A number in the header becomes the largest or smallest there is."""
    place = int(rng.integers(4, min(len(data) - 4, 160)))
    value = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\0\0"])
    width = int(rng.choice([1, 2, 4]))
    return data[:place] + bytes(value)[:width].ljust(width, b"\0") + data[place + width :]


def _tail(data: bytes, rng: np.random.Generator) -> bytes:
    """Sound, with something behind its end: what was concatenated, or padding."""
    return data + [data, bytes(512), rng.bytes(100)][rng.integers(3)]


DAMAGES: dict[str, Damage] = {
    "cut": _cut,
    "head": _head,
    "flip": _flip,
    "flip header": _flip_header,
    "zero": _zero,
    "drop": _drop,
    "repeat": _repeat,
    "extreme": _extreme,
    "tail": _tail,
}


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(quarters: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = {0: 1, 1: 8, 2: 3, 3: 6}[quarters]  # 90 degrees each, counter-clockwise
    return exif


@functools.cache
def sound_files(seed: int) -> dict[str, tuple[bytes, np.ndarray]]:
    """Name -> bytes and the (H, W) uint8 pixels that they must give."""
    grey = draw(seed, frozenset(), size=SIZE)[: SIZE - 8]  # not square: turns show
    image = Image.fromarray(grey)
    deep = grey.astype(np.uint16) * 256 + 77
    rgb = image.convert("RGB")
    bits = (grey > 127) * np.uint8(255)
    files = {
        "png grey": _saved(image, "PNG"),
        "png colour": _saved(rgb, "PNG"),
        "png alpha": _saved(image.convert("RGBA"), "PNG"),
        "png grey alpha": _saved(image.convert("LA"), "PNG"),
        "png palette": _saved(image.convert("P"), "PNG"),
        "png 16": _saved(Image.fromarray(deep), "PNG"),
        "png interlaced": _interlaced(grey),
        "png transparent grey": _saved(image, "PNG", transparency=7),
        "png profile": _saved(rgb, "PNG", icc_profile=_profile()),
        "tiff": _saved(image, "TIFF"),
        "tiff 16": _saved(Image.fromarray(deep), "TIFF"),
        "tiff lzw": _saved(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": _saved(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "tiff tiles": _tiled_tiff(grey),
        "tiff cmyk": _saved(image.convert("CMYK"), "TIFF"),
        "bmp": _saved(image, "BMP"),
        "bmp colour": _saved(rgb, "BMP"),
        "gif": _saved(image, "GIF"),
        "webp": _saved(rgb, "WEBP", lossless=True),
        "jpeg 2000": _saved(image, "JPEG2000"),
        "jpeg 2000 codestream": _saved(image, "JPEG2000", no_jp2=True),
        "jpeg 2000 16": _saved(Image.fromarray(deep), "JPEG2000"),
        "jph": encode(grey, "htj2k"),
        "ppm": _saved(rgb, "PPM"),
        "pgm": _saved(image, "PPM"),
    }
    found = {name: (data, grey) for name, data in files.items()}
    found["png 1"] = (_saved(image.point(lambda v: 255 * (v > 127), "1"), "PNG"), bits)
    for quarters in range(4):
        data = _saved(image, "PNG", exif=_turned(quarters))
        found[f"png turned {quarters}"] = (data, np.rot90(grey, quarters))
    return found | {name: (data, _read_by_opencv(data)) for name, data in _jpegs(image).items()}


def _jpegs(image: Image.Image) -> dict[str, bytes]:
    return {
        "jpeg": _saved(image, "JPEG"),
        "jpeg colour": _saved(image.convert("RGB"), "JPEG"),
        "jpeg progressive": _saved(image, "JPEG", progressive=True),
        "jpeg turned": _saved(image, "JPEG", exif=_turned(3)),
        "jpeg restarts": _saved(image, "JPEG", restart_marker_rows=1),
        "jpeg cmyk": _saved(image.convert("CMYK"), "JPEG"),
    }


def _read_by_opencv(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _tiled_tiff(grey: np.ndarray) -> bytes:
    """One TIFF tile of 96 x 96, deflated, which Pillow does not write."""
    height, width = grey.shape
    tile = np.zeros((SIZE, SIZE), np.uint8)
    tile[:height, :width] = grey
    data = imagecodecs.zlib_encode(tile.tobytes())
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(322, SIZE), (323, SIZE), (324, 8), (325, len(data))]
    start = 8 + len(data) + len(data) % 2
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, start) + data.ljust(start - 8, b"\0") + directory


def _chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def png(width: int, height: int, raw: bytes, *, colour: int = 0, interlaced: bool = False) -> bytes:
    """An 8-bit PNG of scan lines with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlaced)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _interlaced(grey: np.ndarray) -> bytes:
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
    passes += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [grey[y::down, x::right] for x, y, right, down in passes]
    raw = b"".join(b"\0" + line.tobytes() for part in parts for line in part)
    return png(grey.shape[1], grey.shape[0], raw, interlaced=True)


@functools.cache
def refused_files(seed: int) -> dict[str, bytes]:
    """Name -> bytes of what is no image, several images, or too large."""
    frames = [Image.fromarray(draw(seed + i, frozenset(), size=SIZE)) for i in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    text = "Image Index,Finding Labels\n00000001_000.png,Mass\n" * 20
    return {
        "empty": b"",
        "zero bytes": bytes(4096),
        "text": text.encode(),
        "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pickle": pickle.dumps({"image": frames[0].tobytes()}),
        "zip": b"PK\x03\x04" + bytes(200),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "animated gif": _saved(frames[0], "GIF", **several),
        "animated png": _saved(frames[0], "PNG", **several),
        "animated colour png": _saved(frames[0].convert("RGB"), "PNG", **several),
        "animated webp": _saved(frames[0].convert("RGB"), "WEBP", **several),
        "tiff pages": _saved(frames[0], "TIFF", **several),
        "tiff of float": _saved(Image.fromarray(np.full((9, 9), 0.5, np.float32)), "TIFF"),
    } | _bombs(frames[0])


def _bombs(image: Image.Image) -> dict[str, bytes]:
    """Sound files that declare 60,000 x 60,000 pixels: 3.6 GB."""
    side = 60_000
    jpeg, bmp, gif = (_saved(image, kind) for kind in ("JPEG", "BMP", "GIF"))
    webp = bytearray(_saved(image.convert("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"))
    canvas = webp.index(b"VP8X") + 12
    webp[canvas : canvas + 6] = (side - 1).to_bytes(3, "little") * 2
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg_2000, jph = _saved(image, "JPEG2000"), encode(np.asarray(image), "htj2k")
    big = struct.pack(">II", side, side)
    return {
        "png bomb": png(side, side, bytes(10**7)),
        "png colour bomb": png(side, side, bytes(10**7), colour=2),
        "jpeg bomb": jpeg[:frame] + struct.pack(">HH", side, side) + jpeg[frame + 4 :],
        "bmp bomb": bmp[:18] + struct.pack("<ii", side, side) + bmp[26:],
        "gif bomb": gif[:6] + struct.pack("<HH", side, side) + gif[10:],
        "webp bomb": bytes(webp),
        "tiff bomb": _tiff_declares(image, side),
        "pgm bomb": b"P5 60000 60000 255\n" + bytes(99),
        "pgm of one line": b"P5 90000 1 255\n" + bytes(90_000),
        "jpeg 2000 bomb": _boxed(jpeg_2000, big),
        "jpeg 2000 bomb within": _streamed(jpeg_2000, big),
        "jpeg 2000 bomb, both": _streamed(_boxed(jpeg_2000, big), big),
        "jph bomb": _boxed(jph, big),
        "jph bomb within": _streamed(jph, big),
    }


def _tiff_declares(image: Image.Image, side: int) -> bytes:
    data = _tiled_tiff(np.asarray(image))
    for tag in (256, 257):
        old = struct.pack("<HHII", tag, 4, 1, SIZE)
        data = data.replace(old, struct.pack("<HHII", tag, 4, 1, side))
    return data


def _boxed(data: bytes, size: bytes) -> bytes:
    """Another size in the box around a JPEG 2000 codestream."""
    place = data.index(b"ihdr") + 4
    return data[:place] + size + data[place + 8 :]


def _streamed(data: bytes, size: bytes) -> bytes:
    """Another size of image and tile in the codestream itself."""
    place = data.index(b"\xff\x4f\xff\x51") + 8
    harmed = bytearray(data)
    harmed[place : place + 8] = harmed[place + 16 : place + 24] = size
    return bytes(harmed)
