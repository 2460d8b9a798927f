"""The members of a zip without its list of members, as of one that was cut short: by the header
that stands before each, from the first on.

A writer that streams does not know the sizes yet when it writes a header (bit 3 of the flags): they
follow the data. The end of such a member is that of its deflate stream; of a stored one it is where
sizes stand that are those of the bytes before them.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from serve.entries import ArchiveDamaged, Budget, guarded
from shards.zips import HEADER_SIGN

_SIZES_SIGN = b"PK\x07\x08"
# Sign, version, flags, method, time, date, CRC-32, the two sizes, lengths of name and extra fields.
_HEADER = struct.Struct("<4s5H3L2H")
_SIZES = (struct.Struct("<LLL"), struct.Struct("<LQQ"))  # CRC-32, size in the zip, size
_LONGEST_SIZES = len(_SIZES_SIGN) + _SIZES[1].size
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 1, 1 << 3, 1 << 11
_IN_EXTRA = 0xFFFFFFFF  # for a size: it is a zip64 one, in the extra field
_BLOCK = 1 << 20


@dataclass(frozen=True)
class LocalMember:
    """start, end: of its bytes in the zip, and of all that belongs to it. cost: of the budget, that
    is not spent yet."""

    info: zipfile.ZipInfo
    start: int
    end: int
    cost: int


def local_members(file: BinaryIO, budget: Budget) -> Iterator[LocalMember]:
    """Those that are whole, up to the first that is not. Bomb when finding their ends decompresses
    more than the budget has."""
    size = file.seek(0, 2)
    place = 0
    while True:
        found = guarded(partial(_member_at, file, place, size, budget), ArchiveDamaged)
        if found is None:
            return
        yield found
        place = found.end


def open_local(file: BinaryIO, member: LocalMember) -> zipfile.ZipExtFile:
    """Its bytes, as many as its header says, with their check sum compared at the end."""
    file.seek(member.start)
    return zipfile.ZipExtFile(file, "r", member.info)


def _member_at(file: BinaryIO, place: int, size: int, budget: Budget) -> LocalMember | None:
    """None: no whole member is here."""
    head = _read(file, place, _HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(HEADER_SIGN):
        return None
    _, _, flags, method, _, _, crc, packed, unpacked, name_length, extra_length = _HEADER.unpack(
        head
    )
    names = _read(file, place + _HEADER.size, name_length + extra_length)
    if len(names) < name_length + extra_length:
        return None
    start = place + _HEADER.size + len(names)
    text = names[:name_length].decode("utf-8" if flags & _UTF8 else "cp437", "surrogateescape")
    info = zipfile.ZipInfo(text)
    info.flag_bits, info.compress_type, info.CRC = flags, method, crc
    info.compress_size, info.file_size = _zip64(packed, unpacked, names[name_length:])
    if flags & _SIZES_FOLLOW:
        return _of_streamed(file, info, start, budget)
    end = start + info.compress_size
    return LocalMember(info, start, end, info.file_size) if end <= size else None


def _read(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _zip64(packed: int, unpacked: int, extra: bytes) -> tuple[int, int]:
    """The size in the zip and the size."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            field = extra[4 : 4 + length]
            values = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
            unpacked = next(values, unpacked) if unpacked == _IN_EXTRA else unpacked
            packed = next(values, packed) if packed == _IN_EXTRA else packed
        extra = extra[4 + length :]
    return packed, unpacked


def _of_streamed(
    file: BinaryIO, info: zipfile.ZipInfo, start: int, budget: Budget
) -> LocalMember | None:
    cost = info.file_size
    if info.compress_type == zipfile.ZIP_DEFLATED and not info.flag_bits & _ENCRYPTED:
        found = _deflated(file, start, budget)
        cost = 0  # it is spent
    elif info.compress_type == zipfile.ZIP_STORED and info.compress_size == 0:
        found = _stored(file, start)
    else:
        found = info.compress_size, info.file_size
    if found is None:
        return None
    info.compress_size, info.file_size = found
    place = start + info.compress_size
    told = _sizes(_read(file, place, _LONGEST_SIZES), *found)
    if told is None:
        return None
    info.CRC, length = told
    return LocalMember(info, start, place + length, cost)


def _deflated(file: BinaryIO, start: int, budget: Budget) -> tuple[int, int] | None:
    """The size in the zip and the size of a deflate stream; None when it does not end."""
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    taken = unpacked = 0
    while not decoder.eof:
        block = decoder.unconsumed_tail
        if not block:
            block = _read(file, start + taken, _BLOCK)
            taken += len(block)
        data = decoder.decompress(block, _BLOCK)
        if not block and not data:
            return None
        unpacked += len(data)
        budget.spend(len(data))
    return taken - len(decoder.unused_data), unpacked


def _stored(file: BinaryIO, start: int) -> tuple[int, int] | None:
    """The two sizes of a stored member that does not tell them before."""
    place = start
    while block := _read(file, place, _BLOCK + _LONGEST_SIZES):
        hit = block.find(_SIZES_SIGN)
        while 0 <= hit < _BLOCK:
            size = place - start + hit
            if _sizes(block[hit : hit + _LONGEST_SIZES], size, size):
                return size, size
            hit = block.find(_SIZES_SIGN, hit + 1)
        place += _BLOCK
    return None


def _sizes(data: bytes, packed: int, unpacked: int) -> tuple[int, int] | None:
    """(CRC-32, length) of what follows a member of these sizes; None when it is not that."""
    begin = len(_SIZES_SIGN) if data.startswith(_SIZES_SIGN) else 0
    for form in _SIZES:
        if len(data) >= begin + form.size:
            crc, *found = form.unpack_from(data, begin)
            if found == [packed, unpacked]:
                return int(crc), begin + form.size
    return None
