"""Units of work: 512 consecutive inputs of an archive, handed on in chunks of a few images.

A unit is what is committed, and left out when it is there already; a chunk is what one decoding
worker takes at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from serve.archives import Archive
from serve.entries import ArchiveDamaged, BadMember, Entry, row_names
from serve.score_folder import ArchiveEnd
from shards.console import RunFailed

UNIT_INPUTS = 512
CHUNK_INPUTS = 8
CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class Input:
    """One input on its way. data: its bytes, None with an error."""

    member: str
    key: str
    data: bytes | None
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
        held = sum(len(item.data) for item in self.inputs if item.data is not None)
        return len(self.inputs) >= self.most or held >= CHUNK_BYTES

    def images(self) -> list[bytes]:
        """The bytes of the inputs that could be read."""
        return [item.data for item in self.inputs if item.data is not None]


def unit_count(inputs: int) -> int:
    """Units of an archive with so many inputs."""
    return -(-inputs // UNIT_INPUTS)


def archive_chunks(
    archive: Archive,
    skip: Callable[[int], bool],
    limit: int | None,
    *,
    keep_names: bool = False,
    most: int = CHUNK_INPUTS,
) -> Iterator[Chunk]:
    """The chunks of the units that are not to be skipped; the last one, perhaps empty, has the end.

    limit: of the inputs, those in skipped units included. keep_names: of DICOM files too. most:
    inputs in a chunk.
    """
    chunk: Chunk | None = None
    damage: list[str] = []
    inputs = 0
    for item in _inputs(archive, skip, limit, damage, keep_names=keep_names):
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
    last.end = ArchiveEnd(inputs, dict(archive.skipped), damage[0] if damage else None)
    yield last


def _inputs(
    archive: Archive,
    skip: Callable[[int], bool],
    limit: int | None,
    damage: list[str],
    *,
    keep_names: bool,
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
            yield None if skipped else _read(entry, position + 1, keep_names=keep_names)
            position += 1
    except ArchiveDamaged as error:
        damage.append(str(error))
        rest = Input("", "", None, f"the rest of the archive: {error}")
        yield None if skip(position // UNIT_INPUTS) else rest
    except OSError as error:
        raise RunFailed(f"{archive.called}: {error.strerror or error}; run it again") from error


def _read(entry: Entry, number: int, *, keep_names: bool) -> Input:
    """number: of the entry in its archive, from 1 on."""
    data, error = None, None
    try:
        data = entry.read()
    except BadMember as bad:
        error = str(bad)
    member, key = (entry.name, entry.key) if keep_names else row_names(entry, data, number)
    return Input(member, key, data, error)
