"""300 random PNG, JPEG and TIFF files: within 1 grey level of libvips, and each refusal told."""

import io
import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from tiff_maker import packed, tiff

from shards.codec import BadImage, decode_source

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        shutil.which("vips") is None, reason="needs the vips command (libvips-tools)"
    ),
]
EACH = 100
# Of the TIFF files so many are refused, each for what it holds; of the others none is.
REFUSED = {
    r"signed values from -\d+: the file does not say which is black": 6,
    r"0 is white and black is not known: of 16 bits the values use 12": 6,
    r"16-bit image without a declared depth uses 12 bits, of how many is not known": 4,
    r"values in floating point": 6,
    r"values up to \d+, over 65535": 5,
}
_VIPS_TYPES = {0: np.uint8, 1: np.int8, 2: np.uint16, 3: np.int16, 4: np.uint32, 5: np.int32}
_ADAM_7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
Random = np.random.Generator


def waves(rng: Random, height: int, width: int, bits: int) -> np.ndarray:
    """(H, W) values of so many bits: smooth, with a little noise, without symmetry."""
    y, x = np.mgrid[:height, :width]
    a, b, c = rng.uniform(5, 30, 3)
    values = (
        np.sin(x / a + y / b) + np.cos(y / c) + x / width + rng.normal(0, 0.02, (height, width))
    )
    shares = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
    return np.round(shares * ((1 << bits) - 1)).astype(np.uint16)


def mild(grey: np.ndarray) -> np.ndarray:
    """(H, W, 3) colours that JPEG's colour transform does not clip."""
    middle = grey.astype(np.float64) * 0.6 + 50
    return np.dstack([middle + 20, middle, middle - 20]).astype(np.uint8)


def exif(orientation: int) -> bytes:
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 274, 3, 1, orientation, 0) + bytes(4)


def chunk(kind: bytes, content: bytes) -> bytes:
    length, checksum = (struct.pack(">I", n) for n in (len(content), zlib.crc32(kind + content)))
    return length + kind + content + checksum


