"""Where the time of a training step goes, and what holds it back. Run: python -m bench doctor

Each part alone, beside a synthetic ceiling of the same run: what the machine gives to that part
when nothing else is in its way. Read, decode, resize and copy come once per image and run, the
other parts once per copy and epoch.
"""

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from bench.clock import Clock, Part
from bench.config import BenchConfig, settle
from bench.dali_parts import dali_parts
from bench.gpu_node import gpu_problems
from bench.images import ingest_raw, raw_images
from bench.machine import (
    forward_flops,
    matmul_flop_s,
    this_machine,
    versions,
)
from bench.networks import build_pair, network_name
from shards.codec import decode_grey
from shards.console import progress, warn
from shards.labels import CHESTXRAY14
from shards.manifest import load_manifest, shard_path
from shards.split_reader import SplitReader
from train.augment import EIGHT, NONE
from train.batch import render
from train.decoding import choose_backend
from train.dist import World
from train.expand import Copies, Expander
from train.input_torch import resize_group
from train.optim import OptimConfig, build_optim
from train.phases import Phase
from train.precision import Precision, set_cuda
from train.settings import commit
from train.store import Store

ONCE = ("read", "decode", "resize", "copy")
EACH = ("warp", "forward", "backward", "optimiser")


@dataclass(frozen=True)
class DoctorBench(BenchConfig):
    """What keeps a machine with GPUs from using them, if anything does; then where the time of a
    training step goes: read, decode, resize, copy to the device, warp, forward, backward,
    optimiser; each against a ceiling measured in the same run."""

    number: int = 64
    """Use at most this many images."""
    architecture: str = "densenet121"
    """The network."""
    size: int = 224
    """Side of the network's input in pixels."""
    batch: int = 16
    """Copies of one step."""


@dataclass(frozen=True)
class Diagnosis:
    """The parts in order; step_ms: a whole step per copy; sentence: what holds it back; problems:
    what keeps the machine from using its GPUs."""

    what: str
    parts: tuple[Part, ...]
    step_ms: float
    sentence: str
    config: DoctorBench
    synthetic: bool
    problems: list[str]


def diagnose(config: DoctorBench) -> Diagnosis:
    """Look at the GPUs, then measure all parts."""
    config = settle(config)
    problems = gpu_problems()
    for problem in problems:
        warn(problem)
    torch.set_num_threads(config.workers)
    cv2.setNumThreads(1)  # as in the input's own threads
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as work:
        raw = raw_images(config, Path(work, "raw"))
        network = network_name(config.architecture, quick=config.quick)
        what = f"{network} at {config.size} x {config.size}, batch {config.batch}, from {raw}"
        folder = ingest_raw(raw, Path(work, "shards"), "htj2k", config)
        with progress("doctor", 6 * config.repeats) as advance:
            clock = Clock(config.repeats, lambda: advance(1))
            once, store = _once(folder, config, clock)
            each, step_ms = _each(store, config, clock)
    parts = (*once, *each)
    said = sentence(parts, step_ms)
    return Diagnosis(what, parts, step_ms, said, config, raw.synthetic, problems)


def _once(folder: Path, config: DoctorBench, clock: Clock) -> tuple[list[Part], Store]:
    """The parts of the first epoch, and the images as a store on the device."""
    manifest = load_manifest(folder)
    reader = SplitReader(folder, manifest, "train")
    device, cpu = World("auto").device, torch.device("cpu")
    paths = [shard_path(folder, shard) for shard in reader.shards]
    for number in range(len(paths)):
        reader.scan(number)
    count = len(reader)

    def read() -> list[bytes]:
        for number in range(len(paths)):
            reader.scan(number)
        return [reader.read(position) for position in range(count)]

    data = read()
    images = [decode_grey(item) for item in data]
    small = np.concatenate([resize_group([image], config.size) for image in images])
    store = Store(reader.keys, torch.from_numpy(small).to(device), reader.labels)
    backend, decode = choose_backend("auto", device)
    if backend == "dali":
        own = dali_parts(decode, reader, images, config.size, config.workers, device, clock)
    else:
        own = _thread_parts(data, images, config, clock)
    pinned = torch.from_numpy(small)
    pinned = pinned.pin_memory() if device.type == "cuda" else pinned

    def plain() -> list[bytes]:
        return [path.read_bytes() for path in paths]

    parts = [
        clock.part("read", read, plain, count, "reading the shards without a check", cpu),
        *own,
        clock.part(
            "copy",
            lambda: torch.from_numpy(small).to(device),
            lambda: pinned.to(device, non_blocking=True),
            count,
            "from pinned memory" if device.type == "cuda" else "nothing: the device is the CPU",
            device,
        ),
    ]
    reader.close()
    return parts, store


def _thread_parts(
    data: list[bytes], images: list[np.ndarray], config: DoctorBench, clock: Clock
) -> list[Part]:
    """Decode and resize as the input does it in threads."""
    same = partial(_spread, ThreadPoolExecutor(config.workers), config.workers)
    count, cpu = len(data), torch.device("cpu")
    groups = [images[at : at + 4] for at in range(0, count, 4)]
    resize = partial(resize_group, size=config.size)
    return [
        clock.part(
            "decode",
            lambda: same(decode_grey, data),
            lambda: same(decode_grey, data[:1] * count),
            count,
            "one image again and again, in the cache",
            cpu,
        ),
        clock.part(
            "resize",
            lambda: same(resize, groups),
            lambda: same(resize, groups[:1] * len(groups)),
            count,
            "one image again and again, in the cache",
            cpu,
        ),
    ]


