"""Work done ahead by threads. They are daemons: one that hangs does not keep the process alive, and
whoever waits for one waits LIMIT_S seconds at most."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from shards.console import RunFailed

T = TypeVar("T")
LIMIT_S = 300.0  # decoding 64 images takes 0.1 s; a network disk that comes back needs a minute


class Threads:
    """A pool of daemon threads. ThreadPoolExecutor's are joined at exit: a hanging one hangs it."""

    def __init__(self, number: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._number = number
        for _ in range(number):
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """The job's result, once a thread has done it."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def close(self) -> None:
        """The threads end when they have done what is submitted."""
        for _ in range(self._number):
            self._jobs.put(None)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            try:
                future.set_result(job())
            except BaseException as error:  # whoever waits for the result shall see it
                future.set_exception(error)


class Ahead(Generic[T]):
    """Iterates over what a generator yields; a thread runs it, up to `depth` items ahead."""

    def __init__(self, items: Iterator[T], what: str, depth: int = 3) -> None:
        self._what = what
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(items,), name="ahead", daemon=True).start()

    def __iter__(self) -> "Ahead[T]":
        return self

    def __next__(self) -> T:
        """RunFailed when the generator hangs; what it raised, when it raised."""
        try:
            item, error = self._queue.get(timeout=LIMIT_S)
        except queue.Empty:
            raise RunFailed(
                f"{self._what} took over {LIMIT_S:.0f} s, which looks like a hang; look at the "
                "disk, then give the same command again"
            ) from None
        if error is not None:
            raise error
        assert item is not None
        return item

    def close(self) -> None:
        """The thread ends with its present item."""
        self._stop.set()

    def _run(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:
            self._put((None, error))
        finally:
            if hasattr(items, "close"):
                items.close()

    def _put(self, item: tuple[T | None, BaseException | None]) -> bool:
        """False when nobody wants it any more."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.5)
            except queue.Full:
                continue
            return True
        return False
