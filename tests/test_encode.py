"""ingest.encode: what a worker makes of one image."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from ingest.encode import EncodeConfig, Encoded, Rejected, encode_image, pixel_hash
from shards.codec import decode_grey, encode
from shards.preprocess import reduce_shorter_side


def picture(height: int = 90, width: int = 120) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (128 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)


def saved(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("encoding", "extension"), [("htj2k", "jph"), ("png", "png")])
def test_reduced_and_lossless(encoding, extension):
    data = encode(picture(), "png")
    out = encode_image(data, EncodeConfig(encoding, 64))
    assert isinstance(out, Encoded)
    assert out.extension == extension
    assert (out.width, out.height) == (120, 90)
    assert out.sha256 == hashlib.sha256(data).hexdigest()
    assert np.array_equal(decode_grey(out.image), reduce_shorter_side(picture(), 64))


@pytest.mark.parametrize(
    ("kind", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp"), ("TIFF", "tif")]
)
def test_keep_names_the_real_format(kind, extension):
    data = saved(picture(), kind)
    out = encode_image(data, EncodeConfig("keep", None))
    assert isinstance(out, Encoded)
    assert (out.image, out.extension) == (data, extension)


def test_keep_still_decodes():
    out = encode_image(saved(picture(), "PNG")[:-400], EncodeConfig("keep", None))
    assert isinstance(out, Rejected)


def test_pixels_are_hashed_before_reduction_and_encoding():
    png, bmp = saved(picture(), "PNG"), saved(picture(), "BMP")
    outs = [encode_image(png, EncodeConfig("htj2k", 32)), encode_image(bmp, EncodeConfig("jpeg"))]
    assert [getattr(out, "pixel_sha256", None) for out in outs] == [pixel_hash(picture())] * 2


def test_the_shape_is_part_of_the_pixel_hash():
    flat = np.zeros((4, 9), np.uint8)
    assert pixel_hash(flat) != pixel_hash(flat.reshape(6, 6))
    assert pixel_hash(flat[:, ::2]) == pixel_hash(flat[:, ::2].copy())


@pytest.mark.parametrize("data", [b"", b"nothing", saved(picture(), "PNG")[:500]])
def test_rejected_with_a_reason_and_the_hash(data):
    out = encode_image(data, EncodeConfig())
    assert isinstance(out, Rejected)
    assert out.reason
    assert out.sha256 == hashlib.sha256(data).hexdigest()


def test_size_limit():
    out = encode_image(saved(picture(), "PNG"), EncodeConfig(max_pixels=100))
    assert isinstance(out, Rejected)
    assert "over the limit" in out.reason


def test_what_readers_of_shards_refuse_enters_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ingest.encode.MAX_PIXELS", 1000)
    data = saved(picture(), "PNG")
    out = encode_image(data, EncodeConfig(shorter_side=None))
    assert isinstance(out, Rejected)
    assert "over what shards hold (1000)" in out.reason
    assert isinstance(encode_image(data, EncodeConfig(shorter_side=20)), Encoded)
