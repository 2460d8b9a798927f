"""Reading every byte of a data set's shards: what does the manifest promise that is not so?

Run: python -m shards verify DIR
"""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from shards.console import RunFailed, UserError
from shards.index import Component, index_tar
from shards.labels import NO, UNKNOWN, YES
from shards.manifest import FILE_NAME, Manifest, ShardInfo, load_manifest, shard_path, shard_problem
from shards.reader import read_component, read_index
from shards.sample import KEY_PATTERN, LABELS_EXTENSION, META_EXTENSION, SampleMeta

_READ_BYTES = 1 << 20
Seen = Counter[str]  # keys of the data set, and `split/label` for each YES


def find_datasets(folder: Path) -> list[Path]:
    """The folder itself when it is a data set, else the data sets in it. UserError: none."""
    if (folder / FILE_NAME).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}"))
    if not found:
        load_manifest(folder)  # says what is missing
        raise UserError(f"no data set in {folder}")
    return found


def unfinished(folder: Path) -> list[str]:
    """Data sets begun in a folder that holds several, and not finished."""
    begun = (path.parent for path in folder.glob("*/.spool"))
    return [f"{path} is not finished" for path in sorted(begun) if not (path / FILE_NAME).exists()]


def verify_dataset(folder: Path, advance: Callable[[int], None]) -> list[str]:
    """Every problem of one data set, in words. advance(samples) after each shard."""
    manifest = load_manifest(folder)
    seen: Seen = Counter()
    problems: list[str] = []
    for shard in manifest.shards:
        problems += verify_shard(folder, manifest, shard, seen)
        advance(shard.samples)
    return problems + _count_problems(folder, manifest, seen) + _strangers(folder, manifest)


def verify_shard(folder: Path, manifest: Manifest, shard: ShardInfo, seen: Seen) -> list[str]:
    """Every problem of one shard; `seen` takes up its keys and labels."""
    path = shard_path(folder, shard)
    problem = shard_problem(folder, shard)
    problems = [problem] if problem else []
    if not path.is_file() or not path.with_suffix(".idx").is_file():
        return problems
    if _sha256(path) != shard.sha256:
        problems.append(f"{path}: its SHA-256 is not the manifest's")
    try:
        samples = read_index(path)
        if samples != index_tar(path):
            problems.append(
                f"{path.with_suffix('.idx')} does not say where the members of the tar are"
            )
        if len(samples) != shard.samples:
            problems.append(f"{path} has {len(samples)} samples, the manifest says {shard.samples}")
        with path.open("rb") as file:
            for components in samples:
                found = _sample_problems(
                    file.fileno(), path, components, manifest, shard.split, seen
                )
                problems += [f"{path}: sample {components[0].key}: {text}" for text in found]
    except (RunFailed, tarfile.TarError) as error:
        problems.append(f"{path}: {error}")
    return problems


def _sample_problems(
    fd: int, path: Path, components: list[Component], manifest: Manifest, split: str, seen: Seen
) -> Iterator[str]:
    key, extensions = components[0].key, [c.extension for c in components]
    seen[key] += 1
    if seen[key] == 2:
        yield "the key occurs before"
    if not KEY_PATTERN.fullmatch(key):
        yield "not a valid key"
    image, *others = extensions
    if others != [LABELS_EXTENSION, META_EXTENSION]:
        yield f"its members are {extensions}, expected image, lab, json"
        return
    if image not in manifest.image_extension.split(";"):
        yield f"an image .{image}, the manifest says {manifest.image_extension}"
    labels, meta = (read_component(fd, component, path) for component in components[1:])
    yield from _label_problems(np.frombuffer(labels, np.int8), manifest, split, seen)
    try:
        SampleMeta.from_json(meta)
    except (ValueError, TypeError) as error:
        yield f"its JSON does not parse ({error})"
    if components[0].size == 0:
        yield "its image is empty"


def _label_problems(
    labels: np.ndarray, manifest: Manifest, split: str, seen: Seen
) -> Iterator[str]:
    if len(labels) != len(manifest.labels):
        yield f"{len(labels)} label bytes, expected {len(manifest.labels)}"
    elif not np.isin(labels, (YES, NO, UNKNOWN)).all():
        yield f"label bytes {sorted(set(labels.tolist()))}, allowed: {YES}, {NO}, {UNKNOWN}"
    else:
        seen.update(f"{split}/{name}" for name in manifest.vocabulary.decode(labels))


def _count_problems(folder: Path, manifest: Manifest, seen: Seen) -> list[str]:
    problems = []
    for split, counts in manifest.splits.items():
        listed = sum(shard.samples for shard in manifest.of_split(split))
        if listed != counts.samples:
            problems.append(f"{folder}: {split} has {listed} samples, counted as {counts.samples}")
        for label, count in counts.labels.items():
            if seen[f"{split}/{label}"] != count:
                found = seen[f"{split}/{label}"]
                problems.append(f"{folder}: {split} has {found} of {label!r}, counted as {count}")
    return problems


def _strangers(folder: Path, manifest: Manifest) -> list[str]:
    """Shards beside the listed ones: DALI and webdataset would read them through a wildcard."""
    listed = {shard_path(folder, shard) for shard in manifest.shards}
    return [
        f"{p} is not in the manifest" for p in sorted(folder.glob("*/*.tar")) if p not in listed
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
