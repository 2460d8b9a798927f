"""The image members of a tar, plain or compressed, in a stream.

The standard library's reader ends quietly at a damaged header and where the end mark is missing;
here both are damage, or an archive that was cut short would look complete.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from serve.entries import (
    MAX_MEMBER_BYTES,
    ArchiveDamaged,
    Budget,
    Entry,
    guarded,
    is_input,
    label,
    make_entry,
    opener_of,
    refused_entry,
    too_large,
)

MAX_HEADER_BYTES = 1 << 20  # of long names and extended headers, which tarfile reads whole
_READ_BYTES = 1 << 20


class _TarInfo(tarfile.TarInfo):
    """A header; only the end mark is the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_TarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise ArchiveDamaged("it ends without the mark of a tar's end: cut short") from None
        except tarfile.HeaderError as error:
            raise ArchiveDamaged(f"damaged tar header ({error})") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        info = super().frombuf(buf, encoding, errors)
        if not info.isreg() and info.size > MAX_HEADER_BYTES:
            raise ArchiveDamaged(f"a tar header of {info.size} bytes")
        return info


class _BoundedReader:
    """What tarfile needs of a decompressed stream, within the budget."""

    def __init__(self, stream: BinaryIO, budget: Budget) -> None:
        self.stream, self.budget = stream, budget

    def read(self, count: int) -> bytes:
        data = self.stream.read(count)
        self.budget.spend(len(data))
        return data

    def drain(self) -> None:
        """Read to the end: a compressed file's check sum stands there."""
        while self.read(_READ_BYTES):
            pass


def tar_entries(path: Path, skipped: Counter[str]) -> Iterator[Entry]:
    """The inputs of a plain tar. ArchiveDamaged where it cannot be read on."""
    size = path.stat().st_size
    with path.open("rb") as file:
        opening = partial(tarfile.open, fileobj=file, mode="r:", tarinfo=_TarInfo)
        tar = guarded(opening, ArchiveDamaged)
        for member in _members(tar, skipped):
            if tar.offset > size:
                raise ArchiveDamaged(f"cut short inside {label(member.name)!r}")
            if member.size > MAX_MEMBER_BYTES:
                yield refused_entry(member.name, too_large(member.size))
            else:
                yield make_entry(member.name, partial(_extract, tar, member))


def compressed_tar_entries(path: Path, skipped: Counter[str]) -> Iterator[Entry]:
    """The inputs of a tar in gzip, bzip2 or xz. ArchiveDamaged where it cannot be read on."""
    with path.open("rb") as file:
        opener = opener_of(file.read(16))
        if opener is None:
            raise ArchiveDamaged("neither gzip, bzip2 nor xz: cut short or not an archive")
        file.seek(0)
        with opener(file) as stream:
            reader = _BoundedReader(stream, Budget(os.fstat(file.fileno()).st_size))
            yield from _stream_entries(reader, skipped)
            guarded(reader.drain, ArchiveDamaged)


def _stream_entries(reader: _BoundedReader, skipped: Counter[str]) -> Iterator[Entry]:
    source = cast(BinaryIO, reader)
    opening = partial(
        tarfile.open, fileobj=source, mode="r|", tarinfo=_TarInfo, bufsize=_READ_BYTES
    )
    tar = guarded(opening, ArchiveDamaged)
    for member in _members(tar, skipped):
        if member.size > MAX_MEMBER_BYTES:
            yield refused_entry(member.name, too_large(member.size))
        else:
            # Read at once, so that a cut lies behind the same entry in every run.
            yield make_entry(member.name, partial(bytes, _extract(tar, member)))


def _members(tar: tarfile.TarFile, skipped: Counter[str]) -> Iterator[tarfile.TarInfo]:
    """The regular members that are inputs."""
    offset = -1
    while (member := guarded(tar.next, ArchiveDamaged)) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # or it keeps every header that it has seen
        if member.size < 0 or tar.offset <= offset:
            raise ArchiveDamaged(f"damaged tar header (size {member.size})")
        offset = tar.offset
        if member.isdir():
            continue
        if not is_input(member.name):
            skipped["other files"] += 1
        elif not member.isreg():
            skipped["links"] += 1
        else:
            yield member


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # only links and folders have none
    return guarded(file.read, ArchiveDamaged)
