"""What is in a data set, in a table. Run: python -m shards stats DIR"""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shards.fetched import local_shard
from shards.manifest import Manifest
from shards.reader import read_index, read_meta
from shards.sample import SampleMeta

_ORDER = ("train", "val", "test")
stdout = Console(highlight=False, markup=False)


def split_names(manifest: Manifest) -> list[str]:
    """The splits, in the order of their use."""
    known = [split for split in _ORDER if split in manifest.splits]
    return known + sorted(set(manifest.splits) - set(known))


def count_table(manifest: Manifest) -> Table:
    """Images per label and split, and the size of each split."""
    splits = split_names(manifest)
    table = Table("images")
    for split in splits:
        table.add_column(split, justify="right")
    for label in manifest.labels:
        table.add_row(label, *(str(manifest.splits[s].labels[label]) for s in splits))
    table.add_section()
    table.add_row("all", *(str(manifest.splits[s].samples) for s in splits))
    sizes = [sum(shard.bytes for shard in manifest.of_split(s)) for s in splits]
    table.add_row("MB", *(f"{size / 1e6:.1f}" for size in sizes))
    table.add_row("shards", *(str(len(manifest.of_split(s))) for s in splits))
    return table


def print_table(table: Table, manifest: Manifest, folder: Path) -> None:
    """The table below its data set's name and place, in a line that can be copied."""
    stdout.print(f"{manifest.dataset} ({folder})", soft_wrap=True)
    stdout.print(table)


def print_left_out(manifest: Manifest) -> None:
    """Why images are not in the shards, and what else the ingest noted."""
    for reason, count in sorted(manifest.excluded.items()):
        stdout.print(f"left out: {count} {reason}")
    for note in dict.fromkeys((manifest.synthetic_note, *manifest.notes)):
        if note:
            stdout.print(f"note: {note}")


def print_stats(folder: Path, manifest: Manifest) -> None:
    """The table with patients and sources, which only the samples themselves know."""
    table = count_table(manifest)
    patients, unknown, sources = [], [], set()
    for split in split_names(manifest):
        metas = list(_metas(folder, manifest, split))
        patients.append(str(len({m.patient for m in metas if m.patient is not None})))
        unknown.append(str(sum(m.patient is None for m in metas)))
        sources |= {m.source for m in metas}
    table.add_row("patients", *patients)
    table.add_row("of unknown patients", *unknown)
    print_table(table, manifest, folder)
    stdout.print(f"sources: {', '.join(sorted(sources))}")
    side = manifest.shorter_side or "as in the source"
    depth = f", 16-bit images of {manifest.depth} bits" if manifest.depth else ""
    stdout.print(f"images: .{manifest.image_extension}, shorter side {side}{depth}")
    print_left_out(manifest)


def _metas(folder: Path, manifest: Manifest, split: str) -> Iterator[SampleMeta]:
    for shard in manifest.of_split(split):
        with local_shard(folder, shard) as path, path.open("rb") as file:
            for components in read_index(path):
                yield read_meta(file.fileno(), components, path)
