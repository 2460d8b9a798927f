"""Shards -> stores: the processes of one machine share the decoding and, in memory, the images."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.console import RunFailed, progress, warn
from shards.manifest import Manifest, manifest_hash
from shards.split_reader import SplitReader
from train.ahead import Ahead
from train.cache import DiskSource, StaleStore, StoreFile, StoreKey, StoreWriter
from train.decoding import checked_chunks, choose_backend, scan_part
from train.dist import World
from train.memory import Memory, choose_place, describe_place, fits_host, free_memory
from train.shared import (
    agree,
    is_leader,
    largest,
    leaders_value,
    local_part,
    shared_array,
    smallest,
)
from train.sources import PinnedSource, copy_into
from train.stop import Stop
from train.store import InputConfig, Store
from train.stream import StreamSource


def load_stores(
    folder: Path,
    manifest: Manifest,
    splits: tuple[str, ...],
    *,
    size: int,
    config: InputConfig,
    world: World,
    note: Callable[[dict[str, Any]], None] | None = None,
    stop: Stop | None = None,
) -> dict[str, Store]:
    """Splits of the data set in `folder`; all processes of the world call it together. note: is
    given what was taken (see Loader.taken). stop: a signal to any process ends it on all.
    Every shard's SHA-256 is compared with the manifest's first; RunFailed when one differs.
    """
    loader = Loader(folder, manifest, splits, size, config, world.device, world, stop=stop)
    if world.is_first:
        print(loader.describe(), file=sys.stderr)
    if note:
        note(loader.taken())
    return {split: loader.load(split) for split in splits}


def load_store(
    folder: Path,
    manifest: Manifest,
    split: str,
    *,
    size: int,
    config: InputConfig,
    device: torch.device,
    shown: bool = True,
) -> Store:
    """One split, for this process alone."""
    return Loader(folder, manifest, (split,), size, config, device, None, shown).load(split)


class Loader:
    """Loads splits, all into the same kind of place."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        splits: tuple[str, ...],
        size: int,
        config: InputConfig,
        device: torch.device,
        world: World | None,
        shown: bool = True,
        stop: Stop | None = None,
    ) -> None:
        """world: None for one process that needs no other. UserError when the memory that was
        asked for is not there."""
        self.folder, self.manifest, self.size, self.config = folder, manifest, size, config
        self.device, self.world, self.stop = device, world, stop
        self.shown = shown and (world is None or world.is_first)
        self.backend, self.decode = choose_backend(config.backend, device)
        self.threads = config.num_threads(world.local_size if world else 1)
        self.needed = sum(manifest.splits[split].samples for split in splits) * size * size
        free = free_memory(device)
        host, gpu = smallest([free.host, -1 if free.device is None else free.device], world)
        self.free = Memory(host, None if gpu < 0 else gpu)
        self.place = choose_place(
            config.store, self.needed, self.free, cache=config.cache is not None
        )

    def describe(self) -> str:
        """Where the images go and why, for people."""
        return describe_place(self.config.store, self.place, self.needed, self.free)

    def taken(self) -> dict[str, Any]:
        """What was taken where settings say auto, or 0: by their names."""
        return {"store": self.place, "backend": self.backend, "threads": self.threads}

    def load(self, split: str) -> Store:
        """RunFailed when shards are damaged."""
        if self.config.cache is not None:
            store = self._cached(self.config.cache, split)
            if store:
                return store
            if self.place == "disk":
                self._warn(f"without the on-disk store, {split} is streamed from the shards")
        reader, sharing = self._reader(split)
        if self.place in ("disk", "stream"):
            return self._streamed(reader, split, sharing)
        images, (start, stop) = self._target(len(reader), sharing)
        self._finish(lambda: self._decode(reader, split, start, stop, partial(copy_into, images)))
        reader.close()
        return self._resident(reader.keys, images, reader.labels)

    def _reader(self, split: str) -> tuple[SplitReader, bool]:
        """A reader whose labels and checksums lie in memory that the machine's processes share;
        False: they cannot, so that each process has to read and decode all by itself."""
        reader = SplitReader(self.folder, self.manifest, split)
        labels = shared_array(reader.labels.shape, np.int8, self.world)
        checksums = shared_array(reader.checksums.shape, np.uint32, self.world)
        if labels is None or checksums is None:
            self._warn("the processes cannot share memory (/proc/PID/fd): each decodes all images")
            return reader, False
        reader.labels, reader.checksums = labels, checksums
        return reader, True

    def _target(self, count: int, sharing: bool) -> tuple[Tensor, tuple[int, int]]:
        """Memory for `count` images, and which of them this process puts there."""
        shape, alone = (count, self.size, self.size), self.world is None or self.world.size == 1
        direct = self.place == "device" and (alone or not fits_host(self.needed, self.free))
        if sharing and not direct:
            shared = shared_array(shape, np.uint8, self.world)
            if shared is not None:
                return torch.from_numpy(shared), local_part(count, self.world)
        where = self.device if self.place == "device" else torch.device("cpu")
        return torch.empty(shape, dtype=torch.uint8, device=where), (0, count)

    def _resident(self, keys: tuple[str, ...], images: Tensor, labels: np.ndarray) -> Store:
        if self.place == "host" and self.device.type == "cuda":
            return Store(keys, images[:0], labels, PinnedSource(images, self.device))
        return Store(keys, images.to(self.device), labels)

    def _streamed(self, reader: SplitReader, split: str, sharing: bool) -> Store:
        start, stop = local_part(len(reader), self.world) if sharing else (0, len(reader))

        def scan() -> None:
            counts = Ahead(scan_part(reader, start, stop, self.threads), f"reading {self.folder}")
            with progress(f"check {split}", stop - start, shown=self.shown) as advance:
                for count in counts:
                    advance(count)
                    self._heed()

        self._finish(scan)
        source = StreamSource(reader, self.decode, self.size, self.threads, self.device)
        return Store(reader.keys, _no_images(self.size), reader.labels, source)

    def _decode(
        self,
        reader: SplitReader,
        split: str,
        start: int,
        stop: int,
        put: Callable[[int, Tensor], None],
    ) -> None:
        """put(position of the first, images) for all images from start to stop."""
        chunks = checked_chunks(reader, start, stop, self.threads)
        parts = Ahead(
            self.decode(reader, chunks, self.size, self.threads),
            f"decoding images of {self.folder}",
        )
        done = self._put_all(f"decode {split}", parts, start, stop, put)
        if done != stop:
            raise RunFailed(
                f"{self.folder.name}/{split}: decoded {done - start} images, expected "
                f"{stop - start}"
            )

    def _put_all(
        self,
        label: str,
        parts: Ahead[Tensor],
        start: int,
        stop: int,
        put: Callable[[int, Tensor], None],
    ) -> int:
        """The position behind the last; whatever happens, nothing is made ahead any more."""
        with closing(parts), progress(label, stop - start, shown=self.shown) as advance:
            for part in parts:
                put(start, part)
                start += len(part)
                advance(len(part))
                self._heed()
        return start

    def _leave(self) -> AbstractContextManager[None]:  # around long work that holds no exchange
        return self.stop.together(self.world) if self.stop and self.world else nullcontext()

    def _heed(self) -> None:
        if self.stop and self.world:
            self.stop.heed(self.world)

    def _finish(self, work: Callable[[], None]) -> None:
        """Do this process's part, wait for the others', and fail when any has failed."""
        error: Exception | None = None
        with self._leave():
            try:
                work()
            except Exception as caught:
                error = caught
        agree(error, self.world)

    def _cached(self, cache: Path, split: str) -> Store | None:
        """From the on-disk store, which is written first where it is missing or damaged. None,
        with a warning, when it cannot be written."""
        key = self._key(split)
        path = cache / key.file_name
        for _ in range(2):
            missing = bool(leaders_value(int(self._is_unusable(path, key)), self.world))
            if largest(int(missing), self.world) and not self._write(path, key, missing):
                return None
            store = self._read(path, key)
            if store:
                return store
        self._warn(f"{path} does not hold what was written to it; going on without it")
        return None

    def _key(self, split: str) -> StoreKey:
        return StoreKey(
            dataset=self.manifest.dataset,
            manifest=manifest_hash(self.folder),
            split=split,
            size=self.size,
            backend=f"dali, {self.device.type}" if self.backend == "dali" else self.backend,
            count=self.manifest.splits[split].samples,
        )

    def _is_unusable(self, path: Path, key: StoreKey) -> bool:
        """Whether the leader has to write the store, said aloud where one is there."""
        if not is_leader(self.world) or not path.exists():
            return is_leader(self.world)
        try:
            StoreFile(path, key).close()
        except (StaleStore, OSError) as error:
            warn(f"{path}: {error}; it is written again")
            return True
        return False

    def _write(self, path: Path, key: StoreKey, mine: bool) -> bool:
        """Decode into a new store on the machines where it is `mine`. False: it cannot be."""
        reader, sharing = self._reader(key.split)
        start, stop = local_part(len(reader), self.world)
        writer: StoreWriter | None = None
        problem = None if sharing else "the processes cannot share the work"
        for leader in (True, False):  # the leader makes the file, then the others open it
            if mine and not problem and leader == is_leader(self.world):
                try:
                    writer = StoreWriter(path, key, leader=leader)
                except OSError as error:
                    problem = _reason(error)
            if largest(int(problem is not None), self.world):
                return self._give_up(path, writer, problem)

        def fill() -> None:
            nonlocal problem
            if writer:
                try:
                    self._decode(reader, key.split, start, stop, writer.put)
                except OSError as error:
                    problem = _reason(error)

        self._finish(fill)
        if largest(int(problem is not None), self.world):
            return self._give_up(path, writer, problem)
        if writer and is_leader(self.world):
            try:
                writer.seal(reader.keys, reader.labels)
            except OSError as error:
                problem = _reason(error)
        if largest(int(problem is not None), self.world):
            return self._give_up(path, writer, problem)
        if writer:
            writer.close()
        reader.close()
        return True

    def _give_up(self, path: Path, writer: StoreWriter | None, problem: str | None) -> bool:
        if problem:
            warn(f"{path} cannot be written ({problem}); going on without it")
        if writer and is_leader(self.world):
            writer.discard()
        elif writer:
            writer.close()
        return False

    def _read(self, path: Path, key: StoreKey) -> Store | None:
        """The images of the store, all of them checked; None when one is not as it was written,
        and the file is removed."""
        problem: str | None = None
        to_disk = self.place == "disk"
        images, (start, stop) = _no_images(self.size), local_part(key.count, self.world)
        if not to_disk:
            images, (start, stop) = self._target(key.count, sharing=True)
        with self._leave():
            try:
                file = StoreFile(path, key)
                parts = Ahead(file.read_all(start, stop, self.threads), f"reading {path}")
                put = _drop if to_disk else partial(copy_into, images)
                self._put_all(f"read {key.split}", parts, start, stop, put)
            except (StaleStore, OSError) as error:
                problem = str(error)
                warn(f"{path}: {problem}; it is written again")
        if largest(int(problem is not None), self.world):
            if is_leader(self.world):
                path.unlink(missing_ok=True)
            return None
        if to_disk:
            return Store(file.keys, images, file.labels, DiskSource(file, self.device))
        file.close()
        return self._resident(file.keys, images, file.labels)

    def _warn(self, message: str) -> None:
        if self.shown:
            warn(message)


def _drop(start: int, part: Tensor) -> None:
    """Images that were read to be checked only."""


def _no_images(size: int) -> Tensor:
    return torch.empty((0, size, size), dtype=torch.uint8)


def _reason(error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        return "another run is writing it"
    return error.strerror or str(error)
