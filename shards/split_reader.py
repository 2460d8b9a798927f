"""Random access to the images of a split, with every byte checked before anyone decodes it."""

import hashlib
import os
import threading
from pathlib import Path

import numpy as np
from imagecodecs import deflate_crc32

from shards.console import RunFailed
from shards.index import Component, parse_index
from shards.manifest import Manifest, ShardInfo, shard_path
from shards.sample import LABELS_EXTENSION

_VERIFY = "find the damage with: python -m shards verify"


class SplitReader:
    """Random access to the images of a split, whose bytes were seen to match the manifest.

    keys: N; labels: (N, L) int8 and checksums: (N,) uint32, CRC-32 of each image's bytes: both are
    zero until `scan` has read the shard. starts: (shards + 1,) the first position of each shard.
    """

    _MAX_OPEN = 256  # shards; a process may have 1,024 files open

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        """Reads the indexes only. RunFailed when one is not the manifest's."""
        self.folder, self.shards = folder, manifest.of_split(split)
        self._extensions = manifest.image_extension.split(";")
        self.starts = np.cumsum([0, *(shard.samples for shard in self.shards)])
        keys: list[str] = []
        places: list[tuple[int, int]] = []
        for shard in self.shards:
            for components in self._index(shard):
                image = next(c for c in components if c.extension in self._extensions)
                keys.append(image.key)
                places.append((image.offset, image.size))
        self.keys = tuple(keys)
        self._paths = [shard_path(folder, shard) for shard in self.shards]
        # Arrays of numbers: lists of 112,120 of them would have ten times the memory.
        self._places = np.array(places, np.int64).reshape(-1, 2)
        self._shard_of = np.repeat(
            np.arange(len(self.shards), dtype=np.int32), np.diff(self.starts)
        )
        self.labels = np.zeros((len(keys), len(manifest.labels)), np.int8)
        self.checksums = np.zeros(len(keys), np.uint32)
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.keys)

    def shards_of(self, start: int, stop: int) -> list[int]:
        """The numbers of the shards that hold these positions."""
        return [
            number
            for number in range(len(self.shards))
            if self.starts[number] < stop and self.starts[number + 1] > start
        ]

    def scan(self, number: int) -> None:
        """Read a shard once, from end to end: compare its SHA-256 with the manifest's (RunFailed
        when it differs), and note labels and checksums on the way."""
        shard = self.shards[number]
        path, digest = self._paths[number], hashlib.sha256()
        position, row, unlabelled = 0, int(self.starts[number]), ""
        try:
            with path.open("rb", buffering=0) as file:
                for components in self._index(shard):
                    end = max(c.offset + c.size for c in components)
                    block = memoryview(file.read(max(0, min(end, shard.bytes) - position)))
                    digest.update(block)
                    if not self._note(row, components, block, position):
                        unlabelled = unlabelled or self.keys[row]
                    position, row = end, row + 1
                while rest := file.read(1 << 20):
                    digest.update(rest)
        except OSError as error:
            raise RunFailed(f"{path}: {error.strerror}; {_VERIFY} {self.folder}") from error
        if digest.hexdigest() != shard.sha256:
            raise RunFailed(
                f"{path} does not match the manifest (its SHA-256 differs); {_VERIFY} {self.folder}"
            )
        if unlabelled:  # zeros would say that all findings are absent
            raise RunFailed(
                f"{path}: image {unlabelled} lacks labels, or has not the manifest's "
                f"{self.labels.shape[1]}; {_VERIFY} {self.folder}"
            )

    def _note(
        self, row: int, components: list[Component], block: memoryview, position: int
    ) -> bool:
        """Whether the sample has its labels."""
        labelled = False
        for component in components:
            data = block[component.offset - position :][: component.size]
            if component.extension in self._extensions:
                self.checksums[row] = deflate_crc32(data)  # type: ignore[arg-type]  # any buffer
            elif component.extension == LABELS_EXTENSION and len(data) == self.labels.shape[1]:
                self.labels[row] = np.frombuffer(data, np.int8)
                labelled = True
        return labelled

    def read(self, position: int) -> bytes:
        """The bytes of an image that was scanned. RunFailed when they are not those any more."""
        offset, size = self._places[position].tolist()
        number = self._shard_of.item(position)
        try:
            data = self._pread(number, size, offset)
        except OSError as error:
            raise RunFailed(
                f"{self._paths[number]}: {error.strerror}; {_VERIFY} {self.folder}"
            ) from error
        if deflate_crc32(data) != self.checksums.item(position):
            raise RunFailed(
                f"{self._paths[number]} has changed under the run (image {self.keys[position]}); "
                f"{_VERIFY} {self.folder}"
            )
        return data

    def close(self) -> None:
        """Close the shards."""
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()

    def _pread(self, number: int, size: int, offset: int) -> bytes:
        with self._lock:
            file = self._files.get(number)
            if file is None and len(self._files) < self._MAX_OPEN:
                file = os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC)
                self._files[number] = file
        if file is not None:
            return os.pread(file, size, offset)
        with self._paths[number].open("rb", buffering=0) as once:
            return os.pread(once.fileno(), size, offset)

    def _index(self, shard: ShardInfo) -> list[list[Component]]:
        path = shard_path(self.folder, shard).with_suffix(".idx")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunFailed(f"{path}: {error.strerror}; {_VERIFY} {self.folder}") from error
        if hashlib.sha256(data).hexdigest() != shard.index_sha256:
            raise RunFailed(
                f"{path} is not the index of {shard.name} (its hash differs); "
                f"{_VERIFY} {self.folder}"
            )
        return parse_index(data.decode())
