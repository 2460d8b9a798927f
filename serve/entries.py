"""One input of an archive, and the limits that every kind of archive keeps."""

import errno
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, TypeVar

from shards.console import RunFailed, UserError
from shards.members import is_system_file
from shards.sample import make_key

ARCHIVE_SUFFIXES = (
    *(".tar", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz"),
    *(".tar.zst", ".tzst", ".tar.lzma", ".tlz"),
)
# Of one file, or of a kind that nothing here reads.
UNREAD_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".lzma", ".lz4", ".lz", ".7z", ".rar", ".cab")
UNREAD_KINDS = ("a 7z archive", "a rar archive", "an lz4 file")  # under any name
MAX_MEMBER_BYTES = 256 << 20
# Deflate reaches 1032:1 on zeros; archives of radiographs stay near 1:1.
MAX_EXPANSION = 100
_SHARD_SUFFIXES = frozenset((".lab", ".json", ".idx"))  # what lies beside the images
_TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl", ".xls", ".xlsx", ".parquet", ".npy", ".npz"))
_TEXT_SUFFIXES = frozenset(
    (".txt", ".md", ".rst", ".pdf", ".html", ".xml", ".yaml", ".yml", ".log")
)
_DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".ima", ""))
_DICOM_MARK = slice(128, 132)
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"BM", b"GIF8")
_FILE_SUFFIXES = frozenset((".db", ".ini", ".py", ".sha256", ".md5", ".onnx"))
OTHER_SUFFIXES = _SHARD_SUFFIXES | _TABLE_SUFFIXES | _TEXT_SUFFIXES | _FILE_SUFFIXES
_SHARD = re.compile(r"[a-z0-9-]+-(train|val|test)-\d{6}\.tar")  # as ingest calls them
_NUMBERS = re.compile(r"archive-\d+(/archive-\d+)*")
_T = TypeVar("_T")


class BadMember(Exception):
    """This member cannot be read, the others can; the message is the reason."""


class ArchiveDamaged(Exception):
    """Nothing more can be read from this archive; the message is the reason."""


class Bomb(ArchiveDamaged):
    """The archive expands beyond its budget: no archive around it is read on either."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where an input's bytes lie in a local file, for a worker to read: to hand 0.4 MB to it takes
    0.5 ms of the process that all go through. called: the archive, in messages."""

    path: str
    called: str
    offset: int
    size: int

    def head(self, count: int) -> bytes | None:
        """The first bytes; None where they cannot be read."""
        try:
            return self._read(min(count, self.size))
        except OSError:
            return None

    def read(self) -> bytes:
        """All of it. RunFailed where it is not there any more."""
        try:
            data = self._read(self.size)
        except OSError as error:
            raise RunFailed(f"{self.called}: {error.strerror or error}; run it again") from error
        if len(data) < self.size:
            raise RunFailed(
                f"{self.called} changed while it was read; score it again into another --out"
            )
        return data

    def _read(self, count: int) -> bytes:
        file = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(file, count, self.offset)
        finally:
            os.close(file)


@dataclass(frozen=True)
class Entry:
    """One input. name: a label; key: of its sample; read: its bytes (BadMember), callable only
    until the next entry is asked for; piece: where they lie, if they lie in a file as they are."""

    name: str
    key: str
    read: Callable[[], bytes]
    piece: Piece | None = None


@dataclass(frozen=True)
class Member:
    """A file of an archive, before it is decided what to do with it.

    read: its bytes (BadMember, ArchiveDamaged); stream: the same as a stream with `peek`; both only
    until the next member is asked for. cost: of the budget. seekable: the stream seeks at no cost.
    in_order: it has to be read when it is met. refusal: why it cannot be read. piece: as in Entry.
    """

    name: str
    size: int
    read: Callable[[], bytes]
    stream: Callable[[], BinaryIO]
    cost: int = 0
    seekable: bool = False
    in_order: bool = False
    link: bool = False
    refusal: str | None = None
    piece: Piece | None = None


