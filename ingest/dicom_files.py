"""The files of a folder with all below it, of a tar, a compressed tar or a zip, met in one pass.

Nothing is unpacked. Names of members are compared and hashed, never used as paths, and no error
names a file inside, but by its number: names of DICOM files are often those of patients.
"""

import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from ingest.files import files_below, version_of
from ingest.record import MAX_FILE_BYTES
from shards.codec import BadImage
from shards.console import RunFailed, UserError
from shards.dicom_header import NotDicom
from shards.kinds import kind_of
from shards.remote import is_remote, name_below
from shards.tars import READ_BYTES, TarDamaged, is_tar, members, not_a_tar, open_tar
from shards.unpack import opener_of
from shards.zips import ZipDamaged, is_folder, member_name, open_zip

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_NO_LIST = (ZipDamaged, ValueError, EOFError, OverflowError, NotImplementedError, struct.error)
_TAR_ERRORS = (TarDamaged, tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """name: below the folder or in the archive, made unique; stamp: size and time of what holds
    it; open: only before the pass moves on."""

    name: str = field(repr=False)
    stamp: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]] = field(repr=False)

    def read(self) -> bytes:
        """All its bytes. BadImage when it is too large or cannot be read."""
        with self.stream() as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BadImage(f"more than {MAX_FILE_BYTES} bytes")
        return data

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """Its bytes as a stream; BadImage for what goes wrong while it is read."""
        try:
            if self.size > MAX_FILE_BYTES:
                raise BadImage(f"{self.size} bytes, over the limit of {MAX_FILE_BYTES}")
            with self.open() as stream:
                yield stream
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror or 'damaged'}") from None
        except (*_ZIP_ERRORS, EOFError, NotImplementedError) as error:
            raise BadImage(f"damaged within the zip ({type(error).__name__})") from None


def found_files(src: Path) -> Iterator[FoundFile]:
    """Every file, in a fixed order; of devices, linked folders, links that lead nowhere and links
    in archives their names, with nothing to read. UserError when an archive is damaged; RunFailed
    when a folder's file cannot be looked at."""
    names: Counter[str] = Counter()
    for file in _opener(src)(src):
        name = file.name.removeprefix("./")  # as `tar -C folder .` writes them
        repeated = names[name]  # a tar may hold a name twice
        names[name] += 1
        name = f"{name} ({repeated} of the same name before)" if repeated else name
        yield FoundFile(name, file.stamp, file.size, file.open)


def _opener(src: Path) -> Callable[[Path], Iterator[FoundFile]]:
    """By the first bytes, whatever the name."""
    if src.is_dir():
        return _folder_files
    if not src.is_file():
        raise UserError(f"no folder or archive {src}; --src names the DICOM files")
    with src.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_files
    if opener_of(head) is not None or is_tar(head):
        return _tar_files
    found = kind_of(head) or "no archive"
    raise UserError(
        f"{src} is {found}; allowed: a folder, a zip, a tar, or a tar in gzip, bzip2, xz, lzma or "
        "zstd"
    )


def _folder_files(folder: Path) -> Iterator[FoundFile]:
    number = 0
    for path, linked in _below(folder):
        number += not linked
        file = _link(name_below(path, folder), "") if linked else _look_at(folder, path, number)
        if file:
            yield file


def _below(folder: Path) -> Iterator[tuple[Path, bool]]:
    with _nameless("a folder below --src") if is_remote(folder) else nullcontext():
        yield from files_below(folder, onerror=_refuse_folder)


def _look_at(folder: Path, path: Path, number: int) -> FoundFile | None:
    """None: gone since its folder was listed."""
    what = f"file {number} below --src (counted folder by folder, by name)"
    name = name_below(path, folder)
    with _nameless(what):
        try:
            if path.is_file():
                opening = partial(_open_file, path, what)
                return FoundFile(name, _stamp(path), path.stat().st_size, opening)
            there = not is_remote(path) and os.path.lexists(path)
            return _link(name, "") if there else None
        except FileNotFoundError:
            return None


