"""The warp on a CPU: compiled loops (shards/kernels.py) warp the bytes and write the three
channels, in threads.

Reference: `warp_slowly` in train/warp.py.
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import Tensor

from shards.compiled import MIRROR, PLAIN, WARP, Kernel
from shards.preprocess import MEAN, STD
from train.expand import Copies
from train.warp import normalise


class CompiledWarp:
    """dtype: of the output; threads: 0 for torch's number.

    The output is a buffer that the next call overwrites: the page faults of a fresh one cost more
    than the work (with AVX-512 4,400 copies of 224 x 224 a second and core in the place of 25,000).
    """

    def __init__(self, dtype: torch.dtype, threads: int) -> None:
        self.dtype = dtype
        self.threads = threads or torch.get_num_threads()
        self._buffer = torch.empty(0, dtype=dtype)
        self._scratch: list[_Scratch] = []
        self._pool: ThreadPoolExecutor | None = None
        # The threads here are enough: OpenCV, which bends and mirrors, would cut images in stripes.
        cv2.setNumThreads(1)

    def __call__(self, images: Tensor, copies: Copies) -> Tensor:
        """images: (N, S, S) uint8 on the CPU -> (K, 3, S, S), channels_last, valid until the next
        call."""
        shape = (len(copies), *images.shape[1:], 3)
        out = self._take(shape)
        bare = out if self.dtype == torch.float32 else out.view(torch.int16)
        target = bare.numpy() if self.dtype == torch.float32 else bare.numpy().view(np.uint16)
        order = np.argsort(copies.sample, kind="stable")
        parts = np.array_split(order, min(self.threads, max(len(copies), 1)))
        while len(self._scratch) < len(parts):
            self._scratch.append(_Scratch(images.shape[-1], self.dtype))
        if len(parts) == 1:
            self._scratch[0].render(images.numpy(), copies, parts[0], target)
        else:
            self._pool = self._pool or ThreadPoolExecutor(self.threads)
            work = (
                self._pool.submit(scratch.render, images.numpy(), copies, part, target)
                for scratch, part in zip(self._scratch, parts)
            )
            for done in list(work):
                done.result()
        return out.permute(0, 3, 1, 2)

    def _take(self, shape: tuple[int, ...]) -> Tensor:
        """The buffer's beginning, in this shape."""
        count = int(np.prod(shape))
        if self._buffer.numel() < count:
            # Validation asks in inference mode, but training uses the same buffer.
            with torch.inference_mode(False):
                self._buffer = torch.empty(count, dtype=self.dtype)
        if self._scratch and self._scratch[0].size != shape[1]:
            self._scratch = []
        # A graph that still holds the last output says so at its backward.
        torch.autograd.graph.increment_version(self._buffer)
        return self._buffer[:count].view(shape)


class _Scratch:
    """One thread's work: what it writes between the image and the output stays in its cache."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.size = size
        self.corners = np.empty((size + 2, size + 2), np.uint32)
        self.warped = np.empty((size, size), np.uint8)
        self.found, self.shares = np.empty((2, size), np.uint32), np.empty((2, size), np.float32)
        if dtype == torch.float32:
            factors = [[1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD)]]
            self.kernel, self.table = Kernel("render_float32"), np.array(factors, np.float32)
        else:
            self.kernel, self.table = Kernel("render_uint16"), _table(dtype)
        y, x = np.mgrid[:size, :size].astype(np.float32)
        self.pixels = np.stack([x, y], axis=-1)

    def render(
        self, images: np.ndarray, copies: Copies, numbers: np.ndarray, out: np.ndarray
    ) -> None:
        """The copies with these numbers, best those of one image one after another. out: (>= K, S,
        S, 3) float32, or uint16 that holds the bits of a 16-bit float."""
        part, matrices = copies[numbers], np.ascontiguousarray(copies.matrices, np.float32)
        how = np.full(len(part), WARP)
        how[np.all(part.matrices == np.eye(2, 3), axis=(1, 2))] = PLAIN
        how[np.all(part.matrices == [[-1, 0, self.size - 1], [0, 1, 0]], axis=(1, 2))] = MIRROR
        plan = np.stack([part.sample, numbers, how], axis=1)
        is_elastic = np.any(part.elastic, axis=(1, 2, 3))
        is_special = is_elastic | np.any(part.jitter != 1, axis=1)
        # Most in one call: a thread that waits for Python's lock between copies sleeps for 50 us.
        self._call(images, plan[~is_special], matrices, out)
        for i in np.flatnonzero(is_special):
            grey = jitter(images[part.sample[i]], *part.jitter[i])
            kind = how[i]
            if is_elastic[i]:
                grey, kind = self._bend(grey, part.matrices[i], part.elastic[i]), PLAIN
            self._call(grey, np.array([[0, numbers[i], kind]]), matrices, out)

    def _call(
        self, images: np.ndarray, plan: np.ndarray, matrices: np.ndarray, out: np.ndarray
    ) -> None:
        """plan: (n, 3) int64, of each copy its image, its number and how it is made. Per copy of
        224 x 224 and core: 64 us for the warp, and for step 4 of the contract 48 us in float32,
        which is what the memory takes, and in 16 bits too."""
        assert images.flags.c_contiguous
        scratch = self.corners, self.warped, self.found, self.shares
        self.kernel(self.table, images, plan, matrices, out, *scratch, self.size, len(plan))

    def _bend(self, source: np.ndarray, matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Where an output pixel comes from: first moved, then mapped."""
        size = (self.size, self.size)
        moved = cv2.resize(points, size, interpolation=cv2.INTER_CUBIC) + self.pixels
        bent = cv2.remap(source, cv2.transform(moved, matrix), None, cv2.INTER_LINEAR)
        return np.asarray(bent)


def _table(dtype: torch.dtype) -> np.ndarray:
    """(256, 4) uint16: a grey level's three channels as 16-bit floats, and a void fourth."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256)
    bits = normalise(levels)[0, :, 0].T.to(dtype).contiguous().view(torch.int16).numpy()
    return np.pad(bits.view(np.uint16), ((0, 0), (0, 1)))


def jitter(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """(H, W) uint8 -> uint8: brightness, then contrast about the mean, as torchvision's adjust_*
    do it, but rounded; before the warp, so that what is black outside stays black."""
    if brightness == 1 and contrast == 1:
        return image
    bright = _as_levels(np.arange(256) * brightness)
    if contrast == 1:
        return np.asarray(cv2.LUT(image, bright))
    mean = cv2.mean(cv2.LUT(image, bright))[0]
    return np.asarray(cv2.LUT(image, _as_levels(contrast * bright + (1 - contrast) * mean)))


def _as_levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
