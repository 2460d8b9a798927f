"""JPEG of 8 bits -> pixels by libjpeg-turbo, whose warnings are errors here.

Other decoders fill the place of a damaged or lost part of the scan with grey and say nothing.
Behind the image's end anything may stand. Pillow's pixels, at 1.3 times its rate.
"""

from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image

from shards.bad_image import BadImage
from shards.png import MAX_PIXELS

_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # TEM, the restart markers, SOI
_NO_FRAME = {0xC4, 0xC8, 0xCC}  # of 0xC0 to 0xCF: Huffman tables, reserved, arithmetic conditioning
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - _NO_FRAME  # 0xF7: of JPEG-LS
_LAST = {0xD9, 0xDA}  # EOI, and SOS: the scan's bytes follow


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of a JPEG's segments before its first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in _LAST:
        marker = data[at + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:  # 0xFF: a byte of padding
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, data[at + 4 : end]
        at = max(end, at + 4)


def jpeg_frame(data: bytes) -> tuple[int, int] | None:
    """(marker, bits) of a JPEG's first frame. None where there is none."""
    frames = ((marker, part) for marker, part in jpeg_segments(data) if marker in _FRAMES)
    marker, part = next(frames, (0, b""))
    return (marker, part[0]) if part else None


def jpeg_exif(data: bytes) -> bytes:
    """The content of a JPEG's Exif segment; empty where it has none."""
    found = (part for marker, part in jpeg_segments(data) if marker == 0xE1)
    return next((part for part in found if part.startswith(b"Exif\0")), b"")


def decode_jpeg(data: bytes, max_pixels: int = MAX_PIXELS, *, grey: bool = False) -> np.ndarray:
    """(H, W) uint8 of a grey JPEG, (H, W, 3) RGB of a colour one, not turned. grey: the luma of
    either, (H, W). Without a JFIF or Adobe marker three channels are YCbCr, unless their names are
    R, G and B. BadImage with libjpeg's words when the image is not whole."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if not 0 < height * width <= max_pixels:
            raise BadImage(f"{width} x {height} pixels, over the limit of {max_pixels}")
        if colours in ("CMYK", "YCCK"):
            return _of_inks(data, grey=grey)
        wanted = "GRAY" if grey or colours == "Gray" else "RGB"
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, wanted)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise BadImage(f"does not decode: {error}") from error
    return pixels[..., 0] if wanted == "GRAY" else pixels


def _of_inks(data: bytes, *, grey: bool) -> np.ndarray:
    """CMYK has a meaning with Adobe's marker only: its inks are the negative of the values."""
    parts = (part for marker, part in jpeg_segments(data) if marker == 0xEE)
    if not any(part.startswith(b"Adobe") for part in parts):
        raise BadImage("a CMYK JPEG without Adobe's marker: nothing says what its values mean")
    inks = 255 - simplejpeg.decode_jpeg(data, "CMYK")
    colour = Image.fromarray(inks, "CMYK").convert("RGB")
    return np.array(colour.convert("L") if grey else colour)
