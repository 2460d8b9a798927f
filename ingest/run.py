"""One data set -> shards, resumable: encode into the spool, audit, split, assemble, manifest last.

`ingest(source, config)`. The same command again goes on where it stopped.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ingest.assemble import Head, assemble
from ingest.audit import OnDuplicate, OnNear
from ingest.choice import Choice, Excluded, Found, Policy, capped, choose
from ingest.encode import EncodeConfig, Rejected, encode_image
from ingest.engines import Job, LocalEngine
from ingest.near import NAME as NEAR_HASH
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.quarantine import check_limit, write_quarantine
from ingest.record import Record, Source, inventory_hash, records_hash
from ingest.redact import RedactSplit, check_files, cover, read_rectangles
from ingest.redact import settings as redact_settings
from ingest.split import assign_splits
from ingest.spool import FOLDER_NAME as SPOOL
from ingest.spool import Entry, Spool, differences
from ingest.tables import excluded_row
from shards.codec import BadImage, Encoding
from shards.console import Advance, RunFailed, UserError, progress, stderr
from shards.manifest import FILE_NAME as MANIFEST
from shards.manifest import Manifest, load_manifest

MISSING = "image missing"
QUARANTINED = "quarantined"
_DEFAULT_SHORTER_SIDE = 512
_SETTLED_BY_SPOOL = ("format", "shorter_side", "near_hash")


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
    on_duplicate: OnDuplicate = "drop"
    """Images with the same pixels: drop leaves one of each (none where their labels differ) and
    lists the others in excluded.parquet, fail stops, keep leaves them all, in one split."""
    near_duplicate: OnNear = "report"
    """Re-encoded, resized or toned copies, told by a perceptual hash: drop treats them as
    duplicates; report leaves them, in one split, and shows them in audit.html; keep does not
    look."""
    redact: Path | None = None
    """CSV (file,x,y,w,h in pixels of the original image) of rectangles to black out, such as words
    burnt into the image."""
    redact_split: RedactSplit = "test"
    """The split whose images are blacked out."""
    allow_missing: bool = False
    """Go on without the images that the metadata list and the source lacks."""
    max_bad: float = 0.01
    """Fail when a larger share of the images cannot be decoded (3 images are always allowed)."""
    dry_run: bool = False
    """Write nothing: say from the metadata what there would be, how large and how long, measured
    on the first 32 images."""
    retry: bool = False
    """For a finished data set: try its quarantined images again, and add those that decode now as
    shards of their own. The shards there are stay as they are."""
    workers: int = os.cpu_count() or 1
    """Worker processes. They change the speed, never a byte of the result."""
    progress: bool = True
    """Show progress bars."""

    def encode_config(self) -> EncodeConfig:
        """UserError when encoding and size contradict each other."""
        side = self.shorter_side
        if self.format == "keep" and side:
            raise UserError(f"--format keep keeps the source's bytes; drop --shorter-side {side}")
        if self.format == "keep" and self.redact:
            raise UserError("--format keep keeps the source's bytes; drop --redact")
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
    rectangles = read_rectangles(config.redact) if config.redact else {}
    settings = all_settings(source, records, config, encoding)
    finished = _finished(folder, settings)
    if finished:
        return finished
    _refuse_early(source, records, config)
    if config.redact:
        check_files(rectangles, records, config.redact)
    with Spool(folder, spool_settings(settings)) as spool:
        encode_all(source, records, spool, config, encoding)
        spool.flush()
        choice, head = _decide(source, records, spool, settings, config)
        if rectangles:
            split, workers = config.redact_split, config.workers
            covered = cover(source, choice, rectangles, split, spool, encoding, workers)
            spool.flush()
            changed = sum(k.entry is not c.entry for k, c in zip(choice.kept, covered.kept))
            note = f"parts of {changed} images ({split}) are blacked out"
            choice, head = covered, replace(head, notes=(note,))
        bad = [entry for entry in spool.entries.values() if entry.problem]
        write_quarantine(folder / QUARANTINE, source.name, bad)
        manifest = assemble(folder, head, choice, spool, folder / SPOOL, shown=config.progress)
    shutil.rmtree(folder / SPOOL)
    return manifest


def spool_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of them that decide an encoded image."""
    return {name: settings[name] for name in _SETTLED_BY_SPOOL}


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
    stderr.print(f"{folder} is finished already; nothing to do")
    shutil.rmtree(folder / SPOOL, ignore_errors=True)  # a kill came between manifest and removal
    return manifest


def _refuse_early(source: Source, records: Sequence[Record], config: IngestConfig) -> None:
    """What would fail after hours of encoding fails now."""
    usable = [r for r in records if not r.excluded]
    if not usable:
        raise UserError(f"no usable image among the {len(records)} of {source.name}")
    assign_splits(capped(usable, source.split, config.seed), source.split, config.seed)
    missing = source.surely_missing(records)
    if missing and not config.allow_missing:
        raise UserError(
            f"missing: {missing}; complete the download, or add --allow-missing to go on without"
        )


def encode_all(
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
