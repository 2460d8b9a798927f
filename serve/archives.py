"""Images of an archive, one after the other, in constant memory; nothing is unpacked to disk.

Archives: tar (so also the shards), plain or in gzip, bzip2, xz, lzma or zstd; zip, a folder, image
files; and archives in archives, 3 deep. A container of another kind is an error that names the
kind. Names inside an archive are labels, never paths. What is not an image by its extension is
skipped and counted. A zip's list of members is read whole, and a zip that lies compressed in
another archive is held in memory (256 MiB at most); all else streams, URLs too.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, Literal, cast

from serve.entries import (
    MAX_MEMBER_BYTES,
    UNREAD_KINDS,
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
    is_unread_name,
    make_entry,
    refused_entry,
    too_large,
)
from serve.tars import compressed_tar_members, tar_members
from serve.walk import FileKind, walk_files
from serve.zips import zip_members
from shards.kinds import kind_of
from shards.remote import is_remote, name_below
from shards.tars import is_tar
from shards.unpack import opener_of

MAX_DEPTH = 3  # archives around an image

LINK = "a link or device, which is not followed"
LINKED_FOLDERS = "linked folders"

Kind = Literal["tar", "compressed tar", "zip", "unread", "folder", "files"]


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
            stream = _peekable(file)
            local = not is_remote(self.path)
            piece = partial(Piece, str(self.path), str(self.called)) if local else None
            found = _members(
                self.kind,
                stream,
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
            names = [_text(file).split("/") for file in self.files]
            folders = zip(*(name[:-1] for name in names))
            common = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, folders))
            yield from (("/".join(n[common:]), f, "file") for n, f in zip(names, self.files))
            return
        for file, kind in walk_files(self.path):
            name = name_below(file, self.path)
            # Archives are archives of their own, see find_archives.
            if kind != "file" or not is_packed(name):
                yield name, file, kind

    def _file_members(self) -> Iterator[Member]:
        for name, file, kind in self.named_files():
            if kind == "linked folder":
                self.skipped[LINKED_FOLDERS] += 1
                continue
            read, stream = partial(_read_file, file), partial(_open_file, file)
            piece = None if is_remote(file) else _whole(file, self.called)
            yield Member(name, 0, read=read, stream=stream, link=kind != "file", piece=piece)


def _text(path: Path) -> str:
    """In which a file that a URL names is called as where its folder is named."""
    return path.plain if is_remote(path) else str(path)


def archive_kind(head: bytes, name: str) -> Kind | None:
    """By the first 512 bytes; by the name where those do not tell (an archive that was cut
    short). None: no archive."""
    if opener_of(head) is not None:
        return "compressed tar"
    if is_tar(head):
        return "tar"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    lower = name.lower()
    if lower.endswith(".tar"):
        return "tar"
    if lower.endswith(".zip"):
        return "zip"
    if is_archive_name(name):
        return "compressed tar"
    return "unread" if is_unread_name(name) or kind_of(head) in UNREAD_KINDS else None


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
    with _readable(path), _open_file(path) as file:
        data = file.read(MAX_MEMBER_BYTES + 1)
    if len(data) > MAX_MEMBER_BYTES:
        raise BadMember(too_large(path.stat().st_size))
    return data


def _open_file(path: Path) -> BinaryIO:
    with _readable(path):
        return _peekable(path.open("rb"))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """BadMember for a file that is there and cannot be read."""
    try:
        yield
    except PermissionError as error:
        raise BadMember("no permission to read it") from error
    except FileNotFoundError as error:
        if not is_remote(path):
            raise  # it was there, and is gone
        raise BadMember("its store lists it, and does not find it") from error


def _peekable(file: BinaryIO) -> BinaryIO:
    return file if hasattr(file, "peek") else cast(BinaryIO, io.BufferedReader(cast(Any, file)))


def _head(stream: BinaryIO) -> bytes:
    return guarded(lambda: cast(Any, stream).peek(512)[:512], ArchiveDamaged)


def _unread(head: bytes) -> str:
    return f"{kind_of(head) or 'a container of an unknown kind'}, which is not read; unpack it"


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
    head = _head(stream)
    if kind == "unread":
        raise ArchiveDamaged(_unread(head))
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
        unread = is_unread_name(member.name)
        packed = (unread or is_packed(member.name)) and not member.link
        archives += packed
        by_number = packed and not (outer.keep_names or is_shard_name(member.name))
        name = place + (f"archive-{archives}" if by_number else member.name)
        if not is_input(member.name):
            outer.skipped["other files"] += 1
        elif member.link:
            yield refused_entry(name, LINK)
        elif unread:
            yield _unread_entry(member, name, outer)
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


def _unread_entry(member: Member, name: str, outer: Archive) -> Entry:
    try:
        with member.stream() as stream:
            reason = _unread(_head(stream))
    except (ArchiveDamaged, BadMember) as error:
        reason = str(error)
    outer.damaged.append(reason)
    return refused_entry(name, reason)


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
            kind = archive_kind(_head(stream), member.name)
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
