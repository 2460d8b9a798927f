"""The members of a zip. Its list of members is read whole; a damaged member is refused alone. Of a
zip that was cut short, which has no such list, the members before the cut."""

import stat
import zipfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, cast

from serve.cut_zips import LocalMember, local_members, open_local
from serve.entries import ArchiveDamaged, BadMember, Budget, Member, guarded
from shards.zips import is_folder, member_name, open_zip


def zip_members(file: BinaryIO, budget: Budget) -> Iterator[Member]:
    """file: seekable. ArchiveDamaged, after the members that are whole, when the list of members
    cannot be read."""
    try:
        archive = guarded(partial(open_zip, file), ArchiveDamaged)
    except ArchiveDamaged as error:
        yield from (_local_member(file, found) for found in _files(file, budget))
        raise ArchiveDamaged(f"no list of members at its end ({error}): cut short?") from error
    with archive:
        for info in archive.infolist():
            if not is_folder(info):
                yield _member(archive, info)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    return Member(
        member_name(info),
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
    return (found for found in local_members(file, budget) if not is_folder(found.info))


def _local_member(file: BinaryIO, found: LocalMember) -> Member:
    """Whether it is a link stands only in the list that is missing; one does not decode."""
    return Member(
        member_name(found.info),
        found.info.file_size,
        read=partial(guarded, partial(_read_local, file, found), BadMember),
        stream=lambda: cast(BinaryIO, guarded(partial(open_local, file, found), BadMember)),
        cost=found.cost,
        refusal="encrypted" if found.info.flag_bits & 1 else None,
    )


def _read_local(file: BinaryIO, found: LocalMember) -> bytes:
    with open_local(file, found) as stream:
        return stream.read()
