"""Turns an image as its EXIF orientation tag says, whatever its format, depth and colours.

The tag stands in a JPEG's Exif segment, in a PNG's chunk eXIf, in a WebP's EXIF and in a TIFF's own
tags. What XMP or a text chunk says of an orientation is a copy that editors leave behind, and
counts nowhere.
"""

import struct

import numpy as np

ORIENTATION = 274  # the tag's number, in TIFF and in EXIF
_SHORT = 3


def exif_orientation(exif: bytes) -> int:
    """1 to 8 out of the bytes of an EXIF block. 1, as it lies, where the tag is missing or not
    one of these."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return 1
    at = struct.unpack_from(f"{order}I", block, 4)[0]
    count = (
        struct.unpack_from(f"{order}H", block.ljust(at + 2)[at : at + 2])[0] if at < 65536 else 0
    )
    for entry in range(at + 2, min(at + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, entry)
        if tag == ORIENTATION:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) -> (H, W) or (W, H) as one looks at it. orientation: 1 to 8 of EXIF."""
    if orientation in (5, 6, 7, 8):  # stored by columns
        image = image.T
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