@contextmanager
def _open_file(path: Path, what: str) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as stream:
            yield stream
    except (UserError, RunFailed):  # of a store; stream() sees to OSError
        raise _unreadable(what, "its store refuses it or does not answer") from None


@contextmanager
def _nameless(what: str) -> Iterator[None]:
    """Errors over a file or folder, which name it, become ones that do not."""
    try:
        yield
    except OSError as error:
        raise _unreadable(what, error.strerror or type(error).__name__) from None
    except (UserError, RunFailed):
        raise _unreadable(what, "its store refuses it or does not answer") from None


def _unreadable(what: str, why: str) -> RunFailed:
    return RunFailed(f"{what} cannot be read: {why}; mend that, and the same command goes on")


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"a folder below --src cannot be read: {error.strerror}; mend its rights")


def _link(name: str, stamp: str) -> FoundFile:
    """What stands for a link, a device or a linked folder: found and told, never followed."""
    return FoundFile(name, stamp, 0, _refuse_link)


def _refuse_link() -> AbstractContextManager[BinaryIO]:
    raise NotDicom("a link or a device, which holds no file")


def _zip_files(path: Path) -> Iterator[FoundFile]:
    stamp = _stamp(path)
    with path.open("rb") as file:
        try:
            archive = open_zip(file)
        except (*_ZIP_ERRORS, *_NO_LIST) as error:
            raise _damaged(path, error) from None
        with archive:
            for info in archive.infolist():
                name = member_name(info)
                if stat.S_ISLNK(info.external_attr >> 16):
                    yield _link(name, stamp)
                elif not is_folder(info):
                    opening = partial(_open_member, archive, info)
                    yield FoundFile(name, stamp, info.file_size, opening)


def _open_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> AbstractContextManager[BinaryIO]:
    if info.flag_bits & 1:
        raise BadImage("encrypted within the zip")
    return cast(AbstractContextManager[BinaryIO], archive.open(info))


class _Member(io.RawIOBase):
    """A member as a stream; its damage is that of the whole archive."""

    def __init__(self, path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self.path, self.file, self.left = path, tar.extractfile(member), member.size

    def read(self, size: int = -1) -> bytes:
        wanted = self.left if size < 0 else min(size, self.left)
        with _intact_tar(self.path):
            data = self.file.read(wanted) if self.file is not None else b""
            if len(data) < wanted:
                raise EOFError
        self.left -= len(data)
        return data


@contextmanager
def _intact_tar(path: Path) -> Iterator[None]:
    try:
        yield
    except _TAR_ERRORS as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's fault; what decompresses gives no number
        raise _damaged(path, error) from None


def _tar_files(path: Path) -> Iterator[FoundFile]:
    with path.open("rb") as file:
        opener = opener_of(file.read(512))
        file.seek(0)
        if opener:
            with _intact_tar(path):
                reason = not_a_tar(opener(file).read(512))
            if reason:
                raise UserError(f"{path}: {reason}")
    # Not tarfile's own "r|gz", which stops at the end of the first gzip member.
    with path.open("rb") as file, opener(file) if opener else nullcontext(file) as stream:
        yield from _members(path, stream)
        with _intact_tar(path):
            while stream.read(READ_BYTES):
                pass  # to the end, where the check sum of all that was read stands


def _members(path: Path, stream: BinaryIO) -> Iterator[FoundFile]:
    stamp = _stamp(path)
    with _intact_tar(path), open_tar(stream) as tar:
        for member in members(tar):
            if member.isreg():
                opening = cast(Callable[[], BinaryIO], partial(_Member, path, tar, member))
                yield FoundFile(member.name, stamp, member.size, opening)
            elif not member.isdir():
                yield _link(member.name, stamp)


def _damaged(path: Path, error: Exception) -> UserError:
    ours = isinstance(error, (TarDamaged, ZipDamaged))  # others may quote a member's name
    why = error if ours else type(error).__name__
    return UserError(
        f"{path} is damaged or cut short ({why}); fetch it again, then run the "
        "same command: it goes on where it stopped"
    )


def _stamp(path: Path) -> str:
    return version_of(path)
