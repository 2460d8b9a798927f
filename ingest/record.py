"""One image as a data set's metadata describe it, and what a data set must offer to be ingested."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from ingest.split import SplitConfig
from shards.codec import BadImage, Encoding
from shards.labels import Vocabulary
from shards.sample import Box

PASSED_OVER = "; passed over"  # ends the note of what lies beside the images
MAX_FILE_BYTES = 256 * 2**20  # the largest known radiograph file has 35 MB


@dataclass(frozen=True, slots=True)
class Record:
    """location: names the image within its source, never a path by itself; labels: names of the
    vocabulary; unknown: those that nobody looked for; patient: `<data set>:<id>`; split: as given
    by lists (`train_val`: still to be divided); excluded: why the image is left out; modality: CR,
    DX, X-ray, CT, as the metadata say it. None: not known, not given, not excluded."""

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
    modality: str | None = None

    @property
    def file(self) -> str:
        """The location as valid Unicode: file systems allow names that are not."""
        return self.location.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


_NAMES = tuple(field.name for field in fields(Record))


class BadFile(BadImage):
    """A file that was read, and is no image of its source. sha256: of its bytes."""

    def __init__(self, reason: str, sha256: str) -> None:
        super().__init__(reason)
        self.sha256 = sha256


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image as the pass over a source meets it. stamp: size and time of the file or archive
    that holds it; read: its bytes, only before the pass moves on (BadImage when it cannot be
    used); apart:
    or at any time, from any thread; path: the local file that is the image, which a worker process
    may read itself."""

    location: str
    stamp: str
    read: Callable[[], bytes]
    apart: bool = False
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """images: how many of the wanted ones are known to be missing, 0 where that is not sure; text:
    the same for the user; way: what the user can do."""

    images: int
    text: str
    way: str = "complete the download"


class Source(Protocol):
    """A data set on disk.

    records(): every image the metadata list; reads no image (UserError for bad metadata).
    records_before(): the same as when these images (file -> reason) were put into quarantine, where
    what their files say of themselves was unread or another then.
    inventory(): (name, bytes) of the image files or archives there are.
    surely_missing(): what is known to be missing before the pass.
    unlisted(): what lies there and has no record, counted, in words; None for nothing.
    images(): one pass over all images there are, archives streamed, in a fixed order.
    paths(): the folders, archives and tables that it is read from.
    named(): which files or keys of records a line of a list of images may mean.
    check(): UserError for an output folder or an encoding that would publish what must not be.
    private: the names of its files and folders may be those of people.
    notes: what the manifest should say of it, in words.
    """

    name: str
    vocabulary: Vocabulary
    split: SplitConfig
    synthetic: bool
    private: bool = False
    notes: tuple[str, ...] = ()

    def records(self) -> list[Record]: ...
    def records_before(self, quarantined: Mapping[str, str]) -> list[Record]:
        return self.records()

    def inventory(self) -> list[tuple[str, int]]: ...
    def surely_missing(self, records: Sequence[Record]) -> Missing | None: ...
    def unlisted(self, records: Sequence[Record]) -> str | None:
        return None

    def images(self) -> Iterator[SourceImage]: ...
    def paths(self) -> tuple[Path, ...]: ...

    def named(self, line: str) -> tuple[str, ...]:
        return (line.removeprefix("./"),)

    def check(self, out: Path, encoding: Encoding) -> None:
        return None


def records_hash(records: Sequence[Record]) -> str:
    """SHA-256 over all metadata: the same metadata, lists and exclusions give the same hash."""
    digest = hashlib.sha256()
    for record in sorted(records, key=lambda r: r.key):
        plain = {name: getattr(record, name) for name in _NAMES}  # asdict would copy every value
        digest.update(json.dumps(plain, default=asdict, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def inventory_hash(inventory: Sequence[tuple[str, int]]) -> str:
    """SHA-256 over names and sizes of a source's files."""
    return hashlib.sha256(json.dumps(sorted(inventory)).encode()).hexdigest()
