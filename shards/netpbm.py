"""Netpbm files (PGM, PPM) of more than 8 bits: Pillow reads 0.4 megapixels of them a second, moves
values beyond the declared maximum down to it without a word, and keeps the high byte of colours."""

import re

import numpy as np

from shards.bad_image import BadImage
from shards.depth import Values

_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([2356])" + 3 * (_GAP + rb"(\d{1,10})") + rb"\s")
_COMMENT = re.compile(rb"#[^\r\n]*")


def decode_deep_netpbm(data: bytes) -> Values | None:
    """(H, W) uint16 values of a grey or colour file with a maximum above 255; None of another one.
    A maximum of 65535 declares no depth: it is what writers put who do not know any. BadImage."""
    header = _HEADER.match(data)
    if header is None:
        return None
    kind, width, height, most = (int(part) for part in header.groups())
    if not 255 < most <= 65535:
        return None
    channels = 3 if kind in (3, 6) else 1
    count = width * height * channels
    content = memoryview(data)[header.end() :]
    if kind in (2, 3):
        values = np.fromstring(_COMMENT.sub(b"", content), np.int64, sep=" ")[:count]
    else:
        values = np.frombuffer(content, ">u2", min(count, len(content) // 2))
    if len(values) < count:
        raise BadImage(f"does not decode: {len(values)} values, the header declares {count}")
    if not 0 <= values.min() <= values.max() <= most:
        raise BadImage(
            f"does not decode: values from {values.min()} to {values.max()}, the header declares "
            f"at most {most}"
        )
    grey = values.reshape(height, width, channels)
    grey = luma(grey) if channels == 3 else grey[..., 0].astype(np.uint16)
    if most == 65535:
        return Values(grey)
    return Values((grey * np.uint32(65536) // np.uint32(most + 1)).astype(np.uint16), 16)


def luma(colours: np.ndarray) -> np.ndarray:
    """(H, W, 3) values of up to 16 bits -> (H, W) uint16: ITU-R 601 in the whole numbers that
    Pillow takes; three equal channels stay as they are."""
    weights = np.array((19595, 38470, 7471), np.uint32)  # of 65536
    return ((colours @ weights + np.uint32(32768)) >> np.uint32(16)).astype(np.uint16)
