"""The quarantined images of a finished data set, tried again: what decodes now becomes new shards.

Run: python -m ingest <source> --src PATH --out DIR --retry, with the options of the first run.
After a resplit its seed, shares and size of shards hold.
The shards there are stay as they are; tables are renewed, then the manifest. audit.html stays, as
it shows images that are in no shard; the manifest's notes count new pairs too.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ingest.assemble import SPLITS, count_splits, plan_samples, plan_shards
from ingest.audit import OnDuplicate, OnNear, audit, connected
from ingest.choice import (
    MISSING_NOTE,
    OVER_CAP,
    Choice,
    Excluded,
    Found,
    Kept,
    Policy,
    candidate,
    lasting,
    notes,
)
from ingest.config import IngestConfig
from ingest.finished import Finished
from ingest.passes import encode_all
from ingest.places import check_places
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.quarantine import quarantine_bytes, quarantine_row, write_quarantine_rows
from ingest.record import Record, Source, records_hash
from ingest.resplit import CHANGED, HISTORY
from ingest.run import MISSING, QUARANTINED, all_settings, spool_settings
from ingest.split import TEST, SplitConfig, assign_splits, join_patients, patient_of
from ingest.spool import Spool, differences, remove_spool
from ingest.tables import (
    EXCLUDED,
    SAMPLES,
    excluded_row,
    file_hashes,
    read_rows,
    sample_row,
    write_excluded,
    write_lists,
    write_samples,
)
from shards.console import UserError, progress, stderr
from shards.manifest import FILE_NAME as MANIFEST
from shards.manifest import Manifest, ShardInfo, load_manifest, shard_path
from shards.writer import write_atomic, write_shard

_METADATA = "metadata_sha256"
_MAY_CHANGE = "files_sha256"  # a file that was downloaded again has another size


def retry(source: Source, config: IngestConfig) -> Manifest:
    """Add what decodes now; returns the data set's manifest. UserError for other settings."""
    config.check()
    check_places(source, config)
    if config.redact:
        raise UserError("--retry covers no words; ingest again into another --out")
    folder = config.out / source.name
    old = load_manifest(folder)
    records = source.records()
    encoding = replace(config.encode_config(), depth=_depth(old, config, folder))
    config = replace(config, depth=old.settings.get("depth"))
    settings = all_settings(source, records, config, encoding) | _of_resplit(old, folder)
    bad = {row["member"]: row["reason"] for row in read_rows(folder / QUARANTINE)}
    known = {**old.settings, _MAY_CHANGE: settings[_MAY_CHANGE]}
    said = old.notes
    if known != settings and _read_first(source, bad, known, settings):
        known, said = settings, _missing_now(source, records, said)
    if known != settings:
        raise UserError(
            f"{folder} was made with other settings: {differences(known, settings)}; --retry needs "
            "the options of the first run"
        )
    again = [_undivided(r, old.settings) for r in records if r.file in bad and not r.excluded]
    if not again:
        what = (
            f"none of its {len(bad)} quarantined images is in use" if bad else "none in quarantine"
        )
        stderr.print(f"{folder}: {what}; nothing to do", soft_wrap=True)
        remove_spool(folder)  # of a retry that was cut short behind its last table
        return old
    with Spool(folder, spool_settings(settings)) as spool:
        if load_manifest(folder) != old:  # which would be taken back, and its shards removed
            raise UserError(f"{folder} was changed by another run meanwhile; start this one again")
        _remove_strangers(folder, old)
        # What still does not decode stays in quarantine, and what is gone too: no reason to fail.
        patient = replace(config, max_bad=1.0, allow_missing=True)
        encode_all(source, again, spool, patient, encoding)
        spool.flush()
        old = replace(
            old, settings=settings, notes=said, depth=encoding.depth or spool.depth or None
        )
        keys = {r.key for r in records}
        manifest = _add(source, again, spool, folder, old, config, keys)
    remove_spool(folder)
    return manifest


def _depth(old: Manifest, config: IngestConfig, folder: Path) -> int | None:
    """Of 16-bit images: the data set's; where it has none, --depth. UserError when they differ."""
    if old.depth is not None and config.depth not in (None, old.depth):
        raise UserError(
            f"{folder} has 16-bit images of {old.depth} bits, and --depth {config.depth} would "
            "change none of them; drop it, or ingest into another --out"
        )
    return old.depth or config.depth


