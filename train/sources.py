"""Where a store's images come from, when they do not lie on the device that trains."""

from contextlib import suppress
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shards.console import RunFailed, warn


class ImageSource(Protocol):
    """Gives the images of a split by their positions."""

    device: torch.device

    def take(self, positions: np.ndarray) -> Tensor:
        """(n, S, S) uint8 on the device."""

    def expect(self, positions: np.ndarray) -> None:
        """What will be taken next, in this order; a hint that changes no result."""

    def close(self) -> None:
        """Give back memory, files and threads."""


def copy_into(target: Tensor, start: int, part: Tensor) -> None:
    """target[start : start + n] = part (n, S, S). Within the host's memory by numpy: torch would
    wake OpenMP's threads for it, which then spin beside those that decode: by libgomp's default a
    copy of 0.1 ms costs 5 ms of a core."""
    rows = target[start : start + len(part)]
    if target.device.type == part.device.type == "cpu":
        rows.numpy()[:] = part.numpy()
    elif part.device.type == "cpu":
        rows.copy_(part.pin_memory(), non_blocking=True)
    else:
        rows.copy_(part)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device. To a GPU from pinned memory (torch keeps it until it is read), since
    a plain copy waits for all that the GPU has in its queue, such as the last backward."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class PinnedSource:
    """Images in the host's memory, which the GPU reads by itself (pinned)."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        """Registers the memory as it is: torch's own pinned memory has a power of two bytes. Where
        that fails, a warning says so. RunFailed when the GPU is lost."""
        self.images, self.device = images, device
        cuda = torch.cuda.cudart()
        status = cuda.cudaHostRegister(images.data_ptr(), images.nbytes, 0)
        self._pinned = int(status) == 0
        if not self._pinned:
            _forget_error(device)
            reason = cuda.cudaGetErrorString(status)
            warn(f"the images' memory cannot be pinned ({reason}); copies to the GPU are slower")

    def take(self, positions: np.ndarray) -> Tensor:
        """One copy per image, straight from the pinned memory, without waiting for it."""
        if not self._pinned:
            return upload(self.images.numpy()[positions], self.device)
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


def _forget_error(device: torch.device) -> None:
    """CUDA keeps a failed call's error, and the next kernel, whosoever it is, would report it.
    RunFailed when the GPU is lost altogether."""
    with suppress(RuntimeError):
        torch.ones(1, device=device)
    try:
        torch.ones(1, device=device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RunFailed(f"{device} does not answer ({reason})") from error
