"""Reading every byte of a data set: what does the manifest promise that is not so?

Run: python -m shards verify DIR
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np

from shards.console import UserError
from shards.fetched import local_shard
from shards.manifest import FILE_NAME, Manifest, ShardInfo, load_manifest, shard_path, shard_problem
from shards.verify_shard import ShardReport, report_shard

RETRIED = "a retry is at work or was cut short (the same one again goes on)"
_SPLITS = ("train", "val", "test")


def find_datasets(folder: Path) -> list[Path]:
    """The folder itself when it is a data set, else the data sets in it. UserError: none."""
    if (folder / FILE_NAME).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}"))
    if not found:
        load_manifest(folder)  # says what is missing
        raise UserError(f"no data set in {folder}")
    return found


def find_all(folder: Path) -> list[Path]:
    """find_datasets() for what would be wrong without one of them. UserError that names a data set
    in the folder whose manifest is gone."""
    found, lost = find_datasets(folder), headless(folder)
    if lost:
        raise UserError(
            f"{'; '.join(lost)}; ingest or resplit again, or name the sets that are meant"
        )
    return found


def unfinished(folder: Path) -> list[str]:
    """Data sets begun in a folder that holds several, and not finished."""
    begun = (path.parent for path in folder.glob("*/.spool"))
    return [f"{path} is not finished" for path in sorted(begun) if not (path / FILE_NAME).exists()]


def retried(folder: Path) -> bool:
    """Whether a retry is at work in a data set, or was cut short: then the same one again mends
    what it left."""
    return (folder / ".spool/settings.json").is_file()


def headless(folder: Path) -> list[str]:
    """Folders with shards and no manifest: the folder itself, or those in it, also those that a
    killed resplit left beside their place. Not what is unfinished(), whose manifest comes last."""
    cut = (path.parent for path in sorted(folder.glob(".resplit-*/old")))
    moved = {folder / path.name.removeprefix(".resplit-"): path for path in cut}
    inside = {path.parent for split in _SPLITS for path in folder.glob(f"*/{split}")}
    return [
        f"{path} lies in {work}, as its resplit was cut short"
        for path, work in moved.items()
        if not path.exists()
    ] + [
        f"{path} has shards and no {FILE_NAME}"
        for path in [folder, *sorted(inside)]
        if not any((path / name).exists() for name in (FILE_NAME, ".spool"))
        and any(next(iter(path.glob(f"{split}/*.tar")), None) for split in _SPLITS)
    ]


def count_samples(folder: Path) -> int:
    """As the manifest says; 0 where it cannot be read, which verify_dataset tells."""
    try:
        return sum(shard.samples for shard in load_manifest(folder).shards)
    except UserError:
        return 0


def verify_dataset(
    folder: Path, advance: Callable[[int], None], *, tables: bool = True
) -> list[str]:
    """Every problem of one data set, in words. advance(samples) after each shard; tables: and of
    the files beside the shards."""
    try:
        manifest = load_manifest(folder)
    except UserError as error:
        return [str(error)]
    problems = [*_manifest_problems(folder, manifest)]
    if tables:
        problems += _file_problems(folder, manifest)
    keys: Counter[str] = Counter()
    yes = {split: np.zeros(len(manifest.labels), np.int64) for split in manifest.splits}
    # Threads: SHA-256 of large buffers and reads leave the interpreter to the others.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = pool.map(lambda shard: verify_shard(folder, manifest, shard), manifest.shards)
        for shard, report in zip(manifest.shards, reports):
            problems += report.problems
            keys.update(report.keys)
            yes[shard.split] = yes.get(shard.split, 0) + report.yes
            advance(shard.samples)
    twice = sorted(key for key, count in keys.items() if count > 1)
    problems += [f"{folder}: sample {key}: the key occurs before" for key in twice]
    return problems + _count_problems(folder, manifest, yes) + _strangers(folder, manifest)


def verify_shard(folder: Path, manifest: Manifest, shard: ShardInfo) -> ShardReport:
    """What there is to say of one shard."""
    path = shard_path(folder, shard)
    problem = shard_problem(folder, shard)
    problems = [problem] if problem else []
    if not path.is_file() or not path.with_suffix(".idx").is_file():
        return ShardReport(problems, [], np.zeros(len(manifest.labels), np.int64))
    with local_shard(folder, shard) as copy:
        report = report_shard(copy, manifest, shard)
    found = [text.replace(str(copy.parent), str(path.parent)) for text in report.problems]
    return ShardReport(problems + found, report.keys, report.yes)


def _manifest_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    if (folder / FILE_NAME).read_bytes() != manifest.to_json():  # which holds its own hash
        yield f"{folder / FILE_NAME} is not as it was written: its SHA-256 differs"


def _file_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{path}: its SHA-256 is not the manifest's"


def _count_problems(folder: Path, manifest: Manifest, yes: dict[str, np.ndarray]) -> list[str]:
    problems = []
    for split, counts in manifest.splits.items():
        listed = sum(shard.samples for shard in manifest.of_split(split))
        if listed != counts.samples:
            problems.append(f"{folder}: {split} has {listed} samples, counted as {counts.samples}")
        found = dict(zip(manifest.labels, yes[split].tolist()))
        for label, count in counts.labels.items():
            if found.get(label, 0) != count:
                problems.append(
                    f"{folder}: {split} has {found.get(label, 0)} of {label!r}, counted as {count}"
                )
    return problems


def _strangers(folder: Path, manifest: Manifest) -> list[str]:
    """Shards beside the listed ones: DALI and webdataset would read them through a wildcard."""
    listed = {shard_path(folder, shard) for shard in manifest.shards}
    return [
        f"{p} is not in the manifest" for p in sorted(folder.glob("*/*.tar")) if p not in listed
    ]
