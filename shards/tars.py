"""The members of a stranger's tar, read in a stream, where every damage is told.

The standard library's reader takes a damaged header and a missing end for the end, so an archive
that was cut short looks complete; it reads a long name as large as its header declares; and it
keeps every header that it has seen. Names are labels: nothing here makes a path of one.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

READ_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # of long names and extended headers, which tarfile reads whole
# What tarfile raises on damaged bytes; a compressed stream raises its own besides.
_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError)


class TarDamaged(Exception):
    """Nothing more can be read from this tar; the message is the reason, without any name."""


class _TarInfo(tarfile.TarInfo):
    """A header; only the end mark is the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_TarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise TarDamaged("it ends without the mark of a tar's end: cut short") from None
        except tarfile.HeaderError as error:
            raise TarDamaged(f"damaged tar header ({error})") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (not info.isreg() and info.size > MAX_HEADER_BYTES):
            raise TarDamaged(f"a tar header of {info.size} bytes")
        return info


def open_tar(file: BinaryIO, *, seekable: bool = False) -> tarfile.TarFile:
    """A plain tar. seekable: members that are passed over are not read. TarDamaged: it is none."""
    mode = "r:" if seekable else "r|"
    try:
        return tarfile.open(fileobj=file, mode=mode, tarinfo=_TarInfo, bufsize=READ_BYTES)  # type: ignore[call-overload]
    except _ERRORS as error:
        raise TarDamaged(str(error) or type(error).__name__) from error


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every member: files, and folders, links and devices, which hold nothing. TarDamaged."""
    offset = -1
    while True:
        try:
            member = tar.next()
        except _ERRORS as error:
            raise TarDamaged(str(error) or type(error).__name__) from error
        if member is None:
            return
        tar.members.clear()  # type: ignore[attr-defined]
        if member.size < 0 or tar.offset <= offset:
            raise TarDamaged(f"damaged tar header (size {member.size})")
        offset = tar.offset
        yield member


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a regular member; the caller bounds its size. TarDamaged when some lack."""
    try:
        file = tar.extractfile(member)
        data = file.read(member.size) if file is not None else b""
    except _ERRORS as error:
        raise TarDamaged(str(error) or type(error).__name__) from error
    if len(data) != member.size:
        raise TarDamaged(f"a member has {len(data)} of {member.size} bytes")
    return data
