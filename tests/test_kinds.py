"""shards.kinds: a file that is not read is called by what it is."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.codec import BadImage, decode_source
from shards.jpeg import jpeg_frame
from shards.kinds import kind_of

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, b"x")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def avif() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "AVIF")
    return buffer.getvalue()


def frame(marker: int, bits: int) -> bytes:
    """The beginning of a JPEG with a comment and padding before its frame."""
    head = b"\xff\xd8\xff\xe0\0\x04ab\xff\xfe\0\x05abc\xff\xff"
    return head + bytes([0xFF, marker, 0, 11, bits, 0, 8, 0, 8, 1, 1, 0x11, 0])


KINDS = {
    "an AVIF image": avif(),
    "a HEIC image": b"\0\0\0\x18ftypmif1\0\0\0\0heicmif1" + bytes(9),
    "a JPEG XL image": imagecodecs.jpegxl_encode(GREY),
    "a JPEG-LS image": imagecodecs.jpegls_encode(GREY),
    "a gzip file": gzip.compress(b"a"),
    "a zip archive": zipped("a.png"),
    "an Excel workbook": zipped("xl/workbook.xml"),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\0\4",
    "a zstd file": imagecodecs.zstd_encode(b"a"),
    "an xz file": lzma.compress(b"a"),
    "an lzma file": lzma.compress(b"a", lzma.FORMAT_ALONE),
    "a bzip2 file": bz2.compress(b"a"),
    "a rar archive": b"Rar!\x1a\x07\1\0",
    "a tar archive": tarred(),
    "a PDF document": b"%PDF-1.7\n",
    "an SVG image": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a NIfTI volume": bytes(344) + b"n+1\0",
    "a video": b"\0\0\0\x18ftypisom\0\0\0\0isommp41",
    "a Git LFS pointer, not the file itself": b"version https://git-lfs.github.com/spec/v1\n",
    "a 12-bit JPEG": frame(0xC1, 12),
    "a lossless JPEG": frame(0xC3, 16),
    "a hierarchical JPEG": frame(0xC5, 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_not_read_is_named(kind):
    assert kind_of(KINDS[kind]) == kind
    with pytest.raises(BadImage, match=f"^{kind}: this kind is not read$"):
        decode_source(KINDS[kind])


@pytest.mark.parametrize("data", [b"<html>404</html>", b"a,b\n1,2\n", b"\xff\xd8", b"PK"])
def test_what_has_no_kind_is_not_an_image(data):
    assert kind_of(data) is None
    with pytest.raises(BadImage, match=r"^not an image$"):
        decode_source(data)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "WebP"])
def test_a_damaged_file_of_a_kind_that_is_read_keeps_its_name(kind):
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, kind)
    assert kind_of(buffer.getvalue()) == f"a {kind} image"
    with pytest.raises(BadImage, match=f"^a {kind} image|^unreadable header|cut short"):
        decode_source(buffer.getvalue()[:12])


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WebP", "BMP", "PPM", "JPEG2000"])
def test_no_kind_that_is_read_is_called_unread(kind):
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, kind, **({"lossless": True} if kind == "WebP" else {}))
    assert np.array_equal(decode_source(buffer.getvalue()), GREY)


def test_the_frame_of_a_jpeg():
    assert jpeg_frame(frame(0xC2, 8)) == (0xC2, 8)
    assert jpeg_frame(b"\xff\xd8\xff\xd9") is None


BEGINNINGS = [b"", b"\xff\xd8\xff", b"\0\0\0\x18ftyp", b"PK\3\4"]


@given(st.binary(max_size=80), st.sampled_from(BEGINNINGS))
def test_any_bytes_have_a_kind_or_none(data, begin):
    assert kind_of(begin + data) is None or kind_of(begin + data).startswith(("a ", "an "))
