"""Compressed files as streams: gzip, bzip2, xz, lzma and Zstandard, told by their first bytes."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import Any, BinaryIO, cast

Opener = Callable[[BinaryIO], BinaryIO]


def opener_of(head: bytes) -> Opener | None:
    """What decompresses a file that begins like this, in constant memory and with all that are
    joined in it; None when nothing here does."""
    if head.startswith(b"\x1f\x8b"):
        return lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if head.startswith(b"BZh"):
        return lambda file: cast(BinaryIO, bz2.BZ2File(file))
    if head.startswith(b"\xfd7zXZ\x00") or _is_lzma(head):
        return lambda file: cast(BinaryIO, lzma.LZMAFile(file))
    return _open_zstd if _is_zstd(head) else None


def _is_lzma(head: bytes) -> bool:
    """The format has no sign: usual settings, then a size, which is unknown or below 2^40."""
    return head.startswith(b"]\0\0") and head[10:13] in (b"\0\0\0", b"\xff\xff\xff")


def _is_zstd(head: bytes) -> bool:
    """A frame of data, or one to be skipped, which pzstd writes first."""
    return head.startswith(b"\x28\xb5\x2f\xfd") or (
        head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    )


def _open_zstd(file: BinaryIO) -> BinaryIO:
    import pyarrow  # 0.1 s, for those who have such files

    stream: Any = pyarrow.CompressedInputStream(file, "zstd")  # windows of 128 MiB at most
    return cast(BinaryIO, io.BufferedReader(stream))