def random_png(rng: Random) -> bytes:
    height, width = rng.integers(1, 70, 2)
    colour = int(rng.choice([0, 2, 3, 4, 6]))
    depths = {0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(colour, [8, 16])
    bits = int(rng.choice(depths))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    image = np.dstack([waves(rng, height, width, bits) for _ in range(channels)])
    interlaced = int(rng.integers(2))
    passes = [*_ADAM_7, (0, 1, 1, 2)] if interlaced else [(0, 0, 1, 1)]
    parts = [image[y::down, x::across] for x, y, across, down in passes]
    rows = [packed(part.reshape(len(part), -1), bits) for part in parts if part.size]
    shapes = [part.shape[0] for part in parts if part.size]
    lines = [
        b"\0" + row[at : at + len(row) // many]
        for row, many in zip(rows, shapes)
        for at in range(0, len(row), len(row) // many)
    ]
    extra = (
        chunk(b"PLTE", rng.integers(0, 256, 3 << bits, np.uint8).tobytes()) if colour == 3 else b""
    )
    if rng.integers(2):
        extra += chunk(b"eXIf", exif(int(rng.integers(1, 9))))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(lines)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")


def random_jpeg(rng: Random) -> bytes:
    grey = waves(rng, *rng.integers(8, 90, 2), 8).astype(np.uint8)
    options: dict[str, object] = {
        "quality": int(rng.integers(60, 100)),
        "progressive": bool(rng.integers(2)),
        "optimize": bool(rng.integers(2)),
        "restart_marker_blocks": int(rng.choice([0, 0, 1, 7])),
    }
    if rng.integers(2):
        options["exif"] = b"Exif\0\0" + exif(int(rng.integers(1, 9)))
    if rng.integers(2):
        options |= {"subsampling": int(rng.integers(3)), "keep_rgb": False}
        image = Image.fromarray(mild(grey))
    else:
        image = Image.fromarray(grey)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def random_tiff(rng: Random) -> bytes:
    height, width = rng.integers(1, 70, 2)
    read = ["few", "grey", "white", "colour", "palette", "alpha"]
    kind = str(rng.choice([*read * 3, "dark white", "dark", "signed", "float", "32"]))
    order = str(rng.choice(["<", ">"]))
    bits = {"few": int(rng.choice([1, 2, 4])), "palette": 8, "float": 32, "32": 32}.get(kind, 0)
    bits = bits or (16 if kind.startswith(("dark", "signed")) else int(rng.choice([8, 16])))
    used = 12 if kind.startswith("dark") else min(bits, 16)
    channels = {"colour": 3, "alpha": 2}.get(kind, 1)
    image = np.dstack([waves(rng, height, width, used) for _ in range(channels)])
    tags: dict[str, object] = {"t258": (bits,) * channels, "t277": channels}
    tags["t262"] = {"white": 0, "dark white": 0, "colour": 2, "palette": 3}.get(kind, 1)
    stored = image.astype(np.int64)
    if kind == "signed":
        stored, tags["t339"] = stored - 32768, 2
    elif kind == "float":
        tags["t339"] = 3
    elif kind == "32":
        stored = stored * 65537
    elif kind == "palette":
        tags["t320"] = tuple((rng.integers(0, 256, 768) << 8).tolist())
    elif kind == "alpha":
        tags["t338"] = 2
    letter = {"float": "f4", "signed": "i2", "32": "u4"}.get(kind, f"u{max(bits // 8, 1)}")
    content = stored.astype(f"{order}{letter}").tobytes()
    if kind == "few":
        content = packed(image[..., 0], bits)
    compression = int(rng.choice([1, 5, 8]))
    encoders = {1: bytes, 5: imagecodecs.lzw_encode, 8: zlib.compress}
    content = bytes(encoders[compression](content))
    if rng.integers(2):
        tags["t274"] = int(rng.integers(1, 9))
    return tiff(content, int(height), int(width), order=order, t259=compression, **tags)


def by_vips(path: Path) -> np.ndarray | None:
    """(H, W) grey levels, in fractions. None where libvips does not read it either."""
    out = path.with_suffix(".v")
    done = subprocess.run(["vips", "autorot", path, out], capture_output=True, text=True)
    if done.returncode:
        return None
    data = out.read_bytes()
    width, height, bands, _, kind = struct.unpack_from("<5I", data, 4)
    dtype = np.dtype(_VIPS_TYPES[kind])
    pixels = np.frombuffer(data, dtype, width * height * bands, 64).reshape(height, width, bands)
    grey = pixels[..., :3] @ np.array([0.299, 0.587, 0.114]) if bands > 2 else pixels[..., 0]
    return grey / (256 if dtype.itemsize == 2 else 1)


def decoded(data: bytes) -> np.ndarray | str:
    """The grey levels, or the reason against them."""
    try:
        return decode_source(data, depth=None)
    except BadImage as error:
        return str(error)


@pytest.mark.parametrize("make", [random_png, random_jpeg, random_tiff])
def test_random_files_are_those_of_libvips(make, tmp_path):
    rng = np.random.default_rng(16)
    refused: Counter[str] = Counter()
    suffix = make.__name__.removeprefix("random_")
    for number in range(EACH):
        data = make(rng)
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(data)
        found = decoded(data)
        if isinstance(found, str):
            refused[next((why for why in REFUSED if re.search(why, found)), found)] += 1
            continue
        expected = by_vips(path)
        assert expected is not None, f"{suffix} {number}: libvips refuses it"
        assert found.shape == expected.shape, f"{suffix} {number}"
        # 2 of colour JPEGs: libvips goes from YCbCr to RGB, which rounds, and back.
        most = 2 if make is random_jpeg else 1
        assert np.abs(found - expected).max() <= most, f"{suffix} {number}"
    assert refused == (REFUSED if make is random_tiff else {})
