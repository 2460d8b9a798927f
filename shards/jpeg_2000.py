"""How many bits the values of a JPEG 2000 file have."""

_SIZ = b"\xff\x4f\xff\x51"  # a codestream's first two markers
_SSIZ = 42  # bytes from there to the first component's precision


def jpeg_2000_bits(data: bytes) -> int:
    """Those of the first component, of bytes that Pillow opens."""
    return (data[data.find(_SIZ) + _SSIZ] & 0x7F) + 1
