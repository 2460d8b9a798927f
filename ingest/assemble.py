"""A choice of encoded images -> a finished data set: shards, tables, lists, audit page, manifest.

What it writes is a function of its arguments: the same bytes from any place of the same images.
A run that was killed goes on behind the last shard that it finished.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ingest.audit_page import write_page
from ingest.choice import Choice, Kept, leaks, notes
from ingest.split import TEST, TRAIN, VAL, rank
from ingest.spool import Images
from ingest.tables import (
    excluded_row,
    file_hashes,
    sample_row,
    write_excluded,
    write_lists,
    write_samples,
)
from shards.console import Advance, progress, warn
from shards.labels import Vocabulary
from shards.manifest import FILE_NAME as MANIFEST
from shards.manifest import (
    SYNTHETIC_NOTE,
    SYNTHETIC_SOURCES,
    Manifest,
    ShardInfo,
    SplitCounts,
    shard_path,
    shard_problem,
)
from shards.preprocess import VERSION as PREPROCESSING_VERSION
from shards.sample import Sample, SampleMeta
from shards.writer import write_atomic, write_shard

SPLITS = (TRAIN, VAL, TEST)
JOURNAL = "assembled.jsonl"
MEMBERS_BYTES = 4096  # of the tar per sample beside the image: three headers, labels, JSON


@dataclass(frozen=True)
class Head:
    """What a manifest says of a data set beside its samples. settings: `seed` and `shard_mb`
    are among them; excluded: rows of excluded.parquet beside those of the choice; excluded_counts:
    reason -> images left out beside them; notes: in words, beside those of the choice; depth: as in
    the manifest."""

    dataset: str
    vocabulary: Vocabulary
    shorter_side: int | None
    synthetic: bool
    settings: Mapping[str, Any]
    excluded: Sequence[Mapping[str, Any]] = ()
    excluded_counts: Mapping[str, int] | None = None
    notes: Sequence[str] = ()
    depth: int | None = None


@dataclass(frozen=True)
class Plan:
    """name: of the shard; samples: in order."""

    split: str
    name: str
    samples: Sequence[Kept]


def assemble(
    folder: Path, head: Head, choice: Choice, images: Images, journal: Path, *, shown: bool = True
) -> Manifest:
    """Write everything, the manifest last. journal: a folder for what is finished so far."""
    seed, shard_bytes = head.settings["seed"], head.settings["shard_mb"] * 10**6
    plans = plan_shards(head.dataset, choice.kept, shard_bytes, seed)
    with progress("assemble", len(choice.kept), shown=shown) as advance:
        shards = write_shards(folder, head, plans, images, journal / JOURNAL, advance)
    splits = count_splits(choice.kept, head.vocabulary)
    rows = [*head.excluded, *(excluded_row(e) for e in choice.excluded)]
    names = head.vocabulary.names
    write_samples(folder, [sample_row(k, plan.name, names) for plan in plans for k in plan.samples])
    write_excluded(folder, rows)
    write_lists(folder, choice.kept, splits)
    write_page(folder, head.dataset, choice, images)
    if leaks(choice):
        warn(f"copies or patients lie in more than one split; see {folder / 'audit.html'}")
    counts = Counter(head.excluded_counts or {}) + Counter(e.reason for e in choice.excluded)
    synthetic, counted = _count_synthetic(head, choice.kept)
    manifest = Manifest(
        dataset=head.dataset,
        labels=head.vocabulary.names,
        exclusive=head.vocabulary.exclusive,
        image_extension=";".join(sorted({k.entry.extension for k in choice.kept})),  # DALI: one of
        preprocessing_version=PREPROCESSING_VERSION,
        shorter_side=head.shorter_side,
        depth=head.depth,
        splits=splits,
        excluded=dict(counts),
        settings=dict(head.settings),
        shards=tuple(shards),
        synthetic=synthetic,
        notes=(*head.notes, *counted, *notes(choice)),
        files=file_hashes(folder),
    )
    write_atomic(folder / MANIFEST, manifest.to_json())
    return manifest


def _count_synthetic(head: Head, kept: Sequence[Kept]) -> tuple[bool, tuple[str, ...]]:
    """Whether any image is synthetic, and a note where some are and others are not."""
    sources = head.settings.get(SYNTHETIC_SOURCES)
    if sources is None:
        return head.synthetic, ()
    count = sum(one.source in sources for one in kept)
    note = f"{SYNTHETIC_NOTE}{count} of {len(kept)} images"
    return count > 0, (note,) if 0 < count < len(kept) else ()


def plan_shards(
    dataset: str,
    kept: Sequence[Kept],
    shard_bytes: int,
    seed: int,
    there: Mapping[str, int] | None = None,
) -> list[Plan]:
    """Samples in hash order, so that classes are mixed, in shards of about `shard_bytes`. there:
    how many shards each split has already; numbers go on behind them."""
    by_split: dict[str, list[Kept]] = defaultdict(list)
    for one in kept:
        by_split[one.split].append(one)
    plans = []
    for split in SPLITS:
        samples = sorted(by_split[split], key=lambda k: rank(seed, "order", k.record.key))
        size = sum(k.entry.size + MEMBERS_BYTES for k in samples)
        count = min(len(samples), -(-size // shard_bytes))
        for number in range(count):
            part = samples[number * len(samples) // count : (number + 1) * len(samples) // count]
            name = f"{dataset}-{split}-{(there or {}).get(split, 0) + number:06d}.tar"
            plans.append(Plan(split, name, part))
    return plans


def write_shards(
    folder: Path,
    head: Head,
    plans: Sequence[Plan],
    images: Images,
    journal: Path,
    advance: Advance,
) -> list[ShardInfo]:
    """Write the planned shards that the journal does not know as finished; others that lie there
    are of an earlier attempt, and are removed."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    finished = _finished(folder, journal)
    prints = [_print(plan, head.vocabulary) for plan in plans]
    wanted = {shard_path(folder, finished[p]) for p in prints if p in finished}
    for split in SPLITS:
        for path in (folder / split).glob(f"{head.dataset}-{split}-*"):
            if path.with_suffix(".tar") not in wanted or path.suffix == ".tmp":
                path.unlink()
    infos = []
    for plan, fingerprint in zip(plans, prints):
        if fingerprint in finished:
            infos.append(finished[fingerprint])
            advance(len(plan.samples), plan.name)
            continue
        samples = plan_samples(plan, head.vocabulary, images, advance)
        info = write_shard(folder / plan.split / plan.name, plan.split, samples)
        infos.append(info)
        finished = {p: i for p, i in finished.items() if i.name != info.name} | {fingerprint: info}
        lines = (json.dumps({"plan": key, **asdict(i)}) + "\n" for key, i in finished.items())
        write_atomic(journal, "".join(lines).encode())
    return infos


