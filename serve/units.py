"""Units of work: 512 consecutive inputs of an archive, handed on in chunks of a few images.

A unit is what is committed, and left out when it is there already; a chunk is what one decoding
worker takes at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from serve.archives import Archive
from serve.entries import ArchiveDamaged, BadMember, Entry, Piece, keeps_its_name, row_names
from serve.score_folder import UNIT_INPUTS, ArchiveEnd
from shards.console import RunFailed

CHUNK_INPUTS = 8
CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class Input:
    """One input on its way. data: its bytes or where they lie, None with an error."""

    member: str
    key: str
    data: bytes | Piece | None
    error: str | None


@dataclass
class Chunk:
    """At most `most` consecutive inputs of one unit. closes_unit: the unit has no more; end: of the
    archive."""

    unit: int
    most: int = CHUNK_INPUTS
    inputs: list[Input] = field(default_factory=list)
    closes_unit: bool = False
    end: ArchiveEnd | None = None

    @property
    def full(self) -> bool:
        held = sum(len(item.data) for item in self.inputs if isinstance(item.data, bytes))
        return len(self.inputs) >= self.most or held >= CHUNK_BYTES

    def images(self) -> list[bytes | Piece]:
        """The data of the inputs that could be read."""
        return [item.data for item in self.inputs if item.data is not None]


def archive_chunks(
    archive: Archive,
    skip: Callable[[int], bool],
    limit: int | None,
    *,
    keep_names: bool = False,
    most: int = CHUNK_INPUTS,
    in_place: bool = False,
) -> Iterator[Chunk]:
    """The chunks of the units that are not to be skipped; the last one, perhaps empty, has the end.

    limit: of the inputs, those in skipped units included. keep_names: of DICOM files too. most:
    inputs in a chunk. in_place: of local files give Pieces where that will do.
    """
    chunk: Chunk | None = None
    damage: list[str] = []
    inputs = 0
    read = partial(_read, keep_names=keep_names, in_place=in_place)
    for item in _inputs(archive, skip, limit, damage, read):
        unit, place = divmod(inputs, UNIT_INPUTS)
        inputs += 1
        if item is None:
            continue
        if chunk is not None and chunk.full:
            yield chunk
            chunk = None
        chunk = chunk or Chunk(unit, most)
        chunk.inputs.append(item)
        if place == UNIT_INPUTS - 1:
            chunk.closes_unit = True
            yield chunk
            chunk = None
    last = chunk or Chunk(inputs // UNIT_INPUTS)
    last.closes_unit = chunk is not None
    inner = archive.inner_damage
    said = "; ".join([*damage, *([inner] if inner else [])]) or None
    rests = len(damage) + len(archive.damaged)
    last.end = ArchiveEnd(inputs, dict(archive.skipped), said, rests)
    yield last


def _inputs(
    archive: Archive,
    skip: Callable[[int], bool],
    limit: int | None,
    damage: list[str],
    read: Callable[[Entry, int], Input],
) -> Iterator[Input | None]:
    """Every input of an archive, None (and not read) where its unit is skipped.

    What cannot be read of a damaged archive is one input, the last; the reason goes to `damage`.
    """
    position = 0
    entries = archive.entries()
    try:
        while limit is None or position < limit:
            entry = next(entries, None)
            if entry is None:
                return
            skipped = skip(position // UNIT_INPUTS)
            yield None if skipped else read(entry, position + 1)
            position += 1
    except ArchiveDamaged as error:
        damage.append(str(error))
        rest = Input("", "", None, f"the rest of the archive: {error}")
        yield None if skip(position // UNIT_INPUTS) else rest
    except OSError as error:
        raise RunFailed(f"{archive.called}: {error.strerror or error}; run it again") from error


def _read(entry: Entry, number: int, *, keep_names: bool, in_place: bool) -> Input:
    """number: of the entry in its archive, from 1 on."""
    if in_place and entry.piece and keeps_its_name(entry, entry.piece):
        return Input(entry.name, entry.key, entry.piece, None)
    data, error = None, None
    try:
        data = entry.read()
    except BadMember as bad:
        error = str(bad)
    member, key = (entry.name, entry.key) if keep_names else row_names(entry, data, number)
    return Input(member, key, data, error)
