"""Images of an archive, one after the other, in constant memory; nothing is unpacked to disk.

Archives: tar (so also the shards), tar.gz, tar.bz2, tar.xz, zip, a folder, image files; and
archives in archives, 3 deep. Names inside an archive are labels, never paths. What is not an image
by its extension is skipped and counted. A zip's list of members is read whole, and a zip that lies
compressed in another archive is held in memory (256 MiB at most); all else streams, URLs too.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, Literal, cast

from serve.entries import (
    MAX_MEMBER_BYTES,
    ArchiveDamaged,
    BadMember,
    Bomb,
    Budget,
    Entry,
    Member,
    Piece,
    guarded,
    is_archive_name,
    is_input,
    is_packed,
    is_shard_name,
    label,
    make_entry,
    opener_of,
    refused_entry,
    too_large,
)
from serve.tars import compressed_tar_members, tar_members
from serve.walk import FileKind, walk_files
from serve.zips import zip_members
from shards.console import RunFailed
from shards.remote import RemotePath, is_remote

MAX_DEPTH = 3  # archives around an image

LINK = "a link or device, which is not followed"
LINKED_FOLDERS = "linked folders"

Kind = Literal["tar", "compressed tar", "zip", "folder", "files"]
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


@dataclass
class Archive:
    """files: of the kind `files`, image files that were named one by one, by a glob or in a list.
    alias: what it is called instead of by its name, which nobody gave and may be a patient's.
    keep_names: of the archives in it, else numbers but for shards. skipped: reason -> left out so
    far (`linked folders` of a folder; `other files`). damaged: why an archive in it could not be
    read to its end, of each so far."""

    path: Path
    kind: Kind
    files: tuple[Path, ...] = ()
    alias: Path | None = None
    keep_names: bool = False
    skipped: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)

    @property
    def inner_damage(self) -> str | None:
        """What is said of the archives in it that could not be read to their ends."""
        if not self.damaged:
            return None
        return (
            f"archives in it that cannot be read to their ends: {len(self.damaged)} "
            f"({self.damaged[0]})"
        )

    @property
    def called(self) -> Path:
        """The path to write into rows, files and messages."""
        return self.alias or self.path

    def entries(self) -> Iterator[Entry]:
        """The inputs, in a fixed order. ArchiveDamaged when the rest cannot be read."""
        if self.kind in ("folder", "files"):
            yield from _entries(self._file_members(), self, Budget(0))
            return
        size = self.path.stat().st_size
        budget = Budget(size)
        with self.path.open("rb") as file:
            stream = file if hasattr(file, "peek") else io.BufferedReader(cast(Any, file))
            local = not is_remote(self.path)
            piece = partial(Piece, str(self.path), str(self.called)) if local else None
            found = _members(
                self.kind,
                cast(BinaryIO, stream),
                size,
                budget,
                seekable=True,
                in_order=False,
                piece=piece,
            )
            yield from _entries(found, self, budget)

    def named_files(self) -> Iterator[tuple[str, Path, FileKind]]:
        """(name, file, what it is) of a folder or a list of files, whose links are followed: they
        were named."""
        if self.kind == "files":
            names = [str(file).split("/") for file in self.files]
            folders = zip(*(name[:-1] for name in names))
            common = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, folders))
            yield from (("/".join(n[common:]), f, "file") for n, f in zip(names, self.files))
            return
        for file, kind in walk_files(self.path):
            name = file.relative_to(self.path).as_posix()
            # Archives are archives of their own, see find_archives.
            if kind != "file" or not is_packed(name):
                yield name, file, kind

    def _file_members(self) -> Iterator[Member]:
        for name, file, kind in self.named_files():
            if kind == "linked folder":
                self.skipped[LINKED_FOLDERS] += 1
                continue
            read, stream = partial(_read_file, file), cast(Any, partial(file.open, "rb"))
            piece = None if is_remote(file) else _whole(file, self.called)
            yield Member(name, 0, read=read, stream=stream, link=kind != "file", piece=piece)


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


def kind_of(head: bytes, name: str) -> Kind | None:
    """By the first 512 bytes; by the name where those do not tell (an archive that was cut
    short). None: no archive."""
    if opener_of(head) is not None:
        return "compressed tar"
    if head[257:262] == b"ustar":
        return "tar"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    lower = name.lower()
    if lower.endswith(".tar"):
        return "tar"
    if lower.endswith(".zip"):
        return "zip"
    return "compressed tar" if is_archive_name(name) else None


def _whole(path: Path, called: Path) -> Piece | None:
    """A regular file; None where reading it will tell what is wrong with it."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return None
    if not S_ISREG(found.st_mode) or found.st_size > MAX_MEMBER_BYTES:
        return None
    return Piece(str(path), str(called), 0, found.st_size)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data: bytes = file.read(MAX_MEMBER_BYTES + 1)
    except PermissionError as error:
        raise BadMember("no permission to read it") from error
    if len(data) > MAX_MEMBER_BYTES:
        raise BadMember(too_large(path.stat().st_size))
    return data