def _finished(folder: Path, journal: Path) -> dict[str, ShardInfo]:
    """Fingerprint of the plan -> the shard, for those that lie there as they were written."""
    if not journal.is_file():
        return {}
    try:
        lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
        infos = {line.pop("plan"): ShardInfo(**line) for line in lines}
    except (ValueError, TypeError, KeyError, AttributeError):
        warn(f"{journal} is damaged or of another version; all shards are written again")
        return {}
    return {plan: info for plan, info in infos.items() if shard_problem(folder, info) is None}


def _print(plan: Plan, vocabulary: Vocabulary) -> str:
    """A hash of all that decides the shard's bytes: an image is told by its name (which tells a
    covered one too), its pixels and the size of its encoded form, as the settings of the encoding
    are fixed."""
    digest = hashlib.sha256(f"{plan.split}/{plan.name}\n".encode())
    for kept in plan.samples:
        entry = kept.entry
        parts = (kept.record.key, entry.location, str(entry.size), entry.pixel_sha256)
        digest.update(" ".join(parts).encode("utf-8", "surrogateescape"))
        digest.update(_labels(kept, vocabulary).tobytes() + _meta(kept).to_json() + b"\n")
    return digest.hexdigest()


def plan_samples(
    plan: Plan, vocabulary: Vocabulary, images: Images, advance: Advance
) -> Iterator[Sample]:
    """The samples of a planned shard."""
    for kept in plan.samples:
        image = images.read(kept.entry)
        labels, meta = _labels(kept, vocabulary), _meta(kept)
        yield Sample(kept.record.key, image, kept.entry.extension, labels, meta)
        advance(1, plan.name)


def _labels(kept: Kept, vocabulary: Vocabulary) -> Any:
    return vocabulary.encode(kept.record.labels, kept.record.unknown)


def _meta(kept: Kept) -> SampleMeta:
    record, entry = kept.record, kept.entry
    return SampleMeta(
        source=kept.source,
        file=record.file,
        sha256=entry.sha256,
        width=entry.width,
        height=entry.height,
        patient=record.patient,
        view=record.view,
        age=record.age,
        sex=record.sex,
        boxes=record.boxes,
    )


def count_splits(kept: Sequence[Kept], vocabulary: Vocabulary) -> dict[str, SplitCounts]:
    """Samples per split and label; splits without samples are left out."""
    counts = {}
    for split in SPLITS:
        labels = [k.record.labels for k in kept if k.split == split]
        found = Counter(label for several in labels for label in several)
        if labels:
            per_label = {label: found[label] for label in vocabulary.names}
            counts[split] = SplitCounts(len(labels), per_label)
    return counts
