"""Images of an archive, one after the other, in constant memory; nothing is unpacked to disk.

Archives: tar (so also the shards), tar.gz, tar.bz2, tar.xz, zip, a folder, a single image file.
Names inside an archive are labels, never paths. What is not an image by its extension is skipped
and counted. A zip's list of members is read whole; every other kind streams.
"""

import hashlib
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from serve.entries import (
    MAX_MEMBER_BYTES,
    ArchiveDamaged,
    BadMember,
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
from serve.tars import compressed_tar_entries, tar_entries
from shards.console import UserError

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

Kind = Literal["tar", "compressed tar", "zip", "folder", "image"]
_MIB = 1 << 20


@dataclass(frozen=True)
class Identity:
    """Names an archive's content without reading all of it and without times. sha256: of a file's
    first and last MiB; of a folder's list of names and sizes."""

    path: str
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass
class Archive:
    """skipped: reason -> members left out so far (`links`: links and devices; `other files`)."""

    path: Path
    kind: Kind
    skipped: Counter[str] = field(default_factory=Counter)

    def entries(self) -> Iterator[Entry]:
        """The inputs, in a fixed order. ArchiveDamaged when the rest cannot be read."""
        return _ENTRIES[self.kind](self.path, self.skipped)


def find_archives(paths: Sequence[Path]) -> list[Archive]:
    """The archives of a request. Those that lie in a folder are opened too, as archives of their
    own. UserError when a path is missing, holds nothing, or is named twice."""
    archives = [archive for path in paths for archive in _archives_at(path)]
    counts = Counter(archive.path.resolve() for archive in archives)
    twice = [str(path) for path, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"named more than once: {', '.join(twice)}; name each archive once")
    if not archives:
        raise UserError("no archive named; name tar, tar.gz or zip files, folders or images")
    return archives


def _archives_at(path: Path) -> list[Archive]:
    if not path.exists():
        raise UserError(f"no archive at {path}; name a tar, tar.gz, zip, a folder or an image")
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} is no regular file; name a tar, tar.gz, zip or an image")
        return [Archive(path, _kind(path))]
    files = [file for file, is_link in _walk(path) if not is_link]
    inner = [file for file in files if _is_archive_name(file.name)]
    found = [Archive(file, _kind(file)) for file in inner]
    if any(is_input(_relative(file, path)) for file in files if not _is_archive_name(file.name)):
        found.append(Archive(path, "folder"))
    if not found:
        raise UserError(f"no image and no archive in the folder {path} ({len(files)} files)")
    return found


def _kind(path: Path) -> Kind:
    """By the first bytes; by the name where those do not tell (an archive that was cut short)."""
    with path.open("rb") as file:
        head = file.read(512)
    if opener_of(head) is not None:
        return "compressed tar"
    if head[257:262] == b"ustar":
        return "tar"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if path.name.lower().endswith(".tar"):
        return "tar"
    if path.name.lower().endswith(".zip"):
        return "zip"
    return "compressed tar" if _is_archive_name(path.name) else "image"


def identify(archive: Archive) -> Identity:
    """Size and hash that change when the archive is replaced by another."""
    path = archive.path
    digest = hashlib.sha256()
    if archive.kind == "folder":
        total = 0
        for file, is_link in _walk(path):
            if not is_link:
                size = file.stat().st_size
                total += size
                digest.update(f"{label(_relative(file, path))}\0{size}\n".encode())
        return Identity(str(path.resolve()), total, digest.hexdigest())
    with path.open("rb") as file_object:
        size = os.fstat(file_object.fileno()).st_size
        digest.update(file_object.read(_MIB))
        file_object.seek(max(0, size - _MIB))
        digest.update(file_object.read(_MIB))
    return Identity(str(path.resolve()), size, digest.hexdigest())


def _is_archive_name(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """(file, is it a link or device) below a folder, sorted; links are not followed."""
    with os.scandir(folder) as found:
        items = sorted(found, key=lambda item: item.name)
    for item in items:
        if item.is_dir(follow_symlinks=False):
            yield from _walk(Path(item.path))
        else:
            yield Path(item.path), not item.is_file(follow_symlinks=False)


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _folder_entries(folder: Path, skipped: Counter[str]) -> Iterator[Entry]:
    for file, is_link in _walk(folder):
        name = _relative(file, folder)
        if _is_archive_name(name):
            continue  # an archive of its own, see find_archives
        if not is_input(name):
            skipped["other files"] += 1
        elif is_link:
            skipped["links"] += 1
        else:
            yield make_entry(name, partial(_read_file, file))


def _image_entries(path: Path, skipped: Counter[str]) -> Iterator[Entry]:
    yield make_entry(path.name, partial(_read_file, path))


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_MEMBER_BYTES + 1)
    if len(data) > MAX_MEMBER_BYTES:
        raise BadMember(too_large(path.stat().st_size))
    return data


def _zip_entries(path: Path, skipped: Counter[str]) -> Iterator[Entry]:
    try:
        archive = guarded(partial(zipfile.ZipFile, path), ArchiveDamaged)
    except ArchiveDamaged as error:
        raise ArchiveDamaged(f"no list of members at its end ({error}): cut short?") from error
    budget = Budget(path.stat().st_size)
    with archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if not is_input(info.filename):
                skipped["other files"] += 1
            elif stat.S_ISLNK(info.external_attr >> 16):
                skipped["links"] += 1
            elif info.flag_bits & 1:
                yield refused_entry(info.filename, "encrypted")
            elif info.file_size > MAX_MEMBER_BYTES:
                yield refused_entry(info.filename, too_large(info.file_size))
            else:
                budget.spend(info.file_size)
                reading = partial(archive.read, info)
                yield make_entry(info.filename, partial(guarded, reading, BadMember))


_ENTRIES: dict[Kind, Callable[[Path, Counter[str]], Iterator[Entry]]] = {
    "tar": tar_entries,
    "compressed tar": compressed_tar_entries,
    "zip": _zip_entries,
    "folder": _folder_entries,
    "image": _image_entries,
}
