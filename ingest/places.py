"""Where an ingest writes: never where its source is read, and nothing but what an ingest writes.

A work folder for a URL is uploaded and removed at the end. Were it a folder of the source, that
would publish the raw images and delete them.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from ingest.audit_page import FILE_NAME as AUDIT
from ingest.config import IngestConfig
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.record import Source
from ingest.split import TEST, TRAIN, VAL
from ingest.spool import FOLDER_NAME as SPOOL
from ingest.tables import EXCLUDED, LISTS, SAMPLES
from shards.console import UserError
from shards.manifest import FILE_NAME as MANIFEST
from shards.remote import RemotePath, is_remote
from shards.user_cache import user_cache

_FILES = "|".join(map(re.escape, (SAMPLES, EXCLUDED, QUARANTINE, AUDIT, MANIFEST)))
_SPLIT = f"(?:{TRAIN}|{VAL}|{TEST})"


def work_folder(out: RemotePath, given: Path | None) -> Path:
    """Where data sets for a URL are made: the given folder, or one of the user's cache."""
    return given or user_cache() / hashlib.sha256(str(out).encode()).hexdigest()[:16]


def check_places(source: Source, config: IngestConfig) -> Path:
    """The local folder that gets the data set's own one. UserError when a folder to be written is,
    holds or lies in what the source is read from, links followed; or when the source refuses."""
    here = work_folder(config.out, config.work) if is_remote(config.out) else config.out
    for option, place in (("--out", config.out), ("--work", here)):
        for read in source.paths():
            folder = place / source.name
            relation = _relation(folder, read)
            if relation:
                raise UserError(
                    f"{option} {place}: the ingest would write to {folder}, which {relation} "
                    f"{read}, which it reads; name a folder outside"
                )
    if here.exists() and not here.is_dir():
        raise UserError(f"--out {here} is a file; name a folder")
    source.check(here, config.format)
    return here


def _relation(written: Path, read: Path) -> str | None:
    """How the two lie to each other; None: apart."""
    inside, around = _lies_in(written, read), _lies_in(read, written)
    if inside and around:
        return "is"
    return "lies in" if inside else "holds" if around else None


def _lies_in(inner: Path, outer: Path) -> bool:
    if is_remote(inner) and is_remote(outer):
        same_store = type(inner.fs) is type(outer.fs)
        return same_store and inner.parts[: len(outer.parts)] == outer.parts
    if is_remote(inner) or is_remote(outer):
        return False
    return inner.resolve().is_relative_to(outer.resolve())


def refuse_strangers(folder: Path) -> None:
    """UserError when a local folder of a data set for a URL holds a file that no ingest writes:
    all in it is published, then removed. No file is named: it may be called after a patient."""
    strange = sum(1 for _ in _strangers(folder))
    if strange:
        raise UserError(
            f"{folder} holds {strange} files that no ingest writes, and all in it is uploaded, "
            "then removed; move them away, or name another --work"
        )


def _strangers(folder: Path) -> Iterator[Path]:
    shard = rf"{_SPLIT}/{re.escape(folder.name)}-{_SPLIT}-\d+\.(?:tar|idx)"
    written = re.compile(rf"(?:{_FILES}|{LISTS}/{_SPLIT}\.txt|{shard})(?:\.tmp)?")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        known = name.startswith(f"{SPOOL}/") or path.is_dir() or written.fullmatch(name)
        if path.is_symlink() or not known:
            yield path
