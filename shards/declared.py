"""The depth that an image file of more than 8 bits declares of itself, where it does.

A file of 16 bits says nothing by that: it is the least that its format has above 8. TIFF's
MaxSampleValue is no depth either: it is the largest value that the image uses, and "not to be used
to affect the visual appearance" (TIFF 6.0). `shards.png_16`, `shards.tiff` and
`shards.netpbm` tell their own.
"""

from PIL import Image

_SIZ = b"\xff\x4f\xff\x51"  # a JPEG 2000 codestream's first two markers
_SSIZ = 42  # bytes from there to the first component's precision


def jpeg_2000_bits(data: bytes) -> int:
    """Of the first component of a JPEG 2000 file that has one."""
    return (data[data.find(_SIZ) + _SSIZ] & 0x7F) + 1


def declared_depth(image: Image.Image, data: bytes) -> int | None:
    """Of grey values of 16 bits as Pillow gives those of `image`, out of these bytes. None: it
    declares none."""
    if image.format == "JPEG2000" and jpeg_2000_bits(data) != 16:
        return 16  # Pillow moves values of another number of bits to fill 16
    return None
