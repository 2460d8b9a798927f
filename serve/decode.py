"""Decoding in worker processes: encoded bytes -> (S, S) uint8, in order, within bounded memory.

A stranger's bytes may kill the decoder. The worker dies, not the run: what was in flight is decoded
again one image at a time, and the image that kills a worker alone is the one that is refused.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from types import TracebackType
from typing import Generic, TypeVar

import cv2
import numpy as np

from serve.entries import Piece
from shards import malloc
from shards.codec import BadImage, decode_source
from shards.console import RunFailed
from shards.preprocess import prepare

KILLED = "the decoder died on this image"
SECONDS = 60.0  # that one image may take; 100 megapixels of JPEG 2000, the slowest, take about 10
HUNG = f"decoding took more than {SECONDS:.0f} s"
_Tag = TypeVar("_Tag")
Data = bytes | Piece


@dataclass(frozen=True)
class Decoded:
    """images: (N, S, S) uint8, zeros where errors[i] says why image i cannot be decoded."""

    images: np.ndarray
    errors: list[str | None]


@dataclass(frozen=True)
class Task(Generic[_Tag]):
    """Images that are decoded together, and what the caller wants back with them."""

    tag: _Tag
    images: Sequence[Data]


Decode = Callable[[Sequence[Data], int | None, int, int | None], Decoded]


def decode_images(
    images: Sequence[Data], shorter_side: int | None, size: int, depth: int | None = None
) -> Decoded:
    """Decode and prepare each image, as the preprocessing contract says. Runs in a worker.
    RunFailed where a file cannot be read any more."""
    out = np.zeros((len(images), size, size), np.uint8)
    errors: list[str | None] = [None] * len(images)
    for i, image in enumerate(images):
        data = image if isinstance(image, bytes) else image.read()
        try:
            out[i] = prepare(decode_source(data, depth=depth), shorter_side, size)
        except BadImage as error:
            errors[i] = str(error)
        except Exception as error:  # one image's trouble stays its own
            errors[i] = f"{type(error).__name__}: {error}"
    return Decoded(out, errors)


def start_workers() -> None:
    """Begin to start the process that every pool's workers are forked from; it imports what they
    need (0.6 s) while the caller goes on."""
    forkserver.set_forkserver_preload([__name__, "shards.unfilter", "shards.resample"])
    forkserver.ensure_running()


class DecodePool:
    """Worker processes for one size of image. Use as a context manager."""

    def __init__(
        self,
        workers: int,
        shorter_side: int | None,
        size: int,
        depth: int | None = None,
        decode: Decode = decode_images,
        *,
        seconds: float = SECONDS,
    ) -> None:
        """depth: of 16-bit images that declare none; seconds: that one image may take."""
        self.seconds = seconds
        self.workers, self.decode = workers, decode
        self.shorter_side, self.size, self.depth = shorter_side, size, depth
        start_workers()
        self._context = multiprocessing.get_context("forkserver")
        self._pool = self._start(workers)

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, tasks: Iterable[Task[_Tag]]) -> Iterator[tuple[_Tag, Decoded]]:
        """The tasks' results in their order; a few tasks per worker are in flight at a time."""
        waiting: deque[tuple[Task[_Tag], Future[Decoded]]] = deque()
        source = iter(tasks)
        window = 2 * self.workers + 2
        while True:
            while len(waiting) < window and (task := next(source, None)) is not None:
                waiting.append((task, self._submit(task.images)))
            if not waiting:
                return
            task, future = waiting[0]
            try:
                decoded = future.result(self.seconds * max(1, len(task.images)))
            except (BrokenProcessPool, TimeoutError):
                waiting = self._recover(waiting)
                continue
            waiting.popleft()
            yield task.tag, decoded

    def _start(self, workers: int) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(workers, mp_context=self._context, initializer=_begin_worker)
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise RunFailed("the decoding workers do not start (memory? process limit?)") from error
        return pool

    def _restart(self) -> None:
        for process in list((self._pool._processes or {}).values()):
            process.kill()  # one that hangs would be waited for
        self._pool.shutdown(cancel_futures=True)
        self._pool = self._start(self.workers)

    def _submit(self, images: Sequence[Data]) -> Future[Decoded]:
        if not images:
            return _finished(Decoded(np.zeros((0, self.size, self.size), np.uint8), []))
        try:
            sides = self.shorter_side, self.size
            return self._pool.submit(self.decode, images, *sides, self.depth)
        except BrokenProcessPool as error:  # it broke since the last result; `run` recovers
            future: Future[Decoded] = Future()
            future.set_exception(error)
            return future

    def _recover(
        self, waiting: "deque[tuple[Task[_Tag], Future[Decoded]]]"
    ) -> "deque[tuple[Task[_Tag], Future[Decoded]]]":
        """Everything in flight, decoded again: no image is lost with the worker that died."""
        self._restart()
        recovered: deque[tuple[Task[_Tag], Future[Decoded]]] = deque()
        for task, future in waiting:
            if future.done() and not future.cancelled() and future.exception() is None:
                recovered.append((task, future))
            else:
                recovered.append((task, _finished(self._one_by_one(task.images))))
        return recovered

    def _one_by_one(self, images: Sequence[Data]) -> Decoded:
        parts = [self._alone(image) for image in images]
        stacked = np.concatenate([part.images for part in parts])
        return Decoded(stacked, [error for part in parts for error in part.errors])

    def _alone(self, image: Data) -> Decoded:
        for _ in range(2):  # twice, since the first death may have come from outside
            try:
                return self._submit([image]).result(self.seconds)
            except TimeoutError:
                self._restart()
                return self._refused(HUNG)
            except BrokenProcessPool:
                self._restart()
        return self._refused(KILLED)

    def _refused(self, reason: str) -> Decoded:
        return Decoded(np.zeros((1, self.size, self.size), np.uint8), [reason])


def _finished(decoded: Decoded) -> "Future[Decoded]":
    future: Future[Decoded] = Future()
    future.set_result(decoded)
    return future


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends us
    cv2.setNumThreads(1)
    malloc.keep_some()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A worker waits on a queue whose writing end it holds itself, so a parent that was killed
    # would leave it waiting for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