def _read_first(
    source: Source, bad: Mapping[str, str], known: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """Whether the settings differ by what mended files say of themselves, and by nothing else."""
    if {**known, _METADATA: settings[_METADATA]} != settings:
        return False
    return records_hash(source.records_before(bad)) == known[_METADATA]


def _missing_now(source: Source, records: Sequence[Record], said: Sequence[str]) -> tuple[str, ...]:
    """The notes with what is missing now: a row of a table may have found its file."""
    missing = source.surely_missing(records)
    note = [f"{MISSING_NOTE}{missing.text}"] if missing else []
    return (*note, *(text for text in said if not text.startswith(MISSING_NOTE)))


def _of_resplit(old: Manifest, folder: Path) -> dict[str, Any]:
    """The settings that a resplit changed, to go on with. UserError when it was by lists."""
    if HISTORY not in old.settings:
        return {}
    if old.settings["lists"]:
        raise UserError(
            f"{folder} was split anew by lists, which do not say where its quarantined images "
            "belong; ingest it into another --out, retry there, and resplit that by the lists"
        )
    said = f"{folder} was split anew; the seed, shares and shard size of that hold"
    stderr.print(said, soft_wrap=True)
    return {name: old.settings[name] for name in CHANGED}


def _undivided(record: Record, settings: Mapping[str, Any]) -> Record:
    """The record with the split that it has to keep: a resplit puts a source's own aside, and
    with --keep-test all of it but the test set."""
    if HISTORY not in settings or (settings["keep_test"] and record.split == TEST):
        return record
    return replace(record, split=None)


def _split_of(settings: Mapping[str, Any]) -> SplitConfig:
    """As the data set was divided last; a test set that was kept stays closed."""
    known = settings["split"]
    train, val, test = known["fractions"]
    shares = (train, val, 0.0 if settings.get("keep_test") else test)
    return SplitConfig(shares, known["test_per_class"], known["cap_per_class"])


def _remove_strangers(folder: Path, manifest: Manifest) -> None:
    """Shards of a retry that was cut short."""
    listed = {shard_path(folder, shard) for shard in manifest.shards}
    for split in SPLITS:
        for path in (folder / split).glob(f"{manifest.dataset}-{split}-*"):
            if path.with_suffix(".tar") not in listed or path.suffix == ".tmp":
                path.unlink()


def _add(
    source: Source,
    records: Sequence[Record],
    spool: Spool,
    folder: Path,
    old: Manifest,
    config: IngestConfig,
    names: Collection[str],
) -> Manifest:
    """names: the keys of all records of the source."""
    finished = Finished([folder])
    with progress("verify", finished.samples, shown=config.progress) as advance:
        # The tables are written before the manifest: those of a retry that was cut short differ.
        (there,) = finished.load(advance, tables=False)
    keys = {k.record.key for k in there}
    tried = {r.key for r in records}
    records = [r for r in records if r.key not in keys]  # added before, then cut short
    entries = {r.key: spool.entries[r.location] for r in records if r.location in spool.entries}
    fresh = [
        Found(r, entries[r.key], source.name)
        for r in records
        if r.key in entries and not entries[r.key].problem
    ]
    policy = Policy(config.on_duplicate, config.near_duplicate)
    seed, keep_test = old.settings["seed"], old.settings.get("keep_test", False)
    choice = place(there, fresh, _split_of(old.settings), seed, policy, keep_test=keep_test)
    added = choice.kept[len(there) :]
    shards, rows = _write_shards(folder, old, added, spool, config)
    by_split = {split: number for number, split in enumerate(SPLITS)}
    rows = [row for row in read_rows(folder / SAMPLES) if row["key"] in keys] + rows
    write_samples(folder, sorted(rows, key=lambda row: by_split[row["split"]]))
    done = {k.record.file for k in there} | {f.record.file for f in fresh}
    problems = {
        r.file: quarantine_row(e, source.name) for r in records if (e := entries.get(r.key))
    }
    bad = [row for row in read_rows(folder / QUARANTINE) if row["member"] not in done]
    still = [problems.get(row["member"], row) for row in bad]
    # Counted, not added up: a retry that was cut short may have written some of them.
    excluded = [
        row
        for row in read_rows(folder / EXCLUDED)
        if row["key"] not in tried and (row["key"] in names or row["reason"] != MISSING)
    ]
    excluded += [excluded_row(e) for e in choice.excluded]
    write_excluded(folder, excluded)
    splits = count_splits(choice.kept, old.vocabulary)
    write_lists(folder, choice.kept, splits)
    counts = Counter(row["reason"] for row in excluded) + Counter({QUARANTINED: len(still)})
    extensions = {k.entry.extension for k in choice.kept}
    manifest = replace(
        old,
        image_extension=";".join(sorted(extensions)),
        splits=splits,
        excluded=dict(counts),
        shards=tuple(sorted([*old.shards, *shards], key=lambda s: (by_split[s.split], s.name))),
        notes=(*lasting(old.notes), *notes(choice)),
        files=file_hashes(folder) | {QUARANTINE: sha256(quarantine_bytes(still)).hexdigest()},
    )
    write_atomic(folder / MANIFEST, manifest.to_json())
    # Last: a run that is cut short before tries the same images again.
    write_quarantine_rows(folder / QUARANTINE, still)
    return manifest


def place(
    there: Sequence[Kept],
    fresh: Sequence[Found],
    split: SplitConfig,
    seed: int,
    policy: Policy,
    *,
    keep_test: bool = False,
) -> Choice:
    """Which of the fresh images are added, and to which split: that of their patient or of their
    copy where one is there. `there` stays as it is, and comes first in what is kept. keep_test:
    the cap is for the images beside the test set."""
    on_duplicate: OnDuplicate = "fail" if policy.on_duplicate == "fail" else "keep"
    on_near: OnNear = "keep" if policy.near_duplicate == "keep" else "report"
    found = [*_found(there), *fresh]
    pairs = audit([candidate(f) for f in found], on_duplicate, on_near).pairs
    new = {f.record.key for f in fresh}
    excluded: dict[str, tuple[str, str]] = {}
    for pair in pairs:
        kind = policy.near_duplicate if pair.reason.startswith("near") else policy.on_duplicate
        one, other = sorted((pair.first, pair.second), key=lambda key: (key in new, key))
        if kind == "drop" and other in new:
            excluded.setdefault(other, (pair.reason, one))
    records = [f.record for f in found]
    names = {r.key: patient_of(r) for r in records}
    groups = connected((names[p.first], names[p.second]) for p in pairs)
    joined = join_patients(records, groups)
    home = {patient_of(r): k.split for r, k in zip(joined, there)}
    placed = [
        replace(r, split=home.get(patient_of(r), r.split))
        for r in joined[len(there) :]
        if r.key not in excluded
    ]
    over = _over_cap(
        [k for k in there if not (keep_test and k.split == TEST)],
        [r for r in placed if not (keep_test and r.split == TEST)],
        split.cap_per_class,
    )
    splits = assign_splits([r for r in placed if r.key not in over], _free_split(split), seed)
    left_out = [
        Excluded(f.record, *excluded.get(f.record.key, (OVER_CAP, None)))
        for f in fresh
        if f.record.key not in splits
    ]
    added = [
        Kept(f.record, f.entry, f.source, splits[f.record.key])
        for f in fresh
        if f.record.key in splits
    ]
    return Choice(found, [*there, *added], left_out, pairs, on_near != "keep")


def _found(kept: Sequence[Kept]) -> list[Found]:
    return [Found(k.record, k.entry, k.source) for k in kept]


def _free_split(split: SplitConfig) -> SplitConfig:
    """How images of new patients are shared out: a test set of so many per class stays closed."""
    if split.test_per_class is None:
        return SplitConfig(split.fractions)
    train, val, _ = split.fractions
    return SplitConfig((train, val, 0.0))


def _over_cap(there: Sequence[Kept], placed: Sequence[Record], cap: int | None) -> set[str]:
    """Keys of the fresh images of a class that is full."""
    counts = Counter(label for k in there for label in k.record.labels)
    over = set()
    for record in sorted(placed, key=lambda r: r.key):
        if cap is not None and any(counts[label] >= cap for label in record.labels):
            over.add(record.key)
        else:
            counts.update(record.labels)
    return over


def _write_shards(
    folder: Path, old: Manifest, added: Sequence[Kept], spool: Spool, config: IngestConfig
) -> tuple[list[ShardInfo], list[Mapping[str, Any]]]:
    """The new shards, and the rows of their samples."""
    there = Counter(shard.split for shard in old.shards)
    seed, shard_bytes = old.settings["seed"], old.settings["shard_mb"] * 10**6
    plans = plan_shards(old.dataset, added, shard_bytes, seed, there)
    shards: list[ShardInfo] = []
    rows: list[Mapping[str, Any]] = []
    with progress("add", len(added), shown=config.progress) as advance:
        for plan in plans:
            samples = plan_samples(plan, old.vocabulary, spool, advance)
            shards.append(write_shard(folder / plan.split / plan.name, plan.split, samples))
            rows += [sample_row(kept, plan.name, old.labels) for kept in plan.samples]
    return shards, rows