def _spread(
    pool: ThreadPoolExecutor, threads: int, work: Callable[..., object], items: list[Any]
) -> None:
    """work(item) for all items, dealt out to the threads."""

    def some(share: list[Any]) -> None:
        for item in share:
            work(item)

    list(pool.map(some, [items[n::threads] for n in range(threads)]))


def _each(store: Store, config: DoctorBench, clock: Clock) -> tuple[list[Part], float]:
    """The parts of every step, and the whole step per copy."""
    device, precision = store.device, Precision("auto", store.device)
    set_cuda(device, tf32=True, few_shapes=True)
    model, _ = build_pair(config.architecture, len(CHESTXRAY14), quick=config.quick)
    model = model.to(device).train()
    optim = build_optim(OptimConfig(), model, Phase("all", 1, "all", 1e-4))
    expander = Expander({0: EIGHT}, NONE, seed=0, size=config.size)
    copies = _some(expander, store, config.batch)
    dtype = precision.input_dtype
    batch = render(store, copies, dtype).images.clone(memory_format=torch.channels_last)
    target = torch.empty_like(batch)

    def forward() -> torch.Tensor:
        with precision.autocast():
            logits: torch.Tensor = model(batch)
        return logits.float().square().mean()

    loss = forward()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    numbers = sum(gradient.numel() for gradient in gradients)
    flops = forward_flops(model, batch.float())
    matmul = 1e3 / matmul_flop_s(device, dtype)  # ms of one operation
    both = clock.ms(lambda: forward().backward(), config.batch, device)
    inference = clock.ms(forward, config.batch, device)
    warp = clock.part(
        "warp",
        lambda: render(store, copies, dtype),
        lambda: target.copy_(batch),
        config.batch,
        "copying the finished batch",
        device,
    )
    rate = "its FLOPs at the rate of a large matrix multiplication"
    parts = [
        warp,
        Part("forward", inference, flops * matmul / config.batch, rate),
        Part("backward", both - inference, 2 * flops * matmul / config.batch, rate),
        clock.part(
            "optimiser",
            optim.step,
            memory_accesses(numbers, device),
            config.batch,
            "as many memory accesses in two plain additions",
            device,
        ),
    ]

    def step() -> None:
        nonlocal batch
        batch = render(store, copies, dtype).images
        optim.zero_grad(set_to_none=True)
        forward().backward()
        optim.step()

    return parts, clock.ms(step, config.batch, device)


def memory_accesses(numbers: int, device: torch.device) -> Callable[[], object]:
    """As many as SGD has on so many weights: it reads weight, gradient and momentum, and writes two
    of them."""
    weight, gradient, momentum = torch.zeros((3, numbers), device=device)
    return lambda: [weight.add_(gradient), momentum.add_(1.0)]


def _some(expander: Expander, store: Store, count: int) -> Copies:
    """So many copies of the store's first images, mixed."""
    copies = expander.mixed_copies(store, np.arange(min(len(store), count)), 0)
    return copies[np.arange(count) % len(copies)]


def sentence(parts: tuple[Part, ...], step_ms: float) -> str:
    """What holds a training back, in one sentence."""
    by_name = {part.name: part for part in parts}
    slow = max((by_name[name] for name in EACH), key=lambda part: part.ms)
    first = max((by_name[name] for name in ONCE), key=lambda part: part.ms)
    total = sum(by_name[name].ms for name in EACH)
    times = slow.ms / max(slow.ceiling_ms, 1e-9)
    once = sum(by_name[name].ms for name in ONCE)
    return (
        f"{slow.name} holds it back: {slow.ms:.2f} of {total:.2f} ms per copy "
        f"({slow.ms / total:.0%}), {times:.1f} times its ceiling; input (warp) is "
        f"{by_name['warp'].ms / step_ms:.1%} of the step of {step_ms:.2f} ms, and reading an image "
        f"the first time takes {once:.2f} ms, most of it {first.name}"
    )


def print_diagnosis(found: Diagnosis) -> None:
    """The table and the sentence, and as the last line the JSON."""
    print(f"doctor: {found.what}")
    for part in found.parts:
        when = "once" if part.name in ONCE else "each"
        print(f"  {part.ms:9.3f} ms  {part.name:<10} {when}; ", end="")
        print(f"{part.ceiling_ms:9.3f} ms is {part.ceiling}")
    print(f"  {found.step_ms:9.3f} ms  a whole step per copy")
    print(f"  {found.sentence}")
    line = {
        "name": "doctor",
        "what": found.what,
        "unit": "ms",
        "parts": [asdict(part) for part in found.parts],
        "step_ms": found.step_ms,
        "sentence": found.sentence,
        "gpu_problems": found.problems,
        "n": found.config.repeats,
        "machine": asdict(this_machine()),
        "versions": versions(),
        "commit": commit(),
        "synthetic": found.synthetic,
        "quick": found.config.quick,
    }
    print(json.dumps(line))
