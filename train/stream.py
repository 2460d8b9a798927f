"""Images decoded from the shards anew in every epoch, for splits that fit into no memory."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from shards.split_reader import SplitReader
from train.ahead import Ahead
from train.decoding import CHUNK, Decoder
from train.sources import copy_into


class StreamSource:
    """Decodes ahead what it was told to expect, a few chunks of CHUNK images at a time."""

    def __init__(
        self, reader: SplitReader, decode: Decoder, size: int, threads: int, device: torch.device
    ) -> None:
        """reader: of a split that was scanned."""
        self.device = device
        self._reader, self._decode, self._size, self._threads = reader, decode, size, threads
        self._expected = np.empty(0, np.int64)
        self._ahead: Ahead[Tensor] | None = None
        self._ready = torch.empty((0, size, size), dtype=torch.uint8)

    def expect(self, positions: np.ndarray) -> None:
        self._stop()
        self._expected = positions
        chunks = (positions[at : at + CHUNK] for at in range(0, len(positions), CHUNK))
        images = self._decode(self._reader, chunks, self._size, self._threads)
        self._ahead = Ahead(images, f"decoding images of {self._reader.folder}")

    def take(self, positions: np.ndarray) -> Tensor:
        """RunFailed when a shard has changed, or decoding hangs."""
        if not np.array_equal(self._expected[: len(positions)], positions):
            self.expect(positions)
        self._expected = self._expected[len(positions) :]
        shape = (len(positions), self._size, self._size)
        out = torch.empty(shape, dtype=torch.uint8, device=self.device)
        done = 0
        for part in self._next(len(positions)):
            copy_into(out, done, part)
            done += len(part)
        return out

    def close(self) -> None:
        self._stop()
        self._reader.close()

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._ahead, self._ready = None, self._ready[:0]
        self._expected = self._expected[:0]

    def _next(self, count: int) -> Iterator[Tensor]:
        while count > 0:
            if not len(self._ready):
                assert self._ahead is not None
                self._ready = next(self._ahead)
            part, self._ready = self._ready[:count], self._ready[count:]
            count -= len(part)
            yield part
