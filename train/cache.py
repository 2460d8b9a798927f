"""The on-disk store: a split's resized images in one file, so that the next run starts in seconds.

CACHE/<dataset>-<split>-<size>-<hash>.store; the hash is over all that decides a pixel: manifest,
split, size, preprocessing version, backend. In it: a header of 4,096 bytes (JSON), the images
(N, S, S) uint8, then SHA-256 of each image (N, 32), labels (N, L) int8, and the keys, one a line.

A file cut short or changed is noticed: its length, the hash of what follows the images and its own
hash stand in the header, and an image is hashed whenever it is read. It is read by pread, not
mapped: a mapped file that is cut short under the run ends the process (SIGBUS) without a word.
"""

import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.console import RunFailed
from shards.preprocess import VERSION
from train.ahead import Ahead, Threads
from train.decoding import CHUNK
from train.sources import upload

_FORMAT = 1
_HEADER = 4096
_DIGEST = 32


class StaleStore(Exception):
    """The file does not hold what it should; the message is the reason."""


@dataclass(frozen=True)
class StoreKey:
    """What decides the pixels. manifest: the SHA-256 of manifest.json; backend: DALI's with its
    device, on which up to 2 grey levels of a pixel depend; count: images."""

    dataset: str
    manifest: str
    split: str
    size: int
    backend: str
    count: int
    preprocessing_version: int = VERSION
    format: int = _FORMAT

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.dataset}-{self.split}-{self.size}-{digest[:16]}.store"

    @property
    def image_bytes(self) -> int:
        return self.size * self.size


class StoreFile:
    """An open store. keys: N; labels: (N, L) int8. StaleStore when it is not whole."""

    def __init__(self, path: Path, key: StoreKey) -> None:
        self.path, self.key = path, key
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.keys, self.labels, self._digests = self._read_tail(self._read_header())
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> dict[str, Any]:
        try:
            header = json.loads(os.pread(self._file, _HEADER, 0))
        except ValueError:
            raise StaleStore("its header is damaged") from None
        if not isinstance(header, dict) or header.pop("sha256", None) != _hash_of(header):
            raise StaleStore("its header is damaged")
        if header["key"] != asdict(self.key):
            raise StaleStore("it was made from something else")
        length = os.fstat(self._file).st_size
        if length != header["bytes"]:
            raise StaleStore(f"it has {length} bytes, expected {header['bytes']}")
        return header

    def _read_tail(self, header: dict[str, Any]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        count, begin = self.key.count, _HEADER + self.key.count * self.key.image_bytes
        tail = os.pread(self._file, header["bytes"] - begin, begin)
        if hashlib.sha256(tail).hexdigest() != header["tail_sha256"]:
            raise StaleStore("its labels or keys have changed")
        labels_at, keys_at = count * _DIGEST, count * (_DIGEST + header["labels"])
        digests = np.frombuffer(tail[:labels_at], np.uint8).reshape(count, _DIGEST)
        labels = np.frombuffer(tail[labels_at:keys_at], np.int8).reshape(count, header["labels"])
        return tuple(tail[keys_at:].decode().splitlines()), labels, digests

    def read(self, positions: np.ndarray) -> Tensor:
        """(n, S, S) uint8. StaleStore when an image is not the one that was written."""
        out = np.empty((len(positions), self.key.size, self.key.size), np.uint8)
        for row, position in zip(out, positions.tolist()):
            at = _HEADER + position * self.key.image_bytes
            os.preadv(self._file, [row.data], at)
            if hashlib.sha256(row.data).digest() != self._digests[position].tobytes():
                raise StaleStore(f"image {self.keys[position]} has changed")
        return torch.from_numpy(out)

    def read_all(self, start: int, stop: int, threads: int) -> Iterator[Tensor]:
        """The images from start to stop in chunks, read and hashed by threads."""
        pool = Threads(threads, "read")
        pending: deque[Future[Tensor]] = deque()
        try:
            for at in range(start, stop, CHUNK):
                positions = np.arange(at, min(at + CHUNK, stop))
                pending.append(pool.submit(partial(self.read, positions)))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class StoreWriter:
    """A store being written, by all processes of a machine; there whole or not at all.

    The draft has one fixed name and a lock: what a killed run left is written over, not piled up.
    """

    def __init__(self, path: Path, key: StoreKey, *, leader: bool) -> None:
        """OSError: the disk is full, the folder cannot be written, another run writes the file."""
        self.path, self.key = path, key
        self.draft = path.with_name(path.name + ".tmp")
        if leader:
            path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if leader else 0)
        self._file = os.open(self.draft, flags, 0o644)
        if leader:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._check_draft()
            except OSError:
                self.close()
                raise
            try:
                os.ftruncate(self._file, 0)
                # Takes the room now: a full disk shows before anything is decoded.
                os.posix_fallocate(self._file, 0, self._end + key.count * _DIGEST)
            except OSError:
                self.discard()
                raise

    @property
    def _end(self) -> int:
        return _HEADER + self.key.count * self.key.image_bytes

    def _check_draft(self) -> None:
        """BlockingIOError when another run has finished the draft between our open and our lock: it
        is that run's store by now."""
        if not self.draft.exists() or not os.path.samestat(self.draft.stat(), os.fstat(self._file)):
            raise BlockingIOError

    def put(self, start: int, images: Tensor) -> None:
        """Write images (n, S, S) uint8 at their place. OSError."""
        data = images.cpu().contiguous().numpy()
        self._write(data.data.cast("B"), _HEADER + start * self.key.image_bytes)

    def seal(self, keys: tuple[str, ...], labels: np.ndarray) -> None:
        """Hash what was written, and give the file its name. By one process. OSError."""
        digests = b"".join(self._digest(position) for position in range(self.key.count))
        tail = digests + labels.tobytes() + "\n".join(keys).encode()
        header = {
            "key": asdict(self.key),
            "bytes": self._end + len(tail),
            "labels": labels.shape[1],
            "tail_sha256": hashlib.sha256(tail).hexdigest(),
        }
        self._write(memoryview(tail), self._end)
        os.ftruncate(self._file, self._end + len(tail))
        header["sha256"] = _hash_of(header)
        self._write(memoryview(json.dumps(header).encode().ljust(_HEADER)), 0)
        os.fsync(self._file)
        self.draft.replace(self.path)
        self.close()

    def discard(self) -> None:
        """Give it up; the draft is removed."""
        self.draft.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _digest(self, position: int) -> bytes:
        size = self.key.image_bytes
        return hashlib.sha256(os.pread(self._file, size, _HEADER + position * size)).digest()

    def _write(self, data: memoryview, at: int) -> None:
        while data:
            written = os.pwrite(self._file, data, at)
            data, at = data[written:], at + written


def _hash_of(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


class DiskSource:
    """Images read from the on-disk store at every use."""

    def __init__(self, file: StoreFile, device: torch.device) -> None:
        self.device, self._file = device, file

    def take(self, positions: np.ndarray) -> Tensor:
        """RunFailed when the file has changed, cannot be read, or the disk hangs."""
        parts = (self._file.read(part) for part in (positions,))
        try:
            images = next(Ahead(parts, f"reading {self._file.path}"))
            return upload(images.numpy(), self.device)
        except (StaleStore, OSError) as error:
            raise RunFailed(
                f"{self._file.path}: {error}; the same command writes it again and goes on"
            ) from error

    def expect(self, positions: np.ndarray) -> None:
        """Linux reads ahead by itself."""

    def close(self) -> None:
        self._file.close()
