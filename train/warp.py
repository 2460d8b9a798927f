"""Copies -> the network's input: warped once, normalised, in the training dtype, channels_last.

On a CPU compiled loops do it (train/warp_compiled.py), on a GPU one fused kernel
(train/warp_triton.py). `warp_slowly` is the reference. All sample bilinearly with black outside.
"""

import subprocess
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from shards.console import warn
from shards.preprocess import MEAN, STD
from train.expand import Copies
from train.sources import upload

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Warper:
    """Renders copies of resident images. dtype: of the output; threads: on a CPU, 0 for torch's
    number."""

    def __init__(self, dtype: torch.dtype = torch.float32, threads: int = 0) -> None:
        self.dtype, self.threads = dtype, threads
        self._compiled: Callable[..., Tensor] | None = None

    def __call__(self, images: Tensor, copies: Copies) -> Tensor:
        """images: (N, S, S) uint8 -> (K, 3, S, S) on the same device, channels_last; on a CPU
        valid until the next call."""
        if images.device.type == "cuda":
            return (fused_warp() or warp_slowly)(images, copies, self.dtype)
        if self._compiled is None:
            from train.warp_compiled import CompiledWarp  # a compiler's library: 0.13 s, for CPUs

            self._compiled = CompiledWarp(self.dtype, self.threads)
        return self._compiled(images, copies)


@cache
def shared_warper(dtype: torch.dtype) -> Warper:
    """This process's warper for that dtype, whose buffer training and validation share."""
    return Warper(dtype)


@cache
def fused_warp() -> Callable[[Tensor, Copies, torch.dtype], Tensor] | None:
    """The GPU's kernel; None, said once on standard error, where it cannot be built."""
    # AssertionError: triton's driver, where ldconfig knows no libcuda.
    expected: tuple[type[Exception], ...] = (ImportError, OSError, RuntimeError, AssertionError)
    expected += (subprocess.SubprocessError,)
    try:
        from triton.errors import TritonError  # its compiler's and ptxas's errors

        expected += (TritonError,)
        from train.warp_triton import probe, warp_fused

        probe(torch.device("cuda"))
    except expected as error:
        warn(
            f"the fused GPU warp cannot be built ({error}), so torch's grid_sample warps, several "
            "times slower; it needs the package triton, a C compiler and Python.h (python3-dev)"
        )
        return None
    return warp_fused


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
    # No matrix product: in TF32 a GPU would round its factors to 10 bits, which is 0.1 pixels.
    moves = matrices[:, None, None]
    sources = moves[..., 0] * pixels[..., :1] + moves[..., 1] * pixels[..., 1:] + moves[..., 2]
    grid = sources * (2 / (size - 1)) - 1
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
