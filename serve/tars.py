"""The members of a tar, plain or compressed, in a stream that tells every damage."""

import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedIOBase
from typing import BinaryIO, cast

from serve.entries import ArchiveDamaged, Budget, Member, Piece, guarded
from shards.tars import READ_BYTES, members, not_a_tar, open_tar, read_member


class _BoundedReader:
    """What tarfile needs of a decompressed stream, within the budget. Of a damaged one all that is
    before the damage, which the next call tells."""

    def __init__(self, stream: BinaryIO, budget: Budget) -> None:
        self.stream, self.budget = stream, budget
        self.ahead = b""
        self.damage: Exception | None = None

    def peek(self, count: int) -> bytes:
        """The first bytes, which are read again."""
        self.ahead = self.read(count)
        return self.ahead

    def read(self, count: int) -> bytes:
        if self.ahead:
            first, self.ahead = self.ahead[:count], self.ahead[count:]
            return first + (self.read(count - len(first)) if len(first) < count else b"")
        if self.damage is not None:
            raise self.damage
        data = bytearray()
        while len(data) < count:
            try:
                part = cast(BufferedIOBase, self.stream).read1(count - len(data))
            except Exception as error:
                if not data:
                    raise
                self.damage = error
                break
            if not part:
                break
            data += part
        self.budget.spend(len(data))
        return bytes(data)

    def drain(self) -> None:
        """Read to the end: a compressed file's check sum stands there."""
        while self.read(READ_BYTES):
            pass


def tar_members(
    stream: BinaryIO,
    size: int,
    *,
    seekable: bool,
    in_order: bool,
    piece: Callable[[int, int], Piece] | None = None,
) -> Iterator[Member]:
    """The members of a plain tar of `size` bytes. ArchiveDamaged where it cannot be read on.

    in_order: each is read when it is met, so that a cut lies behind the same one in every run.
    piece: of an offset and a size, where the tar is a local file.
    """
    tar = guarded(partial(open_tar, stream, seekable=seekable), ArchiveDamaged)
    every = members(tar)
    while (member := guarded(lambda: next(every, None), ArchiveDamaged)) is not None:
        if member.isdir():
            continue
        if seekable and tar.offset > size:
            raise ArchiveDamaged("cut short inside a member")
        yield Member(
            member.name,
            member.size,
            read=partial(_extract, tar, member),
            stream=partial(_stream, tar, member),
            seekable=seekable,
            in_order=in_order,
            link=not member.isreg(),
            piece=piece(member.offset_data, member.size) if piece and not member.sparse else None,
        )


def compressed_tar_members(
    packed: BinaryIO, opener: Callable[[BinaryIO], BinaryIO] | None, budget: Budget
) -> Iterator[Member]:
    """The members of a compressed tar. ArchiveDamaged where it cannot be read on, and where it is
    no tar that is compressed."""
    if opener is None:
        raise ArchiveDamaged("neither gzip, bzip2, xz, lzma nor zstd: cut short or not an archive")
    with opener(packed) as stream:
        reader = _BoundedReader(stream, budget)
        reason = not_a_tar(guarded(partial(reader.peek, 512), ArchiveDamaged))
        if reason:
            raise ArchiveDamaged(reason)
        yield from tar_members(cast(BinaryIO, reader), 0, seekable=False, in_order=True)
        guarded(reader.drain, ArchiveDamaged)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return guarded(partial(read_member, tar, member), ArchiveDamaged)


def _stream(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    return cast(BinaryIO, guarded(partial(tar.extractfile, member), ArchiveDamaged))
