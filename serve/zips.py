"""The members of a zip. Its list of members is read whole; a damaged member is refused alone."""

import stat
import zipfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, cast

from serve.entries import ArchiveDamaged, BadMember, Member, guarded


def zip_members(file: BinaryIO) -> Iterator[Member]:
    """file: seekable. ArchiveDamaged when the list of members cannot be read."""
    try:
        archive = guarded(partial(zipfile.ZipFile, file), ArchiveDamaged)
    except ArchiveDamaged as error:
        raise ArchiveDamaged(f"no list of members at its end ({error}): cut short?") from error
    with archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield _member(archive, info)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    return Member(
        info.filename,
        info.file_size,
        read=partial(guarded, partial(archive.read, info), BadMember),
        stream=partial(_stream, archive, info),
        cost=info.file_size,
        link=stat.S_ISLNK(info.external_attr >> 16),
        refusal="encrypted" if info.flag_bits & 1 else None,
    )


def _stream(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    return cast(BinaryIO, guarded(partial(archive.open, info), BadMember))
