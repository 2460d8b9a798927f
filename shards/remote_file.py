"""A file behind a URL as a stream: blocks are asked for ahead while it is read in order."""

import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar

_AHEAD = 4  # requests at a time: one stream from S3 gives about 50 MB/s


class RemoteFile(io.RawIOBase):
    """Read-only and seekable. read_range(start, end): the bytes from start to before end.

    The first block is small, as a header is often all that is wanted; the next ones grow.
    """

    FIRST_BYTES: ClassVar[int] = 2**18
    MAX_BYTES: ClassVar[int] = 2**23

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range, self._size = read_range, size
        self._pool = ThreadPoolExecutor(_AHEAD)
        self._position = self._start = self._asked = 0
        self._block = b""
        self._length = self.FIRST_BYTES
        self._ahead: deque[Future[bytes]] = deque()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        if self._position >= self._size:
            return 0
        if not self._start <= self._position < self._start + len(self._block):
            self._load()
        begin = self._position - self._start
        data = self._block[begin : begin + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._ahead.clear()
        super().close()

    def _load(self) -> None:
        """The block that begins at the position."""
        in_order = self._position == self._start + len(self._block)
        if not in_order:
            self._ahead.clear()
            self._asked, self._length = self._position, self.FIRST_BYTES
        wanted = 1 if self._length == self.FIRST_BYTES else _AHEAD
        while len(self._ahead) < wanted and self._asked < self._size:
            end = min(self._asked + self._length, self._size)
            self._ahead.append(self._pool.submit(self._read_range, self._asked, end))
            self._asked, self._length = end, min(4 * self._length, self.MAX_BYTES)
        self._block, self._start = self._ahead.popleft().result(), self._position
