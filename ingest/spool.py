"""Encoded images on disk until the shards are assembled: what makes an ingest resumable.

`OUT/<dataset>/.spool/`: `settings.json` (those that decide an encoded image), `begun.json` (all
that a run was asked for, and whether it failed with them), and chunks `chunk-00000.bin` (image
bytes, one after the other) with `chunk-00000.jsonl` (one entry per image), which is written last
and atomically: a chunk is there as a whole or not at all. Entries of rejected images are kept too,
without bytes.
"""

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from ingest.encode import Encoded, Rejected
from shards.console import RunFailed, UserError, warn
from shards.lock import hold
from shards.writer import write_atomic

FOLDER_NAME = ".spool"
_BEGUN, _FILES = "begun.json", "files_sha256"
_MEANINGS = {
    "metadata_sha256": " (the metadata, and what lists and --exclude make of them)",
    _FILES: " (names and sizes of the source's files)",
}
_CHUNK_IMAGES, _CHUNK_BYTES = 512, 64 * 2**20  # at most this much work is lost by a kill


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: where its bytes lie in which chunk. problem: why it was rejected, else None; bits,
    depth: as of Encoded."""

    location: str
    stamp: str
    sha256: str
    chunk: int
    offset: int = 0
    size: int = 0
    extension: str = ""
    width: int = 0
    height: int = 0
    pixel_sha256: str = ""
    near_hash: str = ""
    problem: str | None = None
    bits: int = 0
    depth: int = 0


_NAMES = tuple(field.name for field in fields(Entry))


def _plain(entry: Entry) -> dict[str, Any]:
    """As dataclasses.asdict, which copies every value: 30 times as slow."""
    return {name: getattr(entry, name) for name in _NAMES}


class Images(Protocol):
    """Where entries' bytes lie: a spool, or the shards of finished data sets."""

    def read(self, entry: Entry) -> bytes: ...


