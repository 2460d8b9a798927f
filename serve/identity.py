"""Tells an archive from another one, and from what it was before, without reading all of it."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from serve.archives import Archive
from serve.entries import label
from shards.console import RunFailed
from shards.remote import RemotePath, is_remote

_MIB = 1 << 20
_BLOCKS, _BLOCK_BYTES = 64, 64 << 10  # with the two ends 6 MiB of reading


@dataclass(frozen=True)
class Identity:
    """Names an archive's content without reading all of it. sha256: of a file's first and last MiB
    and of 64 KiB at 64 places between them (so of all of one under 4 MiB; in a larger one a change
    that lies between the places is not seen), or behind a URL of the two MiB and of what its server
    calls the version; of the names, sizes and times of change (versions) of the files of a folder
    or a list, which a copy of them has to keep."""

    path: str
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)


def identify(archive: Archive) -> Identity:
    """Size and hash that change when the archive is replaced by another. Asks a server anew."""
    digest = hashlib.sha256()
    path = fresh(archive.path)
    if archive.kind in ("folder", "files"):
        total = 0
        files = tuple(fresh(file) for file in archive.files)
        for name, file, kind in Archive(path, archive.kind, files).named_files():
            if kind != "file":
                digest.update(f"{label(name)}\0{kind}\n".encode())
            else:
                found = _stat(file, archive)
                total += found.st_size
                changed = found.version if is_remote(file) else found.st_mtime_ns
                digest.update(f"{label(name)}\0{found.st_size}\0{changed}\n".encode())
        return Identity(place_of(archive.called), total, digest.hexdigest())
    found = _stat(path, archive)
    for part in _sampled(path, found.st_size):
        digest.update(part)
    digest.update(getattr(found, "version", "").encode())
    return Identity(place_of(archive.called), found.st_size, digest.hexdigest())


def _sampled(path: Path, size: int) -> Iterator[bytes]:
    """The first and the last MiB; of a local file also the blocks between them."""
    last = max(0, size - _MIB)
    # A stream would ask for 13 MiB ahead, from each of a thousand archives.
    if is_remote(path) and last:
        yield path.read_range(0, _MIB)
        yield path.read_range(last, size)
        return
    with path.open("rb") as stream:
        yield stream.read(_MIB)
        if not is_remote(path):
            for number in range(_BLOCKS):
                stream.seek(number * size // _BLOCKS)
                yield stream.read(_BLOCK_BYTES)
        stream.seek(last)
        yield stream.read(_MIB)


def _stat(path: Path, archive: Archive) -> Any:
    try:
        return path.stat()
    except FileNotFoundError:
        part = "" if path == archive.path else "a file of "
        raise RunFailed(
            f"{part}{archive.called} is gone; bring it back, and the same command goes on"
        ) from None


def fresh(path: Path) -> Path:
    """The same path, which has not asked its server anything yet."""
    if not is_remote(path):
        return path
    path.fs.invalidate_cache()
    return cast(Path, RemotePath(path.fs, path.protocol, path.path, path.query))


def place_of(path: Path) -> str:
    """The absolute path, or the URL without its query."""
    return str(path) if is_remote(path) else str(path.resolve())
