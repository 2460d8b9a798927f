"""Encoded images, records and splits -> the shards of a data set, its tables and its lists.

What it writes is a function of its arguments: the same bytes from any spool of the same images.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.record import Record
from ingest.split import TEST, TRAIN, VAL, rank
from ingest.spool import Entry, Spool
from shards.console import Advance
from shards.labels import Vocabulary
from shards.manifest import ShardInfo, SplitCounts
from shards.sample import Sample, SampleMeta
from shards.writer import write_atomic, write_shard

SPLITS = (TRAIN, VAL, TEST)
_MEMBERS_BYTES = 4096  # of the tar per sample beside the image: three headers, labels, JSON
_SAMPLES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("patient", pa.string()),
        ("view", pa.string()),
        ("age", pa.int32()),
        ("sex", pa.string()),
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("pixel_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
_EXCLUDED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "file", "reason", "duplicate_of")]
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A record that goes into a shard, its encoded image and its split."""

    record: Record
    entry: Entry
    split: str


@dataclass(frozen=True, slots=True)
class Excluded:
    """A record that does not, and why; duplicate_of: the key of the image it repeats."""

    record: Record
    reason: str
    duplicate_of: str | None = None


@dataclass(frozen=True)
class Plan:
    """name: of the shard; samples: in order."""

    split: str
    name: str
    samples: Sequence[Kept]


def plan_shards(dataset: str, kept: Sequence[Kept], shard_bytes: int, seed: int) -> list[Plan]:
    """Samples in hash order, so that classes are mixed, in shards of about `shard_bytes`."""
    by_split: dict[str, list[Kept]] = defaultdict(list)
    for one in kept:
        by_split[one.split].append(one)
    plans = []
    for split in SPLITS:
        samples = sorted(by_split[split], key=lambda k: rank(seed, "order", k.record.key))
        size = sum(k.entry.size + _MEMBERS_BYTES for k in samples)
        count = min(len(samples), -(-size // shard_bytes))
        for number in range(count):
            part = samples[number * len(samples) // count : (number + 1) * len(samples) // count]
            plans.append(Plan(split, f"{dataset}-{split}-{number:06d}.tar", part))
    return plans


def write_shards(
    folder: Path,
    dataset: str,
    plans: Sequence[Plan],
    vocabulary: Vocabulary,
    spool: Spool,
    advance: Advance,
) -> list[ShardInfo]:
    """Write every planned shard; shards of an earlier, unfinished attempt are removed first."""
    for split in SPLITS:
        for stale in (folder / split).glob(f"{dataset}-{split}-*"):
            stale.unlink()
    infos = []
    for plan in plans:
        samples = _samples(dataset, plan, vocabulary, spool, advance)
        infos.append(write_shard(folder / plan.split / plan.name, plan.split, samples))
    return infos


def _samples(
    dataset: str, plan: Plan, vocabulary: Vocabulary, spool: Spool, advance: Advance
) -> Iterator[Sample]:
    for kept in plan.samples:
        record, entry = kept.record, kept.entry
        meta = SampleMeta(
            source=dataset,
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
        labels = vocabulary.encode(record.labels)
        yield Sample(record.key, spool.read(entry), entry.extension, labels, meta)
        advance(1, plan.name)


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


def write_samples(path: Path, plans: Sequence[Plan]) -> None:
    """samples.parquet: one row per sample, in the order of the shards."""
    rows = [
        {
            "key": k.record.key,
            "split": plan.split,
            "shard": plan.name,
            "labels": list(k.record.labels),
            "patient": k.record.patient,
            "view": k.record.view,
            "age": k.record.age,
            "sex": k.record.sex,
            "file": k.record.file,
            "sha256": k.entry.sha256,
            "pixel_sha256": k.entry.pixel_sha256,
            "width": k.entry.width,
            "height": k.entry.height,
        }
        for plan in plans
        for k in plan.samples
    ]
    pq.write_table(pa.Table.from_pylist(rows, _SAMPLES_SCHEMA), path)


def write_excluded(path: Path, excluded: Sequence[Excluded]) -> None:
    """excluded.parquet: one row per image left out on purpose or missing."""
    rows = [
        {
            "key": e.record.key,
            "file": e.record.file,
            "reason": e.reason,
            "duplicate_of": e.duplicate_of,
        }
        for e in sorted(excluded, key=lambda e: e.record.key)
    ]
    pq.write_table(pa.Table.from_pylist(rows, _EXCLUDED_SCHEMA), path)


def write_lists(folder: Path, kept: Sequence[Kept], splits: Mapping[str, SplitCounts]) -> None:
    """lists/<split>.txt: the source's names, which --train-list and the like take back."""
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        (folder / f"{split}.txt").unlink(missing_ok=True)
    for split in splits:
        names = sorted(k.record.file for k in kept if k.split == split)
        write_atomic(folder / f"{split}.txt", "".join(f"{name}\n" for name in names).encode())
