"""One image as a data set's metadata describe it, and what a data set must offer to be ingested."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from ingest.split import SplitConfig
from shards.labels import Vocabulary
from shards.sample import Box

MAX_FILE_BYTES = 256 * 2**20  # the largest known radiograph file has 35 MB


@dataclass(frozen=True, slots=True)
class Record:
    """location: names the image within its source, never a path by itself; labels: names of the
    vocabulary; unknown: those that nobody looked for; patient: `<data set>:<id>`; split: as given
    by lists (`train_val`: still to be divided); excluded: why the image is left out. None: not
    known, not given, not excluded."""

    location: str
    key: str
    labels: tuple[str, ...]
    patient: str | None = None
    view: str | None = None
    age: int | None = None
    sex: str | None = None
    boxes: tuple[Box, ...] = ()
    split: str | None = None
    excluded: str | None = None
    unknown: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The location as valid Unicode: file systems allow names that are not."""
        return self.location.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image as the pass over a source meets it. stamp: size and time of the file or archive
    that holds it; read: its bytes, only before the pass moves on (BadImage when too large)."""

    location: str
    stamp: str
    read: Callable[[], bytes]


class Source(Protocol):
    """A data set on disk.

    records(): every image the metadata list; reads no image (UserError for bad metadata).
    inventory(): (name, bytes) of the image files or archives there are.
    surely_missing(): what is known to be missing before the pass, in words for the user.
    images(): one pass over all images there are, archives streamed, in a fixed order.
    """

    @property
    def name(self) -> str: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def split(self) -> SplitConfig: ...
    @property
    def synthetic(self) -> bool: ...
    def records(self) -> list[Record]: ...
    def inventory(self) -> list[tuple[str, int]]: ...
    def surely_missing(self, records: Sequence[Record]) -> str | None: ...
    def images(self) -> Iterator[SourceImage]: ...


def records_hash(records: Sequence[Record]) -> str:
    """SHA-256 over all metadata: the same metadata, lists and exclusions give the same hash."""
    digest = hashlib.sha256()
    for record in sorted(records, key=lambda r: r.key):
        digest.update(json.dumps(asdict(record), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def inventory_hash(inventory: Sequence[tuple[str, int]]) -> str:
    """SHA-256 over names and sizes of a source's files."""
    return hashlib.sha256(json.dumps(sorted(inventory)).encode()).hexdigest()
