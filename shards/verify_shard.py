"""One shard against its manifest: its bytes by hash, then what its index, labels and JSON say.

The second part costs 15 us per sample, next to nothing beside the hash of an image of 100 kB, so
that `verify` runs as fast as SHA-256 or the disk.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from shards.console import RunFailed
from shards.index import Component, index_tar
from shards.labels import NO, UNKNOWN, YES
from shards.manifest import Manifest, ShardInfo
from shards.reader import read_component, read_index
from shards.sample import KEY_PATTERN, LABELS_EXTENSION, META_EXTENSION, SampleMeta

_READ_BYTES = 1 << 20
_OTHERS = [LABELS_EXTENSION, META_EXTENSION]
_META_FIELDS = {field.name for field in fields(SampleMeta)}


@dataclass(frozen=True)
class ShardReport:
    """problems: in words; keys: of its samples; yes: (L,) how many samples have each label."""

    problems: list[str]
    keys: list[str]
    yes: np.ndarray


def file_sha256(path: Path) -> str:
    """Of a local file, in hexadecimal digits."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
    return digest.hexdigest()


def report_shard(path: Path, manifest: Manifest, shard: ShardInfo) -> ShardReport:
    """Every problem of a shard at `path` with its index beside it."""
    empty = np.zeros(len(manifest.labels), np.int64)
    problems = []
    sound = file_sha256(path) == shard.sha256
    if not sound:
        problems.append(f"{path}: its SHA-256 is not the manifest's")
    try:
        samples = read_index(path)
        index = path.with_suffix(".idx")
        if not (sound and file_sha256(index) == shard.index_sha256) and samples != index_tar(path):
            problems.append(f"{index} does not say where the members of the tar are")
        if len(samples) != shard.samples:
            problems.append(f"{path} has {len(samples)} samples, the manifest says {shard.samples}")
        with path.open("rb") as file:
            found, labels = _read_samples(file.fileno(), path, samples, manifest)
    except RunFailed as error:  # which names the file
        return ShardReport([*problems, str(error)], [], empty)
    except (tarfile.TarError, ValueError) as error:
        return ShardReport([*problems, f"{path}: {error}"], [], empty)
    keys = [components[0].key for components in samples]
    found += _label_problems(keys, labels, len(manifest.labels))
    rows = [row for row in labels if len(row) == len(manifest.labels)]
    yes = (np.frombuffer(b"".join(rows), np.int8).reshape(-1, len(empty)) == YES).sum(axis=0)
    return ShardReport([*problems, *(f"{path}: sample {text}" for text in found)], keys, yes)


def _read_samples(
    fd: int, path: Path, samples: Sequence[list[Component]], manifest: Manifest
) -> tuple[list[str], list[bytes]]:
    """Problems, and the labels of each sample (empty where it has none)."""
    problems: list[str] = []
    labels = []
    extensions = manifest.image_extension.split(";")
    for components in samples:
        image, key = components[0], components[0].key
        if not KEY_PATTERN.fullmatch(key):
            problems.append(f"{key}: not a valid key")
        if [c.extension for c in components[1:]] != _OTHERS:
            names = [c.extension for c in components]
            problems.append(f"{key}: its members are {names}, expected image, lab, json")
            labels.append(b"")
            continue
        if image.extension not in extensions:
            problems.append(
                f"{key}: an image .{image.extension}, the manifest says {manifest.image_extension}"
            )
        if image.size == 0:
            problems.append(f"{key}: its image is empty")
        _check_header(fd, image, path)
        labels.append(read_component(fd, components[1], path))
        problem = _meta_problem(read_component(fd, components[2], path))
        if problem:
            problems.append(f"{key}: {problem}")
    return problems, labels


def _check_header(fd: int, component: Component, path: Path) -> None:
    """RunFailed when no such member begins where the index says."""
    start = component.offset - tarfile.BLOCKSIZE
    if os.pread(fd, 100, start).rstrip(b"\0") != component.name.encode():
        raise RunFailed(f"{path}: no {component.name} at byte {component.offset}; ingest again")


def _meta_problem(data: bytes) -> str | None:
    try:
        meta = json.loads(data)
    except ValueError as error:
        return f"its JSON does not parse ({error})"
    if not isinstance(meta, dict) or meta.keys() != _META_FIELDS:
        return "its JSON does not parse (it does not have the fields of a sample)"
    return None


def _label_problems(keys: Sequence[str], labels: Sequence[bytes], expected: int) -> Iterator[str]:
    """Of the rows that there are; an absent one was told before."""
    allowed = bytes(np.array((YES, NO, UNKNOWN), np.int8))
    for key, row in zip(keys, labels):
        if row and len(row) != expected:
            yield f"{key}: {len(row)} label bytes, expected {expected}"
        elif row.strip(allowed):
            values = sorted(set(np.frombuffer(row, np.int8).tolist()))
            yield f"{key}: label bytes {values}, allowed: {YES}, {NO}, {UNKNOWN}"