class Spool:
    """Opened by one process at a time; `with` writes the last, short chunk when all went well."""

    def __init__(
        self,
        dataset_folder: Path,
        settings: Mapping[str, Any],
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        """settings: those that decide an encoded image; asked: all of them. UserError when another
        ingest is at work there, or began with other settings and did not fail with them."""
        self.folder = dataset_folder / FOLDER_NAME
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.folder)
        _check_settings(self.folder, settings)
        self._asked = asked
        if asked is not None:
            _check_begun(self.folder, asked)
            _write_begun(self.folder, asked, failed=False)
        self.entries: dict[str, Entry] = {}
        self._fresh: list[Entry] = []
        self._chunk, self._size = self._load(), 0
        self._blob = self._blob_path(self._chunk).open("wb")

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            # Ctrl-C and a source's error keep what was done; a full disk cannot.
            if not isinstance(error, OSError):
                self.flush()
            if self._asked is not None and isinstance(error, UserError | RunFailed):
                _write_begun(self.folder, self._asked, failed=True)
        finally:
            self._blob.close()
            self._lock.close()

    @property
    def depth(self) -> int:
        """Of the 16-bit images that declare none; 0: there is none."""
        return max((entry.depth for entry in self.entries.values()), default=0)

    def has(self, location: str, stamp: str, depth: int | None = None) -> bool:
        """Whether this image, out of this very file, was encoded before, with this depth where it
        declares none. Rejected ones are tried again: the reason may have been a disk or a network
        that failed for a moment."""
        entry = self.entries.get(location)
        if entry is None or entry.stamp != stamp or entry.problem is not None:
            return False
        return entry.depth in (0, depth)

    def add(self, location: str, stamp: str, outcome: Encoded | Rejected) -> None:
        """Store one outcome; it survives a kill once its chunk is full."""
        if isinstance(outcome, Rejected):
            entry = Entry(location, stamp, outcome.sha256, self._chunk, problem=outcome.reason)
        else:
            entry = Entry(
                location,
                stamp,
                outcome.sha256,
                self._chunk,
                self._size,
                len(outcome.image),
                outcome.extension,
                outcome.width,
                outcome.height,
                outcome.pixel_sha256,
                outcome.near_hash,
                bits=outcome.bits,
                depth=outcome.depth,
            )
            self._blob.write(outcome.image)
            self._size += len(outcome.image)
        self.entries[location] = entry
        self._fresh.append(entry)
        if len(self._fresh) >= _CHUNK_IMAGES or self._size >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Finish the chunk under way and begin the next one."""
        if not self._fresh:
            return
        self._blob.flush()
        os.fsync(self._blob.fileno())
        self._blob.close()
        lines = "".join(json.dumps(_plain(entry)) + "\n" for entry in self._fresh)
        write_atomic(self._blob_path(self._chunk).with_suffix(".jsonl"), lines.encode())
        self._fresh, self._chunk, self._size = [], self._chunk + 1, 0
        self._blob = self._blob_path(self._chunk).open("wb")

    def read(self, entry: Entry) -> bytes:
        """The encoded image of an entry; only after flush()."""
        path = self._blob_path(entry.chunk)
        file = os.open(path, os.O_RDONLY)  # 0.02 ms an image, where Path.open costs 0.08
        try:
            data = os.pread(file, entry.size, entry.offset)
        finally:
            os.close(file)
        if len(data) < entry.size:
            raise _damaged(self.folder, path.name)
        return data

    def retain(self, locations: Collection[str]) -> None:
        """Forget the entries of images that are no longer in the source."""
        self.entries = {name: e for name, e in self.entries.items() if name in locations}

    def _blob_path(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:05d}.bin"

    def _load(self) -> int:
        """Read the entries of all finished chunks; returns the number of the next chunk."""
        finished = sorted(self.folder.glob("chunk-*.jsonl"))
        for path in finished:
            try:
                entries = [Entry(**json.loads(line)) for line in path.read_bytes().splitlines()]
            except (ValueError, TypeError):
                raise _damaged(self.folder, path.name) from None
            self.entries.update((entry.location, entry) for entry in entries)
        return int(finished[-1].stem.removeprefix("chunk-")) + 1 if finished else 0


def lock(folder: Path) -> Any:
    """An open file that holds the folder until it is closed. UserError when another run does."""
    file = (folder / "lock").open("w")
    if not hold(file):
        file.close()
        raise UserError(
            f"another ingest is writing to {folder.parent}; wait for it, or name another --out"
        )
    return file


def remove_spool(dataset_folder: Path) -> None:
    """Remove what a finished run left. UserError when another run is at work with it."""
    folder = dataset_folder / FOLDER_NAME
    if folder.is_dir():
        with lock(folder):
            # First: a kill could leave them without the settings that they were made with.
            for entries in folder.glob("chunk-*.jsonl"):
                entries.unlink()
            shutil.rmtree(folder)


def _damaged(folder: Path, name: str) -> UserError:
    return UserError(
        f"{folder / name} is damaged or of another version; remove {folder} to begin again"
    )


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / "settings.json"
    if not path.exists():
        if any(folder.glob("chunk-*.jsonl")):
            raise UserError(
                f"{path} is missing, so what the images in {folder} were made with is not known; "
                f"remove {folder} to begin again"
            )
        write_atomic(path, json.dumps(dict(settings), sort_keys=True).encode())
        return
    try:
        begun = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise _damaged(folder, path.name) from None
    if begun != dict(settings):
        raise UserError(
            f"{folder.parent} was begun with other settings: {differences(begun, settings)}; "
            f"use the same settings to go on, or remove {folder} to begin again"
        )


def _write_begun(folder: Path, asked: Mapping[str, Any], *, failed: bool) -> None:
    begun = {"settings": dict(asked), "failed": failed}
    write_atomic(folder / _BEGUN, json.dumps(begun, sort_keys=True).encode())


def _check_begun(folder: Path, asked: Mapping[str, Any]) -> None:
    """UserError when a run was begun with other settings than `asked`. A warning where it failed
    with them, so that others are the way out, or where files of the source were changed."""
    path = folder / _BEGUN
    if not path.exists():
        return
    try:
        begun = json.loads(path.read_bytes())
        before, failed = dict(begun["settings"]), bool(begun["failed"])
    except (ValueError, TypeError, LookupError):
        raise _damaged(folder, path.name) from None
    changed = {name for name in before.keys() | asked.keys() if before.get(name) != asked.get(name)}
    if not changed:
        return
    what = f"{folder.parent} was begun with other settings: {differences(before, asked)}"
    if failed or (_FILES in changed and changed <= _MEANINGS.keys()):
        warn(f"{what}; those of now hold, and images that are encoded already are used")
        return
    raise UserError(
        f"{what}; use the same settings to go on (resplit changes a finished set's split without "
        f"decoding), name another --out, or remove {folder} to begin again"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The settings that differ, as `name was old, now new`; of a part, only what differs in it."""
    found = []
    for name in sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
        was, now = old.get(name), new.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found.append(f"{name}: {differences(was, now)}")
        else:
            found.append(f"{name}{_MEANINGS.get(name, '')} was {was}, now {now}")
    return "; ".join(found)
