"""One data set -> shards, resumable: encode into the spool, audit, split, assemble, manifest last.

`ingest(source, config)`. The same command again goes on where it stopped.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ingest.assemble import Head, assemble
from ingest.choice import (
    COVERED_NOTE,
    MISSING_NOTE,
    Choice,
    Excluded,
    Found,
    Policy,
    capped,
    choose,
)
from ingest.config import IngestConfig
from ingest.encode import EncodeConfig
from ingest.engines import fork_server
from ingest.near import NAME as NEAR_HASH
from ingest.passes import encode_all
from ingest.places import check_places, refuse_strangers
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.quarantine import write_quarantine
from ingest.record import PASSED_OVER, Missing, Record, Source, inventory_hash, records_hash
from ingest.redact import by_file, cover
from ingest.redact import settings as redact_settings
from ingest.remote import begin, finish, upload
from ingest.resplit import refuse_cut
from ingest.split import assign_splits
from ingest.spool import FOLDER_NAME as SPOOL
from ingest.spool import Spool, differences, remove_spool
from ingest.tables import excluded_row
from shards.console import RunFailed, UserError, stderr, warn
from shards.depth import UNSETTLED
from shards.manifest import FILE_NAME as MANIFEST
from shards.manifest import Manifest, load_manifest
from shards.rectangles import read_rectangles
from shards.remote import is_remote

MISSING = "image missing"
QUARANTINED = "quarantined"
_SETTLED_BY_SPOOL = ("format", "shorter_side", "near_hash", "max_megapixels")


def ingest(source: Source, config: IngestConfig) -> Manifest:
    """Make `config.out/<data set>/`; returns its manifest, at once when it is finished already."""
    config.check()
    here = check_places(source, config)
    target, folder = config.out / source.name, here / source.name
    if is_remote(target):
        refuse_strangers(folder)  # before hours of work
    records = source.records()
    settings = all_settings(source, records, config, config.encode_config())
    there = _finished(target, settings)
    if there:
        stderr.print(f"{target} is finished already; nothing to do")
    made = there or _finished(folder, settings)
    manifest = made or _make(source, records, settings, config, folder, target)
    remove_spool(folder)  # may be there after a kill, too; not a running retry's
    there = _finished(target, settings)  # meanwhile, another machine may have been faster
    if is_remote(target):
        if not there:
            upload(folder, target, shown=config.progress)
        finish(folder, target)
    return manifest


def _make(
    source: Source,
    records: Sequence[Record],
    settings: Mapping[str, Any],
    config: IngestConfig,
    folder: Path,
    target: Path,
) -> Manifest:
    """The data set in a local folder. target: where it will be."""
    refuse_cut(folder)
    if config.engine == "local":
        fork_server()  # it imports while the next lines look at the source
    encoding = config.encode_config()
    if config.depth is None:
        encoding = replace(encoding, depth=UNSETTLED)
    rectangles = read_rectangles(config.redact) if config.redact else {}
    missing = _refuse_early(source, records, config)
    beside = source.unlisted(records)
    if beside:
        warn(f"{beside}{PASSED_OVER}")
    if config.redact:
        rectangles = by_file(rectangles, records, config.redact, source.named)
    if is_remote(target):
        begin(folder, target)
    with Spool(folder, spool_settings(settings), settings) as spool:
        made = _finished(folder, settings)
        if made:  # by another run, since this one looked: its shards stay
            return made
        absent = missing.images if missing else 0
        encoding = encode_all(source, records, spool, config, encoding, absent)
        spool.flush()
        choice, head = _decide(source, records, spool, settings, config)
        head = replace(head, depth=encoding.depth or None)
        if beside:
            head = replace(head, notes=(*head.notes, f"{beside}{PASSED_OVER}"))
        if missing:
            head = replace(head, notes=(*head.notes, f"{MISSING_NOTE}{missing.text}"))
        if rectangles:
            split, workers = config.redact_split, config.workers
            covered = cover(source, choice, rectangles, split, spool, encoding, workers)
            spool.flush()
            changed = sum(k.entry is not c.entry for k, c in zip(choice.kept, covered.kept))
            note = f"{COVERED_NOTE}{changed} images ({split}) are blacked out"
            choice, head = covered, replace(head, notes=(*head.notes, note))
        bad = [entry for entry in spool.entries.values() if entry.problem]
        write_quarantine(folder / QUARANTINE, source.name, bad)
        return assemble(folder, head, choice, spool, folder / SPOOL, shown=config.progress)


def spool_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of them that decide an encoded image."""
    return {name: settings[name] for name in _SETTLED_BY_SPOOL if name in settings}


