"""Units of work: 512 consecutive inputs of an archive, handed on in chunks of a few images.

A unit is what is committed, and left out when it is there already; a chunk is what one decoding
worker takes at a time.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from serve.archives import Archive
from serve.entries import ArchiveDamaged, BadMember, Entry
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
    """Consecutive inputs of one unit. closes_unit: the unit has no more; end: of the archive."""

    unit: int
    inputs: list[Input] = field(default_factory=list)
    closes_unit: bool = False
    end: ArchiveEnd | None = None

    @property
    def full(self) -> bool:
        held = sum(len(item.data) for item in self.inputs if item.data is not None)
        return len(self.inputs) >= CHUNK_INPUTS or held >= CHUNK_BYTES

    def images(self) -> list[bytes]:
        """The bytes of the inputs that could be read."""
        return [item.data for item in self.inputs if item.data is not None]


def archive_chunks(
    archive: Archive, finished: Collection[int], limit: int | None
) -> Iterator[Chunk]:
    """The chunks of the units that are not finished; the last one, perhaps empty, has the end.

    limit: of the inputs, those in finished units included.
    """
    chunk: Chunk | None = None
    damage: list[str] = []
    inputs = 0
    for item in _inputs(archive, finished, limit, damage):
        unit, place = divmod(inputs, UNIT_INPUTS)
        inputs += 1
        if item is None:
            continue
        if chunk is not None and chunk.full:
            yield chunk
            chunk = None
        chunk = chunk or Chunk(unit)
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
    archive: Archive, finished: Collection[int], limit: int | None, damage: list[str]
) -> Iterator[Input | None]:
    """Every input of an archive, None (and not read) where its unit is finished.

    What cannot be read of a damaged archive is one input, the last; the reason goes to `damage`.
    """
    position = 0
    entries = archive.entries()
    try:
        while limit is None or position < limit:
            entry = next(entries, None)
            if entry is None:
                return
            yield None if position // UNIT_INPUTS in finished else _read(entry)
            position += 1
    except ArchiveDamaged as error:
        damage.append(str(error))
        rest = Input("", "", None, f"the rest of the archive: {error}")
        yield None if position // UNIT_INPUTS in finished else rest
    except OSError as error:
        raise RunFailed(f"{archive.path}: {error.strerror or error}; run it again") from error


def _read(entry: Entry) -> Input:
    try:
        return Input(entry.name, entry.key, entry.read(), None)
    except BadMember as error:
        return Input(entry.name, entry.key, None, str(error))
