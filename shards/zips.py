"""A stranger's zip: its list of members, and what they are called."""

import io
import struct
import zipfile
from typing import BinaryIO, cast

HEADER_SIGN, _END_SIGN = b"PK\x03\x04", b"PK\x05\x06"
# Sign, two disks, two counts of members, size and place of their list, length of the comment.
_END = struct.Struct("<4s4H2LH")
_LONGEST_COMMENT = 0xFFFF


class ZipDamaged(Exception):
    """The zip has no list of members of its own; the message is the reason, without any name."""


class _Beginning(io.RawIOBase):
    """The first `size` bytes of a seekable file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.size}[whence]
        return self.file.seek(base + offset)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        data = self.file.read(max(0, min(len(buffer), self.size - self.tell())))
        buffer[: len(data)] = data
        return len(data)


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """file: seekable. ZipDamaged, or what zipfile raises, when the list cannot be read.

    The standard library takes the last end record, be it in the comment of another one, or that of
    a zip within this one, at whose end this one was cut.
    """
    end, list_place = _end_record(file)
    archive = zipfile.ZipFile(file if end is None else cast(BinaryIO, _Beginning(file, end)))
    if any(info.header_offset == 0 for info in archive.infolist()):
        return archive
    file.seek(0)
    if file.read(len(HEADER_SIGN)) != HEADER_SIGN:
        return archive  # a program that unpacks itself, say
    if list_place == archive.start_dir:
        return archive  # its first member was taken out of the list
    raise ZipDamaged("only that of an archive in it")


def _end_record(file: BinaryIO) -> tuple[int | None, int | None]:
    """Where the end record ends whose comment reaches the file's end, and where it says that the
    list begins. Of several the last that tells of members: the others are in its comment."""
    size = file.seek(0, io.SEEK_END)
    begin = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(begin)
    tail = file.read(size - begin)
    found: tuple[int | None, int | None] = None, None
    place = len(tail)
    while (place := tail.rfind(_END_SIGN, 0, place)) >= 0:
        if len(tail) - place < _END.size:
            continue
        _, _, _, _, members, _, list_place, comment = _END.unpack_from(tail, place)
        behind = place + _END.size
        if comment == len(tail) - behind and (members or found == (None, None)):
            found = begin + behind, list_place
            if members:
                break
    return found


def member_name(info: zipfile.ZipInfo) -> str:
    """Its name with / between folders: some archivers of Windows write only backslashes."""
    name = info.filename
    return name if "/" in name else name.replace("\\", "/")


def is_folder(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a folder, which holds nothing itself."""
    return member_name(info).endswith("/") and info.file_size == 0
