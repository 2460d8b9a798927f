"""Resident images -> 8 finished copies of each: warped, normalised. Run: python -m bench warp"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import kornia.geometry.transform as kornia_transform
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bench.config import BenchConfig, settle
from bench.images import network_inputs, raw_images
from bench.machine import synchronise
from bench.peers import kornia_copies
from bench.result import Result, Side, interleave
from train.augment import EIGHT, NONE
from train.device import choose_device
from train.expand import Copies, Expander
from train.store import Store
from train.warp import Warper, normalise

_SOURCES = {"cpu": 8, "cuda": 64}  # of one call: 64 copies, and on a GPU 512


@dataclass(frozen=True)
class WarpBench(BenchConfig):
    """How fast resident images become finished training tensors, 8 copies of each: parameters,
    gather, warp, normalise, channels_last. Peers: Kornia, torch, Pillow and DALI doing the same;
    and the limit, which is writing the same bytes. On a CPU one thread each, by processor time."""

    number: int = 64
    """Images of one repetition; each gives 8 copies."""
    size: int = 224
    """Side of the network's input in pixels."""


def measure(config: WarpBench) -> Result:
    """Copies per second, on a CPU of one core."""
    config = settle(config)
    device = choose_device("auto", 0)
    on_cpu = device.type == "cpu"
    torch.set_num_threads(1 if on_cpu else config.workers)
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as work:
        raw = raw_images(config, Path(work, "raw"))
        images = torch.from_numpy(network_inputs(raw, config, config.size)).to(device)
        what = f"{raw} resident as {config.size} x {config.size} bytes -> 8 copies of each, float32"
    store = _store(images)
    sides = _sides(store, 1)
    clock = time.process_time if on_cpu else time.perf_counter
    rates = interleave("warp", sides, config.repeats, clock)
    threads = interleave("warp, all threads", _ours(store, config.workers), config.repeats)
    peer = rates.pop("kornia, in sequence")
    ours = rates.pop("ours")
    return Result(
        name="warp",
        what=f"{what}, " + ("per core, by processor time" if on_cpu else f"on {device}"),
        peer_name="Kornia: rotate, translate and mirror in sequence, normalise",
        ours=ours,
        peer=peer,
        images=len(raw),
        synthetic=raw.synthetic,
        quick=config.quick,
        others=rates,
        extra={
            "share_of_write_limit": round(ours.median / rates["limit, float32"].median, 4),
            "threads": config.workers,
            "threads_img_s": {name: round(rate.median, 3) for name, rate in threads.items()},
        },
    )


def _store(images: Tensor) -> Store:
    labels = np.ones((len(images), 1), np.int8)
    return Store(tuple(f"{number:06d}" for number in range(len(images))), images, labels)


def _sides(store: Store, threads: int) -> dict[str, Side]:
    """Everything that makes float32 of all copies of the store, one call after another; ours makes
    bfloat16 too; and what only writes as much."""
    ways: dict[str, Callable[[Tensor, np.ndarray], Tensor]] = {
        "kornia, one warp": _kornia_warp,
        "torch affine_grid + grid_sample": _torch_grid,
    }
    if store.device.type == "cpu":
        ways["Pillow"] = _pillow
    sides = _ours(store, threads)
    sides["kornia, in sequence"] = partial(_in_sequence, store)
    sides |= {name: partial(_by_matrices, store, way, count()) for name, way in ways.items()}
    if store.device.type == "cpu" and _has_dali():
        sides["DALI warp_affine"] = _dali(store)
    for dtype in (torch.float32, torch.bfloat16):
        sides[f"limit, {_name(dtype)}"] = _limit(store, dtype)
    return sides


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _calls(store: Store, epoch: int) -> Iterator[Copies]:
    """The copies of one call after another, as a training step has them."""
    expander = Expander({0: EIGHT}, NONE, seed=0, size=store.images.shape[-1])
    sources = _SOURCES[store.device.type]
    for start in range(0, len(store), sources):
        yield expander.mixed_copies(store, np.arange(len(store))[start : start + sources], epoch)


def _ours(store: Store, threads: int) -> dict[str, Side]:
    def side(warper: Warper, epochs: "count[int]") -> int:
        made = sum(len(warper(store.images, copies)) for copies in _calls(store, next(epochs)))
        synchronise(store.device)
        return made

    plain, half = Warper(torch.float32, threads), Warper(torch.bfloat16, threads)
    return {"ours": partial(side, plain, count()), "ours, bfloat16": partial(side, half, count())}