def _members(
    kind: Kind,
    stream: BinaryIO,
    size: int,
    budget: Budget,
    *,
    seekable: bool,
    in_order: bool,
    piece: Callable[[int, int], Piece] | None = None,
) -> Iterator[Member]:
    if kind == "tar":
        return tar_members(stream, size, seekable=seekable, in_order=in_order, piece=piece)
    if kind == "zip":
        return zip_members(stream, budget)
    head = guarded(lambda: cast(Any, stream).peek(16)[:16], ArchiveDamaged)
    return compressed_tar_members(stream, opener_of(head), budget)


def _entries(
    found: Iterator[Member],
    outer: Archive,
    budget: Budget,
    place: str = "",
    depth: int = 1,
) -> Iterator[Entry]:
    """What is to be scored. outer: told of what is skipped and damaged; place: what the archives
    around are called, with `/`."""
    archives = 0
    for member in found:
        packed = is_packed(member.name) and not member.link
        archives += packed
        by_number = packed and not (outer.keep_names or is_shard_name(member.name))
        name = place + (f"archive-{archives}" if by_number else member.name)
        if not is_input(member.name):
            outer.skipped["other files"] += 1
        elif member.link:
            yield refused_entry(name, LINK)
        elif packed:
            budget.spend(member.cost)
            yield from _nested(member, name, outer, budget, depth)
        elif member.refusal is not None:
            yield refused_entry(name, member.refusal)
        elif member.size > MAX_MEMBER_BYTES:
            yield refused_entry(name, too_large(member.size))
        else:
            budget.spend(member.cost)
            read = partial(bytes, member.read()) if member.in_order else member.read
            yield make_entry(name, read, member.piece)


def _nested(
    member: Member, name: str, outer: Archive, budget: Budget, depth: int
) -> Iterator[Entry]:
    """The inputs of an archive in an archive; what cannot be read of it is one input, the others go
    on."""
    try:
        if depth >= MAX_DEPTH:
            raise BadMember(f"more than {MAX_DEPTH} archives in each other")
        if member.refusal is not None:
            raise BadMember(member.refusal)
        with member.stream() as stream:
            head = guarded(lambda: cast(Any, stream).peek(512)[:512], ArchiveDamaged)
            kind = kind_of(head, member.name)
            assert kind is not None  # its name is an archive's
            if kind == "zip" and not member.seekable:
                if member.size > MAX_MEMBER_BYTES:
                    raise BadMember(f"a zip in an archive: {too_large(member.size)}")
                stream = io.BytesIO(guarded(partial(stream.read, member.size), ArchiveDamaged))
            inner = _members(kind, stream, member.size, budget, seekable=False, in_order=True)
            yield from _entries(inner, outer, budget, name + "/", depth + 1)
    except Bomb:
        raise
    except (ArchiveDamaged, BadMember) as error:
        outer.damaged.append(str(error))
        yield refused_entry(name, f"the rest of this archive in the archive: {error}")
