"""Training steps per second: ours beside the plain torchvision loop. Run: python -m bench train"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import timm
import timm.optim
import torch
from torch import nn

from bench.config import BenchConfig, settle
from bench.images import network_inputs, raw_images
from bench.machine import forward_flops, matmul_flop_s, synchronise
from bench.networks import build_pair, network_name
from bench.peers import plain_epoch, timm_epoch
from bench.result import Result, Side, interleave, rounded
from bench.start import start_seconds
from shards.labels import CHESTXRAY14, YES
from shards.order import epoch_order, global_batch, steps_per_epoch
from train.batch import micro_batches
from train.config import TrainConfig
from train.dist import World
from train.expand import Expander
from train.optim import build_optim, set_trainable
from train.precision import Precision, set_cuda
from train.recipes import recipe
from train.step import Stepper
from train.store import Store
from train.warp import normalise

_STARTS = 3


@dataclass(frozen=True)
class TrainBench(BenchConfig):
    """How fast a network trains, steps only; and how long a run takes to its first step. Peers: the
    loop that torchvision's users write, in fp32 without channels_last; and timm's network with its
    recommended settings (bf16 autocast, channels_last, its optimiser)."""

    number: int = 48
    """Images of one repetition: an epoch over them is timed."""
    architecture: str = "densenet121"
    """The network; its recipe is chestxray14-ARCHITECTURE, phase 2."""
    size: int = 224
    """Side of the network's input in pixels."""
    batch: int = 16
    """Images of one step."""


def measure(config: TrainBench) -> Result:
    """Ours gathers, mirrors and normalises its images at each step; the peers find their batches
    ready in the device's memory, so the ratio owes nothing to their loaders."""
    config = settle(config)
    settings = recipe(f"chestxray14-{config.architecture}")
    world = World("auto")
    torch.set_num_threads(config.workers)
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as work:
        raw = raw_images(config, Path(work, "raw"))
        store = _store(network_inputs(raw, config, config.size), world.device)
        what = f"epochs over {raw}"
    precision = Precision(settings.precision, world.device)
    set_cuda(world.device, tf32=settings.tf32, few_shapes=True)
    sides = _sides(config, settings, store, world, precision)
    rates = interleave("train", sides, config.repeats)
    ours = rates.pop("ours")
    starts = start_seconds(
        config.architecture, config.size, config.workers, min(config.repeats, _STARTS)
    )
    network = network_name(config.architecture, quick=config.quick)
    what = (
        f"{network} at {config.size} x {config.size}, all weights, batch {config.batch}, {what}; "
        f"ours in {precision.name}, channels_last, fused SGD, on {world.device}"
    )
    return Result(
        name="train",
        what=what,
        peer_name="plain torchvision loop: fp32, SGD, batches ready in memory",
        ours=ours,
        peer=rates.pop("peer"),
        images=_copies(config, store),
        synthetic=raw.synthetic,
        quick=config.quick,
        others=rates,
        extra={
            "precision": precision.name,
            "architecture": network,
            "percent_of_peak": _percent_of_peak(config, precision, world, ours.median),
            "input_percent": _input_percent(config, settings, store, precision, ours.median),
            "start_s": rounded(tuple(starts)),
        },
    )


def _percent_of_peak(config: TrainBench, precision: Precision, world: World, img_s: float) -> float:
    """Of the rate of a large matrix product in the training dtype, measured in this process."""
    model, _ = build_pair(config.architecture, len(CHESTXRAY14), quick=config.quick)
    image = torch.zeros(1, 3, config.size, config.size, device=world.device)
    flops = 3 * forward_flops(model.to(world.device).eval(), image)
    return round(100 * img_s * flops / matmul_flop_s(world.device, precision.input_dtype), 1)


def _input_percent(
    config: TrainBench, settings: TrainConfig, store: Store, precision: Precision, img_s: float
) -> float:
    """The share of a step in which the network waits for its images: gathered, mirrored and
    normalised between the micro-batches. The best of five epochs."""
    expander = Expander({}, settings.stages[0].augment, settings.seed, config.size)
    seconds = []
    for epoch in range(5):
        began = time.perf_counter()
        for batch in _batches(config, settings, len(store)):
            copies = expander.mixed_copies(store, batch, epoch)
            for _ in micro_batches(store, copies, settings.micro_batch, precision.input_dtype):
                pass
        synchronise(store.device)
        seconds.append(time.perf_counter() - began)
    return round(100 * min(seconds) * img_s / _copies(config, store), 2)


def _batches(config: TrainBench, settings: TrainConfig, count: int) -> list[np.ndarray]:
    """An epoch's."""
    order = epoch_order(count, seed=settings.seed, epoch=0)
    steps = range(steps_per_epoch(count, config.batch, "wrap"))
    return [global_batch(order, step, config.batch, "wrap") for step in steps]


def _store(images: np.ndarray, device: torch.device) -> Store:
    """Each image with one of the 15 labels, in turn."""
    labels = np.eye(len(CHESTXRAY14), dtype=np.int8)[np.arange(len(images)) % len(CHESTXRAY14)]
    keys = tuple(f"{number:06d}" for number in range(len(images)))
    return Store(keys, torch.from_numpy(images).to(device), labels)


def _copies(config: TrainBench, store: Store) -> int:
    """Images of one repetition: the last batch is filled up from the epoch's beginning."""
    return steps_per_epoch(len(store), config.batch, "wrap") * config.batch


def _sides(
    config: TrainBench, settings: TrainConfig, store: Store, world: World, precision: Precision
) -> dict[str, Side]:
    model, plain = build_pair(config.architecture, len(CHESTXRAY14), quick=config.quick)
    stage = settings.stages[0]
    phase = stage.phases[-1]
    model = model.to(world.device)
    set_trainable(model, phase)
    stepper = Stepper(
        model=world.wrap(model).train(),
        optim=build_optim(settings.optim, model, phase),
        store=store,
        expander=Expander({}, stage.augment, settings.seed, config.size),
        precision=precision,
        world=world,
        micro_batch=settings.micro_batch,
    )
    plain = plain.to(world.device).train()
    sgd = torch.optim.SGD(plain.parameters(), lr=phase.lr, momentum=settings.optim.momentum)
    batches = _batches(config, settings, len(store))
    ready = [
        (
            normalise(store.images[torch.from_numpy(batch)]).contiguous(),
            torch.from_numpy(store.labels[batch] == YES).float().to(world.device),
        )
        for batch in batches
    ]
    epochs = count()

    def ours() -> int:
        epoch = next(epochs)
        for batch in batches:
            stepper.accumulate(batch, epoch)
            stepper.update()
        synchronise(world.device)
        return len(batches) * config.batch

    def peer(epoch: Callable[..., float], net: nn.Module, optim: torch.optim.Optimizer) -> int:
        epoch(net, optim, ready)
        synchronise(world.device)
        return len(batches) * config.batch

    sides: dict[str, Side] = {"ours": ours, "peer": partial(peer, plain_epoch, plain, sgd)}
    if timm.is_model(config.architecture) and not config.quick:
        net = timm.create_model(config.architecture, num_classes=len(CHESTXRAY14))
        net = net.to(world.device, memory_format=torch.channels_last).train()
        optim = timm.optim.create_optimizer_v2(net, opt="sgd", lr=phase.lr)
        sides[f"timm's {config.architecture}, its settings"] = partial(peer, timm_epoch, net, optim)
    return sides
