"""Makes uncompressed TIFF files of any kind, for tests; not a test itself."""

import struct

import numpy as np

SHORT, LONG = 3, 4
_LETTERS = {1: "B", SHORT: "H", LONG: "I"}


def tiff(content: bytes, height: int, width: int, *, order: str = "<", **tags: object) -> bytes:
    """One strip. tags: t262=0, or a tuple of values; each is a SHORT."""
    known: dict[int, tuple[int, tuple[int, ...]]] = {
        256: (LONG, (width,)),
        257: (LONG, (height,)),
        259: (SHORT, (1,)),
        262: (SHORT, (1,)),
        273: (LONG, (8,)),
        277: (SHORT, (1,)),
        278: (LONG, (height,)),
        279: (LONG, (len(content),)),
    }
    for name, value in tags.items():
        values = value if isinstance(value, tuple) else (value,)
        known[int(name[1:])] = SHORT, values
    content += bytes(len(content) % 2)
    start = 8 + len(content)
    behind = start + 2 + 12 * len(known) + 4
    table, far = struct.pack(f"{order}H", len(known)), b""
    for tag, (kind, values) in sorted(known.items()):
        packed = struct.pack(f"{order}{len(values)}{_LETTERS[kind]}", *values)
        if len(packed) > 4:
            place, far = behind + len(far), far + packed
            packed = struct.pack(f"{order}I", place)
        table += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", start) + content + table + bytes(4) + far


def packed(values: np.ndarray, bits: int) -> bytes:
    """(H, W) values of so many bits, the highest first, each row from a new byte."""
    shifts = np.arange(bits - 1, -1, -1)
    ones = (values[..., None].astype(np.uint32) >> shifts & 1).astype(np.uint8)
    return np.packbits(ones.reshape(len(values), -1), axis=1).tobytes()