def all_settings(
    source: Source, records: Sequence[Record], config: IngestConfig, encoding: EncodeConfig
) -> dict[str, Any]:
    """All that decides the result; goes into the manifest."""
    settings = {
        "format": encoding.encoding,
        "shorter_side": encoding.shorter_side,
        "seed": config.seed,
        "shard_mb": config.shard_mb,
        "split": asdict(source.split),
        "on_duplicate": config.on_duplicate,
        "near_duplicate": config.near_duplicate,
        "near_hash": NEAR_HASH,
        **config.limits(),
        **redact_settings(config.redact, config.redact_split),
        "labels": [*source.vocabulary.names],
        "exclusive": source.vocabulary.exclusive,
        "metadata_sha256": records_hash(records),
        "files_sha256": inventory_hash(source.inventory()),
    }
    loaded: dict[str, Any] = json.loads(json.dumps(settings))  # as the manifest will read back
    return loaded


def _finished(folder: Path, settings: Mapping[str, Any]) -> Manifest | None:
    if not (folder / MANIFEST).exists():
        return None
    manifest = load_manifest(folder)
    if manifest.settings != settings:
        raise UserError(
            f"{folder} is finished, with other settings: "
            f"{differences(manifest.settings, settings)}; name another --out or remove it"
        )
    return manifest


def _refuse_early(
    source: Source, records: Sequence[Record], config: IngestConfig
) -> Missing | None:
    """What would fail after hours of encoding fails now. Returns what may be missing."""
    usable = [r for r in records if not r.excluded]
    if not usable:
        raise UserError(f"no usable image among the {len(records)} of {source.name}")
    assign_splits(capped(usable, source.split, config.seed), source.split, config.seed)
    missing = source.surely_missing(records)
    if missing and missing.images and not config.allow_missing:
        raise UserError(
            f"missing: {missing.text}; {missing.way}, or add --allow-missing to go on without"
        )
    if missing:
        warn(f"going on without {missing.text}")
    return missing


def _decide(
    source: Source,
    records: Sequence[Record],
    spool: Spool,
    settings: Mapping[str, Any],
    config: IngestConfig,
) -> tuple[Choice, Head]:
    """Audit and split. RunFailed when nothing is left."""
    bad = sum(entry.problem is not None for entry in spool.entries.values())
    found, excluded = _usable(source, records, spool)
    policy = Policy(config.on_duplicate, config.near_duplicate)
    choice = choose(found, source.split, config.seed, policy)
    counts = Counter(e.reason for e in excluded) + Counter({QUARANTINED: bad})
    if not choice.kept:
        counts += Counter(e.reason for e in choice.excluded)
        why = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        raise RunFailed(f"no image of {source.name} is left: {why}")
    return choice, Head(
        source.name,
        source.vocabulary,
        settings["shorter_side"],
        source.synthetic,
        settings,
        [excluded_row(e) for e in excluded],
        counts,
        source.notes,
    )


def _usable(
    source: Source, records: Sequence[Record], spool: Spool
) -> tuple[list[Found], list[Excluded]]:
    """The images that there are, and why the others are not. Quarantined ones are neither."""
    found, excluded = [], [Excluded(r, r.excluded) for r in records if r.excluded]
    for record in (r for r in records if not r.excluded):
        entry = spool.entries.get(record.location)
        if entry is None:
            excluded.append(Excluded(record, MISSING))
        elif not entry.problem:
            found.append(Found(record, entry, source.name))
    return found, excluded
