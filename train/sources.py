"""Where a store's images come from, when they do not lie on the device that trains."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shards.console import warn


class ImageSource(Protocol):
    """Gives the images of a split by their positions."""

    device: torch.device

    def take(self, positions: np.ndarray) -> Tensor:
        """(n, S, S) uint8 on the device."""

    def expect(self, positions: np.ndarray) -> None:
        """What will be taken next, in this order; a hint that changes no result."""

    def close(self) -> None:
        """Give back memory, files and threads."""


class PinnedSource:
    """Images in the host's memory, which the GPU reads by itself (pinned)."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        """Registers the memory as it is: torch's own pinned memory has a power of two bytes."""
        self.images, self.device = images, device
        status = torch.cuda.cudart().cudaHostRegister(images.data_ptr(), images.nbytes, 0)
        self._pinned = int(status) == 0
        if not self._pinned:
            warn(f"the images' memory cannot be pinned ({status}); copies to the GPU are slower")

    def take(self, positions: np.ndarray) -> Tensor:
        """One copy per image, straight from the pinned memory, without waiting for it."""
        if not self._pinned:
            return self.images[torch.from_numpy(positions)].to(self.device)
        shape = (len(positions), *self.images.shape[1:])
        out = torch.empty(shape, dtype=torch.uint8, device=self.device)
        for row, position in enumerate(positions.tolist()):
            out[row].copy_(self.images[position], non_blocking=True)
        return out

    def expect(self, positions: np.ndarray) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        if self._pinned:
            torch.cuda.synchronize(self.device)
            torch.cuda.cudart().cudaHostUnregister(self.images.data_ptr())
            self._pinned = False
