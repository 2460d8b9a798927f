"""What an ingest would write, told from the metadata and a few images, before it is begun.

Run: python -m ingest <source> --src PATH --out DIR --dry-run
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.table import Table

from ingest.assemble import MEMBERS_BYTES, SPLITS
from ingest.choice import OVER_CAP, capped
from ingest.config import IngestConfig
from ingest.encode import EncodeConfig, Encoded, encode_image
from ingest.engines import Job, LocalEngine
from ingest.places import check_places
from ingest.record import Record, Source
from ingest.redact import by_file
from ingest.split import assign_splits
from shards.codec import BadImage
from shards.console import RunFailed, UserError
from shards.depth import UNSETTLED, depth_holding
from shards.rectangles import read_rectangles
from shards.stats import stdout

MEASURED = 32  # images
_AT_MOST_S = 10.0


@dataclass(frozen=True)
class Estimate:
    """labels: label -> split -> images; images: split -> images; excluded: reason -> images;
    missing: what is known not to be there, which bytes and seconds leave out; measured: on how
    many images bytes and seconds are based, 0 when none could be read; depth: of the 16-bit images
    among those that declare none; unlisted: what lies there and has no record."""

    dataset: str
    labels: dict[str, dict[str, int]]
    images: dict[str, int]
    excluded: dict[str, int]
    bytes: int
    seconds: float
    measured: int
    workers: int
    missing: str | None = None
    missing_allowed: bool = False
    depth: int | None = None
    unlisted: str | None = None


def estimate(source: Source, config: IngestConfig) -> Estimate:
    """Writes nothing. UserError for what the ingest would refuse before it encodes."""
    config.check()
    check_places(source, config)
    encoding = config.encode_config()
    records = source.records()
    usable = [r for r in records if not r.excluded]
    if not usable:
        raise UserError(f"no usable image among the {len(records)} of {source.name}")
    if config.redact:
        by_file(read_rectangles(config.redact), records, config.redact, source.named)
    kept = capped(usable, source.split, config.seed)
    splits = assign_splits(kept, source.split, config.seed)
    excluded = Counter(r.excluded for r in records if r.excluded)
    excluded[OVER_CAP] = len(usable) - len(kept)
    missing = source.surely_missing(records)
    there = 1 - missing.images / len(usable) if missing else 1.0
    wanted = {r.location for r in usable}
    done, sizes, bits = _measure(source, wanted, replace(encoding, depth=config.depth or UNSETTLED))
    depth = depth_holding(max(bits)) if bits and config.depth is None else None
    if depth:
        done, sizes, _ = _measure(source, wanted, replace(encoding, depth=depth))
    size, rate = sum(sizes) / max(1, len(sizes)), done / max(1, len(sizes))
    return Estimate(
        source.name,
        _count(source.vocabulary.names, kept, splits),
        {split: count for split in SPLITS if (count := sum(s == split for s in splits.values()))},
        {reason: count for reason, count in excluded.items() if reason and count},
        round(there * len(kept) * (size + MEMBERS_BYTES)),
        there * len(usable) * rate / config.workers,
        len(sizes),
        config.workers,
        missing.text if missing else None,
        config.allow_missing or not (missing and missing.images),
        depth,
        source.unlisted(records),
    )


def _count(
    names: Sequence[str], kept: Sequence[Record], splits: dict[str, str]
) -> dict[str, dict[str, int]]:
    found = Counter((label, splits[r.key]) for r in kept for label in r.labels)
    return {name: {split: found[name, split] for split in SPLITS} for name in names}


def _first(source: Source, wanted: set[str]) -> Iterator[Job]:
    """The first images that can be read."""
    given = 0
    for image in source.images():
        if image.location not in wanted:
            continue
        try:
            yield Job(image.location, image.stamp, image.read())
        except BadImage:
            continue
        given += 1
        if given == MEASURED:
            return


def _measure(
    source: Source, wanted: set[str], encoding: EncodeConfig
) -> tuple[float, list[int], list[int]]:
    """Seconds for, and encoded sizes of, the first images that decode, and the bits that those of
    them need that are beyond the depth."""
    sizes, bits = [], []
    with LocalEngine(1, partial(encode_image, config=encoding)) as engine:
        start = time.perf_counter()
        for _, outcome in engine.map(_first(source, wanted)):
            if isinstance(outcome, Encoded):
                sizes.append(len(outcome.image))
            elif outcome.bits:
                bits.append(outcome.bits)
            if time.perf_counter() - start > _AT_MOST_S:
                break
        return time.perf_counter() - start, sizes, bits


def print_estimate(found: Estimate) -> None:
    """The table on standard output. RunFailed when no image could be measured."""
    splits = list(found.images)
    table = Table("images", *splits, title=f"{found.dataset} (dry run)", title_justify="left")
    for label, counts in found.labels.items():
        table.add_row(label, *(str(counts[split]) for split in splits))
    table.add_section()
    table.add_row("all", *(str(count) for count in found.images.values()))
    stdout.print(table)
    for reason, count in sorted(found.excluded.items()):
        stdout.print(f"left out: {count} {reason}")
    if found.missing:
        way = "" if found.missing_allowed else "; the run needs --allow-missing to go on without"
        stdout.print(f"missing, though counted above: {found.missing}{way}")
    if found.unlisted:
        stdout.print(f"passed over: {found.unlisted}")
    if found.depth:
        stdout.print(
            f"16-bit images without a declared depth: {found.depth} bits hold the first ones; the "
            "run looks at all; --depth sets another"
        )
    stdout.print("note: damaged and duplicate images show up only in the run itself")
    if not found.measured:
        raise RunFailed("none of the first images decodes; look at them before you ingest")
    stdout.print(
        f"expected: {found.bytes / 1e6:.1f} MB of shards (twice that on disk while it runs), about "
        f"{_duration(found.seconds)} with {found.workers} workers; assumes images like the first "
        f"{found.measured}, and that no worker waits for the disk"
    )


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{minutes:.1f} minutes" if minutes >= 2 else f"{max(1, round(seconds))} seconds"
