"""Writing one tar shard and its index: the same samples give the same bytes, and appear at once."""

import hashlib
import os
import tarfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from shards.index import Component, format_index
from shards.manifest import ShardInfo
from shards.sample import KEY_PATTERN, LABELS_EXTENSION, META_EXTENSION, Sample

_AT_ONCE = 1 << 22
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)  # fields of a header


class _HashingFile:
    """Passes writes on and hashes them, so that a shard need not be read again; each in a thread of
    its own, a few MB at a time, while the caller gets the next samples."""

    def __init__(self, file: BinaryIO, threads: ThreadPoolExecutor) -> None:
        self.file, self.threads = file, threads
        self.sha256, self.position = hashlib.sha256(), 0
        self._held: list[bytes] = []
        self._passed_on = 0
        self._under_way: list[Future[object]] = []

    def write(self, *parts: bytes) -> None:
        """As if at once; OSError may come with a later call, and with flush() at the latest."""
        self._held += parts
        self.position += sum(map(len, parts))
        if self.position - self._passed_on >= _AT_ONCE:
            self._pass_on()

    def flush(self) -> None:
        """Wait until all is hashed and written."""
        self._pass_on()
        self._wait()

    def _pass_on(self) -> None:
        data = b"".join(self._held)
        self._wait()
        self._under_way = [
            self.threads.submit(do, data) for do in (self.sha256.update, self.file.write)
        ]
        self._held, self._passed_on = [], self.position

    def _wait(self) -> None:
        for future in self._under_way:
            future.result()


def _template() -> bytes:
    # USTAR: DALI's reader does not know the extended headers of the GNU and PAX formats.
    # A TarInfo's defaults are what determinism needs: mtime 0, owner 0, no names.
    return tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)


_TEMPLATE = _template()
_BETWEEN = _TEMPLATE[_NAME.stop : _SIZE.start], _TEMPLATE[_SIZE.stop : _SUM.start]
_REST = _TEMPLATE[_SUM.stop :]
_FIXED_SUM = sum(b"".join(_BETWEEN) + b" " * 8 + _REST)


def _header(name: str, size: int) -> bytes:
    """As tarfile writes it, at a hundredth of the time."""
    encoded, octal = name.encode(), b"%011o\0" % size
    if len(encoded) > 100 or len(octal) > 12:
        raise ValueError(f"a name or a size that USTAR does not hold: {name!r}, {size} bytes")
    check = b"%06o\0 " % (_FIXED_SUM + sum(encoded) + sum(octal))
    mode, time = _BETWEEN
    return b"".join((encoded.ljust(100, b"\0"), mode, octal, time, check, _REST))


def _add(out: _HashingFile, sample: Sample) -> list[Component]:
    if not KEY_PATTERN.fullmatch(sample.key) or "." in sample.extension:
        raise ValueError(f"not a key for a shard: {sample.key!r}.{sample.extension!r}")
    members = {
        sample.extension: sample.image,
        LABELS_EXTENSION: sample.labels.astype("int8").tobytes(),
        META_EXTENSION: sample.meta.to_json(),
    }
    components = []
    for extension, data in members.items():
        name = f"{sample.key}.{extension}"
        components.append(Component(extension, out.position + tarfile.BLOCKSIZE, len(data), name))
        out.write(_header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE))
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
    with temporary.open("wb") as file, ThreadPoolExecutor(2) as threads:
        out = _HashingFile(file, threads)
        index = [_add(out, sample) for sample in samples]
        end = out.position + 2 * tarfile.BLOCKSIZE
        out.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        out.flush()
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
