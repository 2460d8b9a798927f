"""Copies -> the network's input: warped once, normalised, in the training dtype, channels_last.

On a CPU compiled loops warp the bytes and write the three channels, in threads; on a GPU one fused
kernel does all (train/warp_triton.py). `warp_slowly` is the reference. All sample bilinearly with
black outside.
"""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shards.preprocess import MEAN, STD
from train.expand import Copies
from train.sources import upload

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Warper:
    """Renders copies of resident images. dtype: of the output; threads: on a CPU, 0 takes torch's.

    On a CPU the output is a buffer that the next call overwrites: the page faults of a fresh one
    cost more than the work (3,100 images of 224 x 224 per second and core in the place of 8,000).
    """

    def __init__(self, dtype: torch.dtype = torch.float32, threads: int = 0) -> None:
        self.dtype = dtype
        self.threads = threads or torch.get_num_threads()
        self._buffer = torch.empty(0, dtype=dtype)
        self._scratch: list[_Scratch] = []
        self._pool: ThreadPoolExecutor | None = None
        # The threads here are enough: OpenCV, which bends and mirrors, would cut images in stripes.
        cv2.setNumThreads(1)

    def __call__(self, images: Tensor, copies: Copies) -> Tensor:
        """images: (N, S, S) uint8 -> (K, 3, S, S) on the same device, channels_last; on a CPU
        valid until the next call."""
        if images.device.type == "cuda":
            return (fused_warp() or warp_slowly)(images, copies, self.dtype)
        return self._on_cpu(images.numpy(), copies)

    def _on_cpu(self, images: np.ndarray, copies: Copies) -> Tensor:
        shape = (len(copies), *images.shape[1:], 3)
        out = self._take(shape)
        bare = out if self.dtype == torch.float32 else out.view(torch.int16)
        target = bare.numpy() if self.dtype == torch.float32 else bare.numpy().view(np.uint16)
        order = np.argsort(copies.sample, kind="stable")
        parts = np.array_split(order, min(self.threads, max(len(copies), 1)))
        while len(self._scratch) < len(parts):
            self._scratch.append(_Scratch(images.shape[-1], self.dtype))
        if len(parts) == 1:
            self._scratch[0].render(images, copies, parts[0], target)
        else:
            self._pool = self._pool or ThreadPoolExecutor(self.threads)
            work = (
                self._pool.submit(scratch.render, images, copies, part, target)
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


@cache
def shared_warper(dtype: torch.dtype) -> Warper:
    """This process's warper for that dtype, whose buffer training and validation share."""
    return Warper(dtype)


@cache
def fused_warp() -> Callable[[Tensor, Copies, torch.dtype], Tensor] | None:
    """The GPU's kernel; None, said once on standard error, where it cannot be built."""
    try:
        from train.warp_triton import probe, warp_fused

        probe(torch.device("cuda"))
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(
            f"warning: the fused GPU warp cannot be built ({error}), so torch's grid_sample warps, "
            "several times slower; it needs the package triton and a C compiler",
            file=sys.stderr,
        )
        return None
    return warp_fused


class _Scratch:
    """One thread's work: what it writes between the image and the output stays in its cache."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        from shards.compiled import Kernel  # 0.13 s, for CPUs

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
        from shards.compiled import MIRROR, PLAIN, WARP

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


def jitter_torch(images: Tensor, factors: Tensor) -> Tensor:
    """The same for (K, S, S) uint8 and factors (K, 2), on their device."""
    brightness, contrast = factors.double()[:, :, None, None].unbind(1)
    bright = (images * brightness).round().clamp(0, 255)
    mean = bright.mean(dim=(1, 2), keepdim=True)
    return (contrast * bright + (1 - contrast) * mean).round().clamp(0, 255).to(torch.uint8)


def warp_slowly(images: Tensor, copies: Copies, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a Warper does, in torch's own steps on any device: the reference. Levels are not rounded
    between warp and normalise. -> (K, 3, S, S), channels_last."""
    device = images.device
    sources = images[upload(copies.sample, device)]
    if (copies.jitter != 1).any():
        sources = jitter_torch(sources, upload(copies.jitter, device))
    moves = (upload(part, device) for part in (copies.matrices, copies.elastic))
    return normalise(warp_grid(sources, *moves)).to(dtype)


def warp_grid(images: Tensor, matrices: Tensor, elastic: Tensor) -> Tensor:
    """images: (K, S, S) uint8; matrices: (K, 2, 3); elastic:
    (K, 4, 4, 2) -> (K, S, S) float32 of range 0..255."""
    size = images.shape[-1]
    axis = torch.arange(size, device=images.device, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    pixels = torch.stack([x, y], dim=-1) + movement(elastic, size)
    pixels = functional.pad(pixels, (0, 1), value=1.0).reshape(len(images), size * size, 3)
    sources = pixels @ matrices.transpose(1, 2)
    grid = (sources * (2 / (size - 1)) - 1).reshape(len(images), size, size, 2)
    warped = functional.grid_sample(
        images[:, None].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return warped[:, 0]


def movement(elastic: Tensor, size: int) -> Tensor:
    """Control points (K, 4, 4, 2) -> every pixel's movement (K, S, S, 2), bicubic, in pixels."""
    field = functional.interpolate(
        elastic.permute(0, 3, 1, 2), size=(size, size), mode="bicubic", align_corners=False
    )
    return field.permute(0, 2, 3, 1)


def normalise(images: Tensor) -> Tensor:
    """(N, S, S) of range 0..255 -> (N, 3, S, S) float32, channels_last: step 4 of the contract."""
    mean = torch.tensor(MEAN, device=images.device)
    std = torch.tensor(STD, device=images.device)
    scaled = torch.addcmul(-mean / std, images[..., None].float(), 1 / (255 * std))
    return scaled.permute(0, 3, 1, 2)
