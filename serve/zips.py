"""The members of a zip. Its list of members is read whole; a damaged member is refused alone. Of a
zip that was cut short, which has no such list, the members before the cut."""

import stat
import struct
import zipfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, cast

from serve.cut_zips import HEADER_SIGN, LocalMember, local_members, open_local
from serve.entries import ArchiveDamaged, BadMember, Budget, Member, guarded

_END = struct.Struct("<4s4H2LH")  # then the comment; the field before its length: the list's place


def zip_members(file: BinaryIO, budget: Budget) -> Iterator[Member]:
    """file: seekable. ArchiveDamaged, after the members that are whole, when the list of members
    cannot be read."""
    try:
        archive = guarded(partial(_open, file), ArchiveDamaged)
    except ArchiveDamaged as error:
        yield from (_local_member(file, found) for found in _files(file, budget))
        raise ArchiveDamaged(f"no list of members at its end ({error}): cut short?") from error
    with archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield _member(archive, info)


def _open(file: BinaryIO) -> zipfile.ZipFile:
    """ArchiveDamaged for the list of members of a zip in this one, at whose end this one is cut:
    the standard library takes it for this one's."""
    archive = zipfile.ZipFile(file)
    if any(info.header_offset == 0 for info in archive.infolist()):
        return archive
    file.seek(0)
    if file.read(len(HEADER_SIGN)) != HEADER_SIGN:
        return archive  # a program that unpacks itself, say
    file.seek(max(0, file.seek(0, 2) - _END.size - len(archive.comment)))
    end = file.read(_END.size)
    told = _END.unpack(end) if len(end) == _END.size else (b"",)
    if told[0] == b"PK\x05\x06" and told[6] == archive.start_dir:
        return archive  # its first member was taken out of the list
    raise ArchiveDamaged("only that of an archive in it")


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


def _files(file: BinaryIO, budget: Budget) -> Iterator[LocalMember]:
    return (found for found in local_members(file, budget) if not found.info.is_dir())


def _local_member(file: BinaryIO, found: LocalMember) -> Member:
    """Whether it is a link stands only in the list that is missing; one does not decode."""
    return Member(
        found.info.filename,
        found.info.file_size,
        read=partial(guarded, partial(_read_local, file, found), BadMember),
        stream=lambda: cast(BinaryIO, guarded(partial(open_local, file, found), BadMember)),
        cost=found.cost,
        refusal="encrypted" if found.info.flag_bits & 1 else None,
    )


def _read_local(file: BinaryIO, found: LocalMember) -> bytes:
    with open_local(file, found) as stream:
        return stream.read()