def _in_sequence(store: Store) -> int:
    made = 0
    for part in store.images.split(_SOURCES[store.device.type]):
        made += len(kornia_copies(part[:, None].float() / 255))
    synchronise(store.device)
    return made


def _by_matrices(
    store: Store, way: Callable[[Tensor, np.ndarray], Tensor], epochs: "count[int]"
) -> int:
    """Our matrices, another's warp; ours normalises for it."""
    made = 0
    for copies in _calls(store, next(epochs)):
        images = store.images[torch.from_numpy(copies.sample).to(store.device)]
        made += len(normalise(way(images, copies.matrices)))
    synchronise(store.device)
    return made


def _kornia_warp(images: Tensor, matrices: np.ndarray) -> Tensor:
    inverted = np.linalg.inv(np.concatenate([matrices, [[[0, 0, 1]]] * len(matrices)], axis=1))
    forward = torch.from_numpy(inverted[:, :2].astype(np.float32)).to(images.device)
    size = tuple(images.shape[1:])
    warped: Tensor = kornia_transform.warp_affine(images[:, None].float(), forward, size)
    return warped[:, 0]


def _torch_grid(images: Tensor, matrices: np.ndarray) -> Tensor:
    """affine_grid counts from -1 to 1 at the centres of the outer pixels."""
    theta, half = matrices.astype(np.float64), (images.shape[-1] - 1) / 2
    theta[:, :, 2] = (theta[:, :, 2] + (theta[:, :, :2].sum(axis=2) - 1) * half) / half
    shape = [len(images), 1, *images.shape[1:]]
    moves = torch.from_numpy(theta.astype(np.float32)).to(images.device)
    grid = functional.affine_grid(moves, shape, align_corners=True)
    return functional.grid_sample(images[:, None].float(), grid, align_corners=True)[:, 0]


def _pillow(images: Tensor, matrices: np.ndarray) -> Tensor:
    out = np.empty(images.shape, np.uint8)
    method, filtering = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    for target, image, matrix in zip(out, images.numpy(), matrices.astype(np.float64)):
        matrix[:, 2] += 0.5 - 0.5 * matrix[:, :2].sum(axis=1)  # centres are at halves
        data = tuple(matrix.ravel().tolist())
        target[:] = Image.fromarray(image).transform(target.shape, method, data, filtering)
    return torch.from_numpy(out)


def _has_dali() -> bool:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True


def _dali(store: Store) -> Side:
    """DALI's CPU operator, fed with the same images and matrices, one thread; its output is float32
    (n, S, S, 1), which the peer's user would still have to repeat and normalise: ours does."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import feed_ndarray

    batch = _SOURCES["cpu"] * EIGHT.factor

    @pipeline_def(batch_size=batch, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def warps():  # type: ignore[no-untyped-def]
        images = fn.external_source(name="images", layout="HWC", batch=True)
        matrices = fn.external_source(name="matrices", batch=True)
        return fn.warp_affine(
            images, matrices, fill_value=0, inverse_map=True, interp_type=types.INTERP_LINEAR
        )

    pipeline = warps()
    pipeline.build()
    epochs, size = count(), store.images.shape[-1]

    def side() -> int:
        made = 0
        for copies in _calls(store, next(epochs)):
            images = store.images.numpy()[copies.sample][..., None]
            matrices = copies.matrices.copy()
            matrices[:, :, 2] += 0.5 - 0.5 * matrices[:, :, :2].sum(axis=2)  # centres at halves
            pipeline.feed_input("images", images)
            pipeline.feed_input("matrices", matrices)
            warped = torch.empty((len(copies), size, size, 1), dtype=torch.uint8)
            feed_ndarray(pipeline.run()[0].as_tensor(), warped)
            made += len(normalise(warped[..., 0]))
        return made

    return side


def _limit(store: Store, dtype: torch.dtype) -> Side:
    """The same output, written into the same memory again and again."""
    size, sources = store.images.shape[-1], _SOURCES[store.device.type]
    shape = (sources * EIGHT.factor, size, size, 3)
    out = torch.empty(shape, dtype=dtype, device=store.device)

    def side() -> int:
        made = 0
        for start in range(0, len(store), sources):
            part = out[: min(sources, len(store) - start) * EIGHT.factor]
            made += len(part.fill_(1.0))
        synchronise(store.device)
        return made

    return side
