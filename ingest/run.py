"""One data set -> shards, resumable: encode into the spool, audit, split, assemble, manifest last.

`ingest(source, config)`. The same command again goes on where it stopped.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
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
from ingest.encode import EncodeConfig, Rejected, encode_image
from ingest.engines import Encode, Engine, Job, LocalEngine, fork_server
from ingest.near import NAME as NEAR_HASH
from ingest.places import check_places, refuse_strangers
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.quarantine import check_limit, write_quarantine
from ingest.ray_engine import RayEngine
from ingest.record import (
    BadFile,
    Missing,
    Record,
    Source,
    SourceImage,
    inventory_hash,
    records_hash,
)
from ingest.redact import by_file, cover
from ingest.redact import settings as redact_settings
from ingest.remote import begin, finish, read_ahead, upload
from ingest.resplit import refuse_cut
from ingest.split import assign_splits
from ingest.spool import FOLDER_NAME as SPOOL
from ingest.spool import Entry, Spool, differences, remove_spool
from ingest.tables import excluded_row
from shards.codec import BadImage
from shards.console import Advance, RunFailed, UserError, first_few, progress, stderr, warn
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
    rectangles = read_rectangles(config.redact) if config.redact else {}
    missing = _refuse_early(source, records, config)
    if config.redact:
        rectangles = by_file(rectangles, records, config.redact, source.named)
    if is_remote(target):
        begin(folder, target)
    with Spool(folder, spool_settings(settings), settings) as spool:
        made = _finished(folder, settings)
        if made:  # by another run, since this one looked: its shards stay
            return made
        encode_all(source, records, spool, config, encoding, missing.images if missing else 0)
        spool.flush()
        choice, head = _decide(source, records, spool, settings, config)
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
    if missing and not config.allow_missing:
        raise UserError(
            f"missing: {missing.text}; complete the download, or add --allow-missing to go on "
            "without"
        )
    if missing:
        warn(f"going on without {missing.text}")
    return missing


def encode_all(
    source: Source,
    records: Sequence[Record],
    spool: Spool,
    config: IngestConfig,
    encoding: EncodeConfig,
    missing: int = 0,
) -> None:
    """One pass over the source; afterwards the spool holds exactly the images that are there.
    missing: how many are known not to be, so that the bar's total is what there is to do."""
    wanted = {r.location for r in records if not r.excluded}
    seen: set[str] = set()
    bad: list[Entry] = []
    with (
        progress("encode", len(wanted) - missing, shown=config.progress) as advance,
        _open_engine(config, partial(encode_image, config=encoding)) as engine,
    ):
        here = config.engine == "local"
        for job, outcome in engine.map(_jobs(source, wanted, seen, spool, advance, here)):
            spool.add(job.location, job.stamp, outcome)
            advance(1, f"{len(bad)} quarantined")
            if isinstance(outcome, Rejected):
                bad.append(spool.entries[job.location])
                check_limit(bad, len(wanted), config.max_bad)
    spool.retain(seen)
    absent = sorted(wanted - seen)
    if absent and not config.allow_missing:
        raise UserError(_missing_message(absent, len(wanted), source))
    check_limit([e for e in spool.entries.values() if e.problem], len(seen), config.max_bad)


def _open_engine(config: IngestConfig, encode: Encode) -> Engine:
    if config.engine == "ray":
        return RayEngine(config.workers, encode, config.ray_address)
    return LocalEngine(config.workers, encode)


def _jobs(
    source: Source,
    wanted: set[str],
    seen: set[str],
    spool: Spool,
    advance: Advance,
    here: bool,
) -> Iterator[Job]:
    """The wanted images that the spool lacks; `seen` fills up as the pass goes on. here: workers
    are on this machine, and read its files."""
    for image, read in read_ahead(_lacking(source, wanted, seen, spool, advance)):
        if here and image.path:
            yield Job(image.location, image.stamp, image.path)
            continue
        try:
            yield Job(image.location, image.stamp, read())
        except BadImage as error:
            sha256 = error.sha256 if isinstance(error, BadFile) else ""
            spool.add(image.location, image.stamp, Rejected(str(error), sha256))
            advance(1)


def _lacking(
    source: Source, wanted: set[str], seen: set[str], spool: Spool, advance: Advance
) -> Iterator[SourceImage]:
    for image in source.images():
        if image.location not in wanted or image.location in seen:
            continue
        seen.add(image.location)
        if spool.has(image.location, image.stamp):
            advance(1)
            continue
        yield image
        if len(seen) == len(wanted):
            return


def _missing_message(missing: Sequence[str], wanted: int, source: Source) -> str:
    files = [name for name, _ in source.inventory()]
    return (
        f"{len(missing)} of {wanted} images are missing, such as {', '.join(missing[:3])}; there "
        f"are {first_few(files)}; complete the download, or add --allow-missing "
        "(what is encoded is kept)"
    )


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
