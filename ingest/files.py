"""Image files in folders and in tar archives, met in one pass. Nothing is ever unpacked to disk.

The names of an archive's members are looked up and compared, never used as paths; links, devices
and the like are passed over.
"""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from ingest.record import MAX_FILE_BYTES, SourceImage
from shards.codec import BadImage
from shards.console import UserError
from shards.members import is_system_file
from shards.remote import RemotePath, is_remote
from shards.tars import READ_BYTES, TarDamaged, members, open_tar, read_member

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}  # browsers on Windows save .jfif
_OTHERS = {".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jp2", ".ppm", ".pgm"}
IMAGE_SUFFIXES = frozenset(_JPEG | _OTHERS)


def is_image_name(name: str) -> bool:
    """By the suffix; what a system left (`._x.png`, say) is none."""
    return not is_system_file(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """The image files right inside a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if is_image_name(p.name) and p.is_file())


def kind_passed_over(path: Path) -> str | None:
    """What a file in a folder of images is counted as, if it is none by its name: its suffix, or
    that nothing can be read; None for images, folders and what a system left."""
    if is_system_file(path.name):
        return None
    if path.is_file():
        return None if is_image_name(path.name) else path.suffix.lower() or "without suffix"
    if path.is_dir():
        return None
    return "links that lead nowhere" if is_link(path) else "devices"


def folder_image(path: Path, location: str) -> SourceImage:
    """A file of a folder as SourceImage."""
    remote = is_remote(path)
    read = partial(read_file, path)
    return SourceImage(location, _stamp(path), read, remote, None if remote else path)


def files_below(
    folder: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, bool]]:
    """All files below a folder, those of a folder by name and before those of the folders in it,
    and whether each is a link to a folder instead, which is not followed. onerror: see os.walk."""
    if is_remote(folder):
        files = sorted(folder.files(), key=_walk_order)
        yield from ((cast(Path, file), False) for file in files)
        return
    for place, inner, names in os.walk(folder, onerror=onerror):
        inner.sort()
        yield from ((path, True) for name in inner if is_link(path := Path(place, name)))
        yield from ((Path(place, name), False) for name in sorted(names))


def _walk_order(file: RemotePath) -> list[tuple[bool, str]]:
    *folders, name = file.path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def is_link(folder: Path) -> bool:
    """Whether a folder is a link, which is not followed: links may lead in circles."""
    return not is_remote(folder) and folder.is_symlink()


def archive_images(path: Path, told: Callable[[str], None] | None = None) -> Iterator[SourceImage]:
    """The regular members of a .tar.gz, by base name. told: gets a line on what else was there.
    UserError when the archive is damaged."""
    links = 0
    stamp = _stamp(path)
    # gzip.open and not tarfile's own "r|gz", which stops at the end of the first gzip member.
    with _intact(path), path.open("rb") as packed, gzip.open(packed) as raw:
        stream = io.BufferedReader(cast(io.RawIOBase, raw), READ_BYTES)
        with open_tar(cast(BinaryIO, stream)) as tar:
            for member in members(tar):
                if member.isreg():
                    name = member.name.rsplit("/", 1)[-1]
                    yield SourceImage(name, stamp, partial(_read_member, path, tar, member))
                links += not (member.isreg() or member.isdir())
        while stream.read(READ_BYTES):
            pass  # to the end, where gzip keeps the checksum of all that was read
    if links and told:
        told(f"{path.name} holds {links} links or devices, which are no images; passed over")


def _read_member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    _check_size(member.size)
    with _intact(path):
        return read_member(tar, member)


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    try:
        yield
    except (TarDamaged, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is damaged or cut short ({error}); download it again, then run the same "
            "command: it goes on where it stopped"
        ) from error


def read_file(path: Path) -> bytes:
    """A file's bytes. BadImage when it cannot be read or is too large."""
    try:
        _check_size(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise BadImage(f"{size} bytes, over the limit of {MAX_FILE_BYTES}")


def _stamp(path: Path) -> str:
    return f"{path.name} {version_of(path)}"


def version_of(path: Path) -> str:
    """Size and time of a file, or what its store says in place of the time."""
    if is_remote(path):
        return " ".join(map(str, path.stat()))
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
