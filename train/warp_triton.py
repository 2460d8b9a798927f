"""The warp on an NVIDIA GPU: gather, warp, normalise and cast in one kernel, one write per copy.

Reference: `warp_slowly` in train/warp.py. `TRITON_INTERPRET=1` runs it without a GPU.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from shards.preprocess import MEAN, STD
from train.augment import unchanged
from train.expand import Copies, copies_from
from train.sources import upload
from train.warp import jitter_torch, movement

_BLOCK = 1024  # pixels of one program


def warp_fused(images: Tensor, copies: Copies, dtype: torch.dtype) -> Tensor:
    """images: (N, S, S) uint8 -> (K, 3, S, S) of `dtype`, channels_last, on the same device."""
    device, size = images.device, images.shape[-1]
    rows = upload(copies.sample, device)
    if (copies.jitter != 1).any():
        images = jitter_torch(images[rows], upload(copies.jitter, device))
        rows = torch.arange(len(copies), device=device)
    is_elastic = bool(copies.elastic.any())
    matrices = upload(copies.matrices, device)
    field = matrices  # not read where nothing is elastic
    if is_elastic:
        field = movement(upload(copies.elastic, device), size).contiguous()
    out = torch.empty((len(copies), size, size, 3), dtype=dtype, device=device)
    programs = (triton.cdiv(size * size, _BLOCK), len(copies))
    scale = [1 / (255 * std) for std in STD]
    offset = [-mean / std for mean, std in zip(MEAN, STD)]
    _warp_kernel[programs](
        images,
        rows,
        matrices,
        field,
        out,
        size,
        *scale,
        *offset,
        IS_ELASTIC=is_elastic,
        BLOCK=_BLOCK,
        enable_fp_fusion=True,  # said, since Triton warns that its default will be another
    )
    return out.permute(0, 3, 1, 2)


def probe(device: torch.device) -> None:
    """Build the kernel and run it on one small image. RuntimeError where that fails."""
    blank = torch.zeros((1, 8, 8), dtype=torch.uint8, device=device)
    warp_fused(blank, copies_from(np.zeros(1, np.int64), unchanged(1), 8), torch.float32)


@triton.jit
def _warp_kernel(  # type: ignore[no-untyped-def]
    images,
    rows,
    matrices,
    field,
    out,
    size,
    scale0,
    scale1,
    scale2,
    offset0,
    offset1,
    offset2,
    IS_ELASTIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    copy = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size * size
    x = (pixel % size).to(tl.float32)
    y = (pixel // size).to(tl.float32)
    place = copy * size * size + pixel  # 64 bits: a store of 112,120 images has 5.6e9 pixels
    if IS_ELASTIC:
        x += tl.load(field + place * 2, mask=inside, other=0.0)
        y += tl.load(field + place * 2 + 1, mask=inside, other=0.0)
    matrix = matrices + copy * 6
    u = tl.load(matrix) * x + tl.load(matrix + 1) * y + tl.load(matrix + 2)
    v = tl.load(matrix + 3) * x + tl.load(matrix + 4) * y + tl.load(matrix + 5)
    left, top = tl.floor(u), tl.floor(v)
    right_share, low_share = u - left, v - top
    source = images + tl.load(rows + copy) * size * size
    grey = tl.zeros((BLOCK,), tl.float32)
    for corner in tl.static_range(4):
        column = left.to(tl.int32) + corner % 2
        line = top.to(tl.int32) + corner // 2
        across = right_share if corner % 2 else 1 - right_share
        down = low_share if corner // 2 else 1 - low_share
        known = inside & (column >= 0) & (column < size) & (line >= 0) & (line < size)
        value = tl.load(source + line * size + column, mask=known, other=0)
        grey += value.to(tl.float32) * across * down
    target = out + place * 3
    kind = out.dtype.element_ty
    tl.store(target, (grey * scale0 + offset0).to(kind), mask=inside)
    tl.store(target + 1, (grey * scale1 + offset1).to(kind), mask=inside)
    tl.store(target + 2, (grey * scale2 + offset2).to(kind), mask=inside)
