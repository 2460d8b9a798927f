"""Whether a sequential JPEG is whole: every Huffman code of its scans is read, no pixel is made.

libjpeg only warns where the data of a scan end early, hold no valid code or go on behind the last
block, and decoders fill up with grey. Here that is an error, for 8 and 12 bits and for lossless
JPEG (ITU-T T.81; markers: table B.1). Progressive and arithmetic files are not walked.
"""

import struct
from dataclasses import dataclass, field
from math import prod

import numpy as np

from shards.bad_image import BadImage
from shards.compiled import Kernel

SEQUENTIAL = (0xC0, 0xC1)  # baseline, extended
LOSSLESS = 0xC3
_OTHER_FRAMES = (*range(0xC2, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_DHT, _SOI, _EOI, _SOS, _DRI, _APP0, _ADOBE = 0xC4, 0xD8, 0xD9, 0xDA, 0xDD, 0xE0, 0xEE
_TABLES = 8  # 4 for DC or lossless, 4 for AC
_CUT = "the JPEG ends before its last pixel"
_PROBLEMS = {
    1: _CUT,
    2: "damaged JPEG: a code that its Huffman table does not have",
    3: "damaged JPEG: more data than pixels",
    4: "damaged JPEG: a restart marker is missing",
}

_walk_scan = Kernel("walk_scan")


@dataclass(frozen=True)
class Component:
    """One colour of a frame. across, down: its sampling factors."""

    number: int
    across: int
    down: int


@dataclass
class JpegFrame:
    """What the segments of a JPEG say. precision: bits; end: where the bytes behind EOI begin;
    ycc: whether three components are YCbCr, as a JFIF or Adobe segment tells, None without one."""

    marker: int = 0
    precision: int = 0
    rows: int = 0
    columns: int = 0
    components: tuple[Component, ...] = ()
    end: int = 0
    ycc: bool | None = None
    colour_segments: list[tuple[int, int]] = field(default_factory=list)

    @property
    def lossless(self) -> bool:
        """Whether the pixels are predicted, not transformed."""
        return self.marker == LOSSLESS


def read_frame(data: bytes) -> JpegFrame:
    """The segments of a sequential or lossless JPEG, every scan walked to its end. BadImage when a
    scan is damaged, or the process is another one."""
    frame = JpegFrame()
    tables = np.zeros((_TABLES, 1 << 16), np.uint16)
    restart, at = 0, 2
    if data[:2] != b"\xff\xd8":
        raise BadImage("the encoded pixels do not begin as a JPEG")
    while True:
        marker, at = _next_marker(data, at)
        if marker == _EOI:
            if not frame.end:
                raise BadImage("a JPEG without a scan")
            frame.end = at
            return frame
        length = int.from_bytes(data[at : at + 2], "big")
        segment = data[at + 2 : at + length]
        if length < 2 or at + length > len(data):
            raise BadImage(_CUT)
        if marker in (*SEQUENTIAL, *_OTHER_FRAMES):
            _read_sizes(frame, marker, segment)
        elif marker == _DHT:
            _read_tables(tables, segment)
        elif marker == _DRI:
            restart = int.from_bytes(segment[:2], "big")
        elif marker == _ADOBE and segment[:5] == b"Adobe" and len(segment) >= 12:
            frame.ycc = segment[11] == 1  # goes before JFIF
            frame.colour_segments.append((at - 2, at + length))
        elif marker == _APP0 and segment[:5] == b"JFIF\0":
            frame.ycc = True if frame.ycc is None else frame.ycc
            frame.colour_segments.append((at - 2, at + length))
        at += length
        if marker == _SOS:
            frame.end = at = _walk(data, at, frame, tables, restart, segment)


def as_stored(data: bytes, frame: JpegFrame) -> bytes:
    """The same JPEG with an Adobe segment in the place of others that speak of colours: it makes
    decoders give three components as they are stored, whatever these are."""
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(5)
    parts, at = [b"\xff\xd8", adobe], 2
    for begin, end in frame.colour_segments:
        parts.append(data[at:begin])
        at = end
    return b"".join([*parts, data[at : frame.end]])


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    """The marker at this place, behind any fill bytes, and where its segment begins."""
    if at < len(data) and data[at] != 0xFF:
        raise BadImage(_PROBLEMS[3])
    while at < len(data) and data[at] == 0xFF:
        at += 1
    if at >= len(data):
        raise BadImage(_CUT)
    return data[at], at + 1


def _read_sizes(frame: JpegFrame, marker: int, segment: bytes) -> None:
    if marker not in (*SEQUENTIAL, LOSSLESS):
        raise BadImage("a progressive, hierarchical or arithmetic JPEG: not read here")
    if frame.marker or len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise BadImage("damaged JPEG: its frame header")
    frame.marker = marker
    frame.precision, frame.rows, frame.columns, count = struct.unpack(">BHHB", segment[:6])
    frame.components = tuple(
        Component(segment[i], segment[i + 1] >> 4, segment[i + 1] & 15)
        for i in range(6, 6 + 3 * count, 3)
    )
    sampled = all(1 <= c.across <= 4 and 1 <= c.down <= 4 for c in frame.components)
    if not frame.components or not sampled:
        raise BadImage("damaged JPEG: its frame header")


def _read_tables(tables: np.ndarray, segment: bytes) -> None:
    """Huffman tables (T.81, B.2.4.2), as 16 bits -> length of the code << 8 | its value."""
    at = 0
    while at < len(segment):
        kind, counts = (
            segment[at],
            np.frombuffer(segment[at + 1 : at + 17].ljust(16, b"\0"), np.uint8),
        )
        values = np.frombuffer(segment[at + 17 : at + 17 + int(counts.sum())], np.uint8)
        number = (kind >> 4) * 4 + (kind & 3)
        if kind >> 4 > 1 or kind & 15 > 3 or len(values) < int(counts.sum()):
            raise BadImage("damaged JPEG: its Huffman table")
        lengths = np.repeat(np.arange(1, 17, dtype=np.uint16), counts)
        entries = np.repeat(lengths << 8 | values, 1 << 16 - lengths.astype(np.int64))
        if len(entries) > 1 << 16:
            raise BadImage("damaged JPEG: its Huffman table")
        tables[number] = 0
        tables[number, : len(entries)] = entries
        at += 17 + len(values)


def _walk(
    data: bytes, begin: int, frame: JpegFrame, tables: np.ndarray, restart: int, header: bytes
) -> int:
    """One scan. Returns where it ends."""
    chosen = _chosen(frame, header)
    blocks = [
        (table >> 4, -1 if frame.lossless else 4 + (table & 15))
        for component, table in chosen
        for _ in range(1 if len(chosen) == 1 else component.across * component.down)
    ]
    plan = np.array(blocks, np.int32)
    if plan.min(initial=0) < -1 or plan[:, 0].max() > 3 or plan[:, 1].max() > 7:
        raise BadImage("damaged JPEG: its scan header")
    found = np.zeros(2, np.int64)
    view = np.frombuffer(data, np.uint8)
    units = _units(frame, [component for component, _ in chosen])
    _walk_scan(view, tables, plan, found, begin, len(data), len(blocks), units, restart)
    if not data[found[1] :].strip(b"\0"):
        raise BadImage(_CUT)  # padded in the place of EOI
    if found[0]:
        raise BadImage(_PROBLEMS[int(found[0])])
    return int(found[1])


def _chosen(frame: JpegFrame, header: bytes) -> list[tuple[Component, int]]:
    """The components of a scan, each with the numbers of its tables."""
    by_number = {component.number: component for component in frame.components}
    count = header[0] if header else 0
    pairs = [(header[i], header[i + 1]) for i in range(1, min(2 * count, len(header) - 1), 2)]
    if not count or len(pairs) < count or any(number not in by_number for number, _ in pairs):
        raise BadImage("damaged JPEG: its scan header")
    return [(by_number[number], table) for number, table in pairs]


def _units(frame: JpegFrame, components: list[Component]) -> int:
    """How many groups of blocks a scan has (T.81, A.2)."""
    side = 1 if frame.lossless else 8
    across = max(c.across for c in frame.components)
    down = max(c.down for c in frame.components)
    if len(components) > 1:
        return prod((-(-frame.columns // (side * across)), -(-frame.rows // (side * down))))
    own = components[0]
    columns, rows = -(-frame.columns * own.across // across), -(-frame.rows * own.down // down)
    return prod((-(-columns // side), -(-rows // side)))
