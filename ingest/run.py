"""One data set -> shards, resumable: encode into the spool, audit, split, assemble, manifest last.

`ingest(source, config)`. The same command again goes on where it stopped.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ingest.assemble import (
    Excluded,
    Kept,
    count_splits,
    plan_shards,
    write_excluded,
    write_lists,
    write_samples,
    write_shards,
)
from ingest.audit import Candidate, find_duplicates
from ingest.encode import EncodeConfig, Rejected, encode_image
from ingest.engines import Job, LocalEngine
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.quarantine import check_limit, write_quarantine
from ingest.record import Record, Source, inventory_hash, records_hash
from ingest.split import assign_splits, over_cap, shared_patients
from ingest.spool import FOLDER_NAME as SPOOL
from ingest.spool import Entry, Spool, differences
from shards.codec import BadImage, Encoding
from shards.console import Advance, RunFailed, UserError, progress, stderr, warn
from shards.manifest import FILE_NAME as MANIFEST
from shards.manifest import Manifest, load_manifest
from shards.preprocess import VERSION as PREPROCESSING_VERSION
from shards.writer import write_atomic

MISSING = "image missing"
QUARANTINED = "quarantined"
_DEFAULT_SHORTER_SIDE = 512
_SETTLED_BY_SPOOL = ("format", "shorter_side")


@dataclass(frozen=True)
class IngestConfig:
    """How a data set becomes shards, whichever data set it is."""

    out: Path
    """Folder for the shards; the data set gets its own folder in it."""
    format: Encoding = "htj2k"
    """Image encoding: htj2k (lossless, a GPU can decode it), jpeg (quality 95), png, or keep (the
    source's own bytes, checked by decoding)."""
    shorter_side: int | None = None
    """Reduce images to this shorter side in pixels, never enlarge; 0 keeps the size.
    Default: 512, and 0 with --format keep."""
    seed: int = 0
    """Decides splits and the order of samples."""
    shard_mb: int = 256
    """Size of a shard, about, in MB."""
    allow_missing: bool = False
    """Go on without the images that the metadata list and the source lacks."""
    max_bad: float = 0.01
    """Fail when a larger share of the images cannot be decoded (3 images are always allowed)."""
    workers: int = os.cpu_count() or 1
    """Worker processes. They change the speed, never a byte of the result."""
    progress: bool = True
    """Show progress bars."""

    def encode_config(self) -> EncodeConfig:
        """UserError when encoding and size contradict each other."""
        side = self.shorter_side
        if self.format == "keep" and side:
            raise UserError(f"--format keep keeps the source's bytes; drop --shorter-side {side}")
        if side is None:
            side = 0 if self.format == "keep" else _DEFAULT_SHORTER_SIDE
        return EncodeConfig(self.format, side or None)

    def check(self) -> None:
        """UserError for a number out of its range."""
        ranges = {
            "--shorter-side": (self.shorter_side or 0, 0, 65_535),
            "--shard-mb": (self.shard_mb, 1, 65_536),
            "--max-bad": (self.max_bad, 0, 1),
            "--workers": (self.workers, 1, 1024),
        }
        for option, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise UserError(f"{option} {value}; allowed: {low} to {high}")


def ingest(source: Source, config: IngestConfig) -> Manifest:
    """Make `config.out/<data set>/`; returns its manifest, at once when it is finished already."""
    config.check()
    encoding = config.encode_config()
    folder = config.out / source.name
    records = source.records()
    settings = _settings(source, records, config, encoding)
    finished = _finished(folder, settings)
    if finished:
        return finished
    _refuse_early(source, records, config)
    spool_settings = {name: settings[name] for name in _SETTLED_BY_SPOOL}
    with Spool(folder, spool_settings) as spool:
        _encode_all(source, records, spool, config, encoding)
        spool.flush()
        manifest = _finish(source, records, spool, folder, settings, config)
    shutil.rmtree(folder / SPOOL)
    return manifest


def _settings(
    source: Source, records: Sequence[Record], config: IngestConfig, encoding: EncodeConfig
) -> dict[str, Any]:
    """All that decides the result; goes into the manifest."""
    settings = {
        "format": encoding.encoding,
        "shorter_side": encoding.shorter_side,
        "seed": config.seed,
        "shard_mb": config.shard_mb,
        "split": asdict(source.split),
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
    stderr.print(f"{folder} is finished already; nothing to do")
    shutil.rmtree(folder / SPOOL, ignore_errors=True)  # a kill came between manifest and removal
    return manifest


def _refuse_early(source: Source, records: Sequence[Record], config: IngestConfig) -> None:
    """What would fail after hours of encoding fails now."""
    usable = [r for r in records if not r.excluded]
    if not usable:
        raise UserError(f"no usable image among the {len(records)} of {source.name}")
    assign_splits(_capped(usable, source, config.seed), source.split, config.seed)
    missing = source.surely_missing(records)
    if missing and not config.allow_missing:
        raise UserError(
            f"missing: {missing}; complete the download, or add --allow-missing to go on without"
        )


def _capped(records: Sequence[Record], source: Source, seed: int) -> list[Record]:
    cap = source.split.cap_per_class
    over = over_cap(records, cap, seed) if cap is not None else set()
    return [r for r in records if r.key not in over]


def _encode_all(
    source: Source,
    records: Sequence[Record],
    spool: Spool,
    config: IngestConfig,
    encoding: EncodeConfig,
) -> None:
    """One pass over the source; afterwards the spool holds exactly the images that are there."""
    wanted = {r.location for r in records if not r.excluded}
    seen: set[str] = set()
    bad: list[Entry] = []
    with (
        progress("encode", len(wanted), shown=config.progress) as advance,
        LocalEngine(config.workers, partial(encode_image, config=encoding)) as engine,
    ):
        for job, outcome in engine.map(_jobs(source, wanted, seen, spool, advance)):
            spool.add(job.location, job.stamp, outcome)
            advance(1, f"{len(bad)} quarantined")
            if isinstance(outcome, Rejected):
                bad.append(spool.entries[job.location])
                check_limit(bad, len(wanted), config.max_bad)
    spool.retain(seen)
    missing = sorted(wanted - seen)
    if missing and not config.allow_missing:
        raise UserError(_missing_message(missing, len(wanted), source))
    check_limit([e for e in spool.entries.values() if e.problem], len(seen), config.max_bad)


def _jobs(
    source: Source, wanted: set[str], seen: set[str], spool: Spool, advance: Advance
) -> Iterator[Job]:
    """The wanted images that the spool lacks; `seen` fills up as the pass goes on."""
    for image in source.images():
        if image.location not in wanted or image.location in seen:
            continue
        seen.add(image.location)
        if spool.has(image.location, image.stamp):
            advance(1)
            continue
        try:
            yield Job(image.location, image.stamp, image.read())
        except BadImage as error:
            spool.add(image.location, image.stamp, Rejected(str(error), ""))
            advance(1)
        if len(seen) == len(wanted):
            return


def _missing_message(missing: Sequence[str], wanted: int, source: Source) -> str:
    files = [name for name, _ in source.inventory()]
    some = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return (
        f"{len(missing)} of {wanted} images are missing, such as {', '.join(missing[:3])}; there "
        f"are {some}; complete the download, or add --allow-missing (what is encoded is kept)"
    )


def _finish(
    source: Source,
    records: Sequence[Record],
    spool: Spool,
    folder: Path,
    settings: Mapping[str, Any],
    config: IngestConfig,
) -> Manifest:
    """Audit, split and write everything but the images' encoding; the manifest last."""
    bad = [entry for entry in spool.entries.values() if entry.problem]
    kept, excluded = _decide(source, records, spool, config.seed)
    reasons = Counter(e.reason for e in excluded) + Counter({QUARANTINED: len(bad)})
    if not kept:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise RunFailed(f"no image of {source.name} is left: {why}")
    plans = plan_shards(source.name, kept, config.shard_mb * 10**6, config.seed)
    with progress("assemble", len(kept), shown=config.progress) as advance:
        shards = write_shards(folder, source.name, plans, source.vocabulary, spool, advance)
    splits = count_splits(kept, source.vocabulary)
    write_samples(folder / "samples.parquet", plans)
    write_excluded(folder / "excluded.parquet", excluded)
    write_quarantine(folder / QUARANTINE, source.name, bad)
    write_lists(folder / "lists", kept, splits)
    manifest = Manifest(
        dataset=source.name,
        labels=source.vocabulary.names,
        exclusive=source.vocabulary.exclusive,
        image_extension=";".join(sorted({k.entry.extension for k in kept})),  # DALI's "one of"
        preprocessing_version=PREPROCESSING_VERSION,
        shorter_side=settings["shorter_side"],
        splits=splits,
        excluded=dict(reasons),
        settings=dict(settings),
        shards=tuple(shards),
        synthetic=source.synthetic,
        notes=_notes(kept),
    )
    write_atomic(folder / MANIFEST, manifest.to_json())
    return manifest


def _decide(
    source: Source, records: Sequence[Record], spool: Spool, seed: int
) -> tuple[list[Kept], list[Excluded]]:
    """Which records stay, in which split, and why the others go. Quarantined ones are neither."""
    excluded = [Excluded(r, r.excluded) for r in records if r.excluded]
    usable = []
    for record in (r for r in records if not r.excluded):
        entry = spool.entries.get(record.location)
        if entry is None:
            excluded.append(Excluded(record, MISSING))
        elif not entry.problem:
            usable.append(record)
    entries = {r.key: spool.entries[r.location] for r in usable}
    repeats = find_duplicates(
        Candidate(r.key, r.labels, entries[r.key].sha256, entries[r.key].pixel_sha256)
        for r in usable
    )
    single = [r for r in usable if r.key not in repeats]
    capped = _capped(single, source, seed)
    within = {r.key for r in capped}
    for record in usable:
        if record.key in repeats:
            repeat = repeats[record.key]
            excluded.append(Excluded(record, repeat.reason, repeat.duplicate_of))
        elif record.key not in within:
            excluded.append(Excluded(record, "over the cap per class"))
    splits = assign_splits(capped, source.split, seed)
    return [Kept(r, entries[r.key], splits[r.key]) for r in capped], excluded


def _notes(kept: Sequence[Kept]) -> tuple[str, ...]:
    notes = []
    unknown = sum(k.record.patient is None for k in kept)
    if unknown:
        notes.append(f"the patient is unknown for {unknown} of {len(kept)} images")
    shared = shared_patients([k.record for k in kept], {k.record.key: k.split for k in kept})
    if shared:
        notes.append(f"{len(shared)} patients have images in more than one split (given lists)")
        warn(notes[-1])
    return tuple(notes)
