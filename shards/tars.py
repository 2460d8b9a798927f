"""The members of a stranger's tar, read in a stream, where every damage is told.

The standard library's reader takes a damaged header and a missing end for the end, so an archive
that was cut short looks complete; it stops at the first zero block, though members may follow; it
reads a long name as large as its header declares; and it keeps every header that it has seen. Names
are labels: nothing here makes a path of one.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from shards.kinds import kind_of

READ_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # of long names and extended headers, which tarfile reads whole
# What tarfile raises on damaged bytes; a compressed stream raises its own besides.
_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError)


class TarDamaged(Exception):
    """Nothing more can be read from this tar; the message is the reason, without any name."""


class _TarFile(tarfile.TarFile):
    """ended: the last block was zero. `cat a.tar b.tar` puts members behind an end mark, and some
    writers leave a lone zero block between members. So only the last zeros are the end."""

    ended = False


class _TarInfo(tarfile.TarInfo):
    """A header; only zeros up to the file's end are the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_TarInfo":
        assert isinstance(tarfile_, _TarFile)
        try:
            info = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.ended = True
            raise  # with ignore_zeros the next block is read
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if tarfile_.ended:
                tarfile_.offset = tarfile_.fileobj.tell()
                raise
            raise TarDamaged("it ends without the mark of a tar's end: cut short") from None
        except tarfile.HeaderError as error:
            behind = ", behind the mark of its end" if tarfile_.ended else ""
            raise TarDamaged(f"damaged tar header ({error}){behind}") from error
        tarfile_.ended = False
        return info

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        if len(buf) < tarfile.BLOCKSIZE and not any(buf):  # what padding was cut to, or nothing
            raise tarfile.EmptyHeaderError("no header")  # type: ignore[attr-defined]
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (not info.isreg() and info.size > MAX_HEADER_BYTES):
            raise TarDamaged(f"a tar header of {info.size} bytes")
        return info


def is_tar(head: bytes) -> bool:
    """By a file's first 512 bytes: their magic, or the check sum in the oldest ones, without it."""
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def not_a_tar(head: bytes) -> str | None:
    """Why a compressed file is none of a tar, by the first 512 bytes in it. None: it may be."""
    found = None if is_tar(head) else kind_of(head)
    return found and f"not a tar, but {found}, is compressed in it; unpack it"


def open_tar(file: BinaryIO, *, seekable: bool = False) -> tarfile.TarFile:
    """A plain tar. seekable: members that are passed over are not read. TarDamaged: it is none."""
    mode = "r:" if seekable else "r|"
    try:
        return _TarFile.open(  # type: ignore[call-overload]
            fileobj=file, mode=mode, tarinfo=_TarInfo, bufsize=READ_BYTES, ignore_zeros=True
        )
    except _ERRORS as error:
        raise TarDamaged(str(error) or type(error).__name__) from error


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every member, also behind zero blocks and in a second tar joined to the first: files, and
    folders, links and devices, which hold nothing. TarDamaged."""
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