class Budget:
    """How many bytes an archive, with the archives in it, may still expand to."""

    def __init__(self, compressed: int) -> None:
        self.left = MAX_MEMBER_BYTES + MAX_EXPANSION * compressed

    def spend(self, count: int) -> None:
        """Bomb when the archive has given more than it may."""
        self.left -= count
        if self.left < 0:
            raise Bomb(f"it expands to more than {MAX_EXPANSION} times its size")


def is_input(name: str) -> bool:
    """Whether a member is to be scored: unknown extensions are, hidden files and tables are not."""
    other = PurePosixPath(name).suffix.lower() in OTHER_SUFFIXES
    return not (other or is_system_file(name))


def is_archive_name(name: str) -> bool:
    """By its extension: an archive of a kind that is read."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def is_unread_name(name: str) -> bool:
    """By its extension: a container that is not read, as `.7z`, or `x.png.gz`."""
    unread = name.lower().endswith(UNREAD_SUFFIXES) and not is_archive_name(name)
    return unread and is_input(name)


def is_packed(name: str) -> bool:
    """Whether a file of a folder is an archive that is read: hidden ones (._a.tar) are not."""
    return is_archive_name(name) and is_input(name)


def is_shard_name(name: str) -> bool:
    """Whether an archive is called as ingest calls its shards, which names nobody."""
    return _SHARD.fullmatch(PurePosixPath(name).name) is not None


def label(name: str) -> str:
    """A name as text that is valid UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def make_entry(name: str, read: Callable[[], bytes], piece: Piece | None = None) -> Entry:
    """An entry under the key that ingest gives such a file name too."""
    return Entry(label(name), make_key(PurePosixPath(name).stem), read, piece)


def row_names(entry: Entry, data: bytes | None, number: int) -> tuple[str, str]:
    """(member, key) of a row that names no patient, as names of DICOM files often do.

    A DICOM file is called by the SHA-256 of its bytes, by which its owner finds it again. So is
    what may be one, damaged; without any bytes it is called by its number in the archive, from 1
    on, and so is a link to an archive. An archive in the archive that cannot be read is called as
    ever, with that number as its key. Other images keep their names.
    """
    may_be = _may_be_dicom(entry.name)
    if data is None:
        packed = is_archive_name(entry.name) or is_unread_name(entry.name)
        name = f"input-{number}" if may_be or packed else None
        if is_shard_name(entry.name) or _NUMBERS.fullmatch(entry.name):
            return entry.name, f"input-{number}"
    elif data[_DICOM_MARK] == b"DICM" or (may_be and not data.startswith(_PICTURES)):
        name = f"dicom-{hashlib.sha256(data).hexdigest()}"
    else:
        name = None
    return (name, name) if name is not None else (entry.name, entry.key)


def keeps_its_name(entry: Entry, piece: Piece) -> bool:
    """Whether `row_names` surely gives the entry its own, as far as the first bytes tell."""
    if _may_be_dicom(entry.name):
        return False
    head = piece.head(_DICOM_MARK.stop)
    return head is not None and head[_DICOM_MARK] != b"DICM"


def _may_be_dicom(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in _DICOM_SUFFIXES or suffix[1:].isdigit()  # UIDs end in .number


def refused_entry(name: str, reason: str) -> Entry:
    """An entry that cannot be read."""

    def read() -> bytes:
        raise BadMember(reason)

    return make_entry(name, read)


def too_large(size: int) -> str:
    """The reason for refusing a member of this size."""
    return f"{size} bytes, over the limit of {MAX_MEMBER_BYTES} for one file"


def guarded(step: Callable[[], _T], failure: type[Exception]) -> _T:
    """Run one step over a stranger's archive; what its damage raises becomes `failure`, without
    what it quotes: zipfile names the member, and that may be a patient's name."""
    try:
        return step()
    except (ArchiveDamaged, BadMember, MemoryError, UserError, RunFailed):
        raise  # the last two: of a server, which may be back when the command is run again
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: a place before the file's start
            raise  # the disk's fault, not the archive's
        raise failure(_unquoted(error)) from error
    except Exception as error:  # the standard library's parsers raise many kinds on damaged bytes
        raise failure(_unquoted(error)) from error


def _unquoted(error: Exception) -> str:
    text = re.sub(r"""b?['"].*['"]""", "...", str(error), flags=re.DOTALL)
    return text or type(error).__name__
