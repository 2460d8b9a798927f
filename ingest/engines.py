"""Running a function over a stream of images on the processes of one machine.

Memory stays constant: at most `_WINDOW` batches per worker are under way. A decoder that crashes
takes its worker down, not the run: what was lost is tried again one image at a time, and the image
that crashes alone is rejected. A decoder that does not come to an end is ended: an alarm's default
action is the death of the process, native code or not, and then the same happens.
"""

import hashlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Protocol

import cv2

from ingest.encode import Encoded, Rejected
from ingest.files import read_file
from shards import malloc
from shards.codec import BadImage
from shards.console import RunFailed

IMAGE_SECONDS = 60  # 100 megapixels of JPEG 2000, the slowest, take about 10
CRASHED = f"the decoder crashed, or did not end within {IMAGE_SECONDS} s"
_WINDOW = 3  # batches under way per worker: one at work, two waiting
PRELOADED = ["ingest.preload"]
# In batches of 16 images of 0.4 MB, two workers do 5 % more than in batches of 4; by size, because
# all workers are to end together.
_BATCH_IMAGES, _BATCH_BYTES = 16, 8 * 2**20

Outcome = Encoded | Rejected
Data = bytes | Path
Encode = Callable[[bytes], Outcome]  # that workers can import, or a partial of such a function


@dataclass(frozen=True, slots=True)
class Job:
    """One image to encode; location and stamp as in SourceImage; data: its bytes, or the local file
    that the worker reads: handing over 0.4 MB costs more than reading them."""

    location: str
    stamp: str
    data: Data = field(repr=False)


class Engine(Protocol):
    """What images go through on the way to the spool; opened by `with`."""

    def __enter__(self) -> "Engine": ...
    def __exit__(self, *error: object) -> None: ...
    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Each job with its outcome, in the order of the jobs."""


class LocalEngine:
    """A pool of worker processes that outlives the crash of any of them.

    encode: what each image goes through.
    seconds: that it may take for one image.
    """

    def __init__(self, workers: int, encode: Encode, seconds: float = IMAGE_SECONDS) -> None:
        self.workers, self.encode = workers, partial(_outcome, encode, seconds)
        self._pool = _start_pool(workers)

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Each job with its outcome, in the order of the jobs."""
        pending: deque[tuple[list[Job], Future[list[Outcome]] | None]] = deque()
        for batch in batches(jobs):
            pending.append((batch, self._submit(batch)))
            if len(pending) >= self.workers * _WINDOW:
                yield from self._collect(*pending.popleft())
        while pending:
            yield from self._collect(*pending.popleft())

    def _submit(self, batch: list[Job]) -> Future[list[Outcome]] | None:
        try:
            return self._pool.submit(_encode_batch, self.encode, [job.data for job in batch])
        except BrokenProcessPool:
            return None  # found out by _collect, which mends the pool

    def _collect(
        self, batch: list[Job], future: Future[list[Outcome]] | None
    ) -> Iterator[tuple[Job, Outcome]]:
        try:
            if future is None:
                raise BrokenProcessPool
            outcomes = future.result()
        except BrokenProcessPool:
            outcomes = _encode_alone(self.encode, [job.data for job in batch])
            self._mend()
        yield from zip(batch, outcomes)

    def _mend(self) -> None:
        try:
            self._pool.submit(os.getpid).result()
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            self._pool = _start_sound_pool(self.workers)


def batches(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """The jobs in groups that are worth a message to a worker."""
    batch: list[Job] = []
    size = 0
    for job in jobs:
        batch.append(job)
        size += _size(job.data)
        if len(batch) == _BATCH_IMAGES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(data: Data) -> int:
    """In bytes; 0 of a file that cannot be read: its outcome will tell."""
    if isinstance(data, bytes):
        return len(data)
    try:
        return data.stat().st_size
    except OSError:
        return 0


def _outcome(encode: Encode, seconds: float, data: Data) -> Outcome:
    """In a worker: encode, or die after so many seconds. The disk may take its time."""
    try:
        image = content(data)
    except BadImage as error:
        return Rejected(str(error), "")
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return encode(image)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def content(data: Data) -> bytes:
    """The bytes of a job. BadImage when its file cannot be read."""
    return data if isinstance(data, bytes) else read_file(data)


def _encode_batch(encode: Callable[[Data], Outcome], batch: list[Data]) -> list[Outcome]:
    return [encode(data) for data in batch]


def _encode_alone(encode: Callable[[Data], Outcome], batch: list[Data]) -> list[Outcome]:
    """One image at a time in a process of their own, a new one after each crash."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(batch):
        with _start_sound_pool(1) as pool:
            try:
                for data in batch[len(outcomes) :]:
                    outcomes.append(pool.submit(encode, data).result())  # noqa: PERF401
            except BrokenProcessPool:
                outcomes.append(Rejected(CRASHED, _sha256(batch[len(outcomes)])))
    return outcomes


def _sha256(data: Data) -> str:
    try:
        return hashlib.sha256(content(data)).hexdigest()
    except BadImage:
        return ""


def fork_server() -> BaseContext:
    """What forks the workers, started: no fork of a process with threads, and their imports, 0.8 s,
    are paid for once, while the caller does something else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    multiprocessing.forkserver.ensure_running()
    return context


def _start_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=fork_server(), initializer=_start_worker)


def _start_sound_pool(workers: int) -> ProcessPoolExecutor:
    """A pool that has answered once. RunFailed when its processes cannot start."""
    pool = _start_pool(workers)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RunFailed(f"worker processes cannot start ({error}); is memory short?") from error
    return pool


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # `_timed` counts on it
    warnings.simplefilter("ignore")  # Pillow's about damaged files: the outcome says it
    cv2.setNumThreads(1)
    malloc.keep_some()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    """A parent that is killed cannot stop its workers, and they would wait for work for ever."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
