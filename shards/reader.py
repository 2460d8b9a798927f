"""Reading samples from tar shards: in a stream, or one component at a time through the index."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shards.console import RunFailed
from shards.index import Component, parse_index
from shards.manifest import Manifest, shard_path
from shards.sample import LABELS_EXTENSION, META_EXTENSION, Sample, SampleMeta


def read_shard(path: Path) -> Iterator[Sample]:
    """The samples of one shard, in order. RunFailed when the tar is damaged."""
    with path.open("rb") as file:
        for components in read_index(path):
            yield _read_sample(file.fileno(), path, components)


def read_index(path: Path) -> list[list[Component]]:
    """The index beside a tar shard. RunFailed when it cannot be read."""
    try:
        return parse_index(path.with_suffix(".idx").read_text())
    except (OSError, ValueError) as error:
        raise RunFailed(f"{path.with_suffix('.idx')}: {error}; ingest again") from error


def read_component(fd: int, component: Component, path: Path) -> bytes:
    """One member's bytes; its tar header must name it, or the index is stale (RunFailed)."""
    start, length = component.offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE + component.size
    inside = component.size >= 0 and 0 <= start <= os.fstat(fd).st_size - length
    block = os.pread(fd, length, start) if inside else b""
    name = block[:100].rstrip(b"\0").decode("ascii", "replace")
    if name != component.name or len(block) != length:
        raise RunFailed(f"{path}: no {component.name} at byte {component.offset}; ingest again")
    return block[tarfile.BLOCKSIZE :]


def read_meta(fd: int, components: Sequence[Component], path: Path) -> SampleMeta:
    """A sample's metadata. RunFailed when its bytes are none."""
    found = member(components, META_EXTENSION, path)
    data = read_component(fd, found, path)
    try:
        return SampleMeta.from_json(data)
    except (ValueError, TypeError) as error:
        raise damaged(path, found.name, error) from error


def member(components: Sequence[Component], extension: str, path: Path) -> Component:
    """The sample's member with this extension. RunFailed when its index has none."""
    found = next((c for c in components if c.extension == extension), None)
    if found is None:
        name = f"{components[0].key}.{extension}"
        raise damaged(path.with_suffix(".idx"), name, "it is not in the index")
    return found


def damaged(path: Path, name: str, why: object) -> RunFailed:
    """The error for a member that is not what was written."""
    return RunFailed(
        f"{path}: {name} is damaged ({why}); python -m shards verify names all that is, then "
        "ingest again"
    )


def _read_sample(fd: int, path: Path, components: list[Component]) -> Sample:
    parts = {c.extension: read_component(fd, c, path) for c in components}
    image_extension = next(iter(parts))
    try:
        return Sample(
            key=components[0].key,
            image=parts[image_extension],
            extension=image_extension,
            labels=np.frombuffer(parts[LABELS_EXTENSION], np.int8),
            meta=SampleMeta.from_json(parts[META_EXTENSION]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise RunFailed(f"{path}: sample {components[0].key} is damaged ({error})") from error


def read_split(folder: Path, manifest: Manifest, split: str) -> Iterator[Sample]:
    """Every sample of a split, shard after shard: the order that positions in a split refer to."""
    for shard in manifest.of_split(split):
        yield from read_shard(shard_path(folder, shard))


def read_labels(folder: Path, manifest: Manifest, split: str) -> tuple[list[str], np.ndarray]:
    """Keys, and labels (N, L) int8, of a split in its order, without reading any image."""
    keys: list[str] = []
    rows: list[np.ndarray] = []
    for shard in manifest.of_split(split):
        path = shard_path(folder, shard)
        with path.open("rb") as file:
            for components in read_index(path):
                found = member(components, LABELS_EXTENSION, path)
                data = read_component(file.fileno(), found, path)
                keys.append(components[0].key)
                rows.append(np.frombuffer(data, np.int8))
    labels = np.stack(rows) if rows else np.empty((0, len(manifest.labels)), np.int8)
    return keys, labels
