"""Image files in folders and in tar archives, met in one pass. Nothing is ever unpacked to disk.

The names of an archive's members are looked up and compared, never used as paths; links, devices
and the like are passed over.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

from ingest.record import MAX_FILE_BYTES, SourceImage
from shards.codec import BadImage
from shards.console import UserError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jp2", ".ppm", ".pgm"}
)
_READ_BYTES = 1 << 20


def is_image_name(name: str) -> bool:
    """By the suffix; hidden files (`._x.png`, left by macOS) are none."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """The image files right inside a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if is_image_name(p.name) and p.is_file())


def folder_image(path: Path, location: str) -> SourceImage:
    """A file of a folder as SourceImage."""
    return SourceImage(location, _stamp(path), partial(_read_file, path))


def archive_images(path: Path) -> Iterator[SourceImage]:
    """The regular members of a .tar.gz, by base name. UserError when the archive is damaged."""
    stamp = _stamp(path)
    # gzip.open and not tarfile's own "r|gz", which stops at the end of the first gzip member.
    with _intact(path), gzip.open(path) as raw:
        stream = io.BufferedReader(cast(io.RawIOBase, raw), _READ_BYTES)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_READ_BYTES) as tar:
            for member in tar:
                if member.isreg():
                    name = member.name.rsplit("/", 1)[-1]
                    yield SourceImage(name, stamp, partial(_read_member, path, tar, member))
        while stream.read(_READ_BYTES):
            pass  # to the end, where gzip keeps the checksum of all that was read


def _read_member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    _check_size(member.size)
    with _intact(path):
        file = tar.extractfile(member)
        data = file.read(member.size) if file else b""
        if len(data) != member.size:
            raise tarfile.ReadError(f"{member.name!r} has {len(data)} of {member.size} bytes")
        return data


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is damaged or cut short ({error}); download it again, then run the same "
            "command: it goes on where it stopped"
        ) from error


def _read_file(path: Path) -> bytes:
    try:
        _check_size(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise BadImage(f"{size} bytes, over the limit of {MAX_FILE_BYTES}")


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"
