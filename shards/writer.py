"""Writing one tar shard and its index: the same samples give the same bytes, and appear at once."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from shards.index import Component, format_index
from shards.manifest import ShardInfo
from shards.sample import KEY_PATTERN, LABELS_EXTENSION, META_EXTENSION, Sample


class _HashingFile(io.RawIOBase):
    """Passes writes on and hashes them, so that a shard need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.position = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        self.sha256.update(data)
        self.position += len(data)
        return self.file.write(data)


def _header(name: str, size: int) -> tarfile.TarInfo:
    # A TarInfo's defaults are what determinism needs: mtime 0, owner 0, no names.
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


def _add(tar: tarfile.TarFile, out: _HashingFile, sample: Sample) -> list[Component]:
    if not KEY_PATTERN.fullmatch(sample.key) or "." in sample.extension:
        raise ValueError(f"not a key for a shard: {sample.key!r}.{sample.extension!r}")
    parts = {
        sample.extension: sample.image,
        LABELS_EXTENSION: sample.labels.astype("int8").tobytes(),
        META_EXTENSION: sample.meta.to_json(),
    }
    components = []
    for extension, data in parts.items():
        name = f"{sample.key}.{extension}"
        offset = out.position + tarfile.BLOCKSIZE
        tar.addfile(_header(name, len(data)), io.BytesIO(data))
        components.append(Component(extension, offset, len(data), name))
    return components


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_shard(path: Path, split: str, samples: Iterable[Sample]) -> ShardInfo:
    """Write `path` (tar) and its `.idx` beside it; both appear by renaming, the index first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        out = _HashingFile(file)
        # USTAR: DALI's reader does not know the extended headers of the GNU and PAX formats.
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            index = [_add(tar, out, sample) for sample in samples]
        file.flush()
        os.fsync(file.fileno())
    index_bytes = format_index(index).encode()
    write_atomic(path.with_suffix(".idx"), index_bytes)
    temporary.replace(path)
    return ShardInfo(
        name=path.name,
        split=split,
        samples=len(index),
        bytes=out.position,
        sha256=out.sha256.hexdigest(),
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
    )
