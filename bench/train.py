"""Training steps per second: ours beside the plain torchvision loop. Run: python -m bench train"""

import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch

from bench.config import BenchConfig, settle
from bench.images import network_inputs, raw_images
from bench.machine import synchronise
from bench.networks import build_pair, network_name
from bench.peers import plain_epoch
from bench.result import Result, Side, interleave
from shards.labels import CHESTXRAY14, YES
from shards.order import epoch_order, global_batch, steps_per_epoch
from train.batch import Expander
from train.config import TrainConfig
from train.dist import World
from train.optim import build_optim, set_trainable
from train.precision import Precision
from train.recipes import recipe
from train.step import Stepper
from train.store import Store
from train.warp import normalise


@dataclass(frozen=True)
class TrainBench(BenchConfig):
    """How fast a network trains, steps only. Peer: the loop that torchvision's users write, in fp32
    without channels_last."""

    number: int = 48
    """Images of one repetition: an epoch over them is timed."""
    architecture: str = "densenet121"
    """The network; its recipe is chestxray14-ARCHITECTURE, phase 2."""
    size: int = 224
    """Side of the network's input in pixels."""
    batch: int = 16
    """Images of one step."""


def measure(config: TrainBench) -> Result:
    """Ours gathers, mirrors and normalises its images at each step; the peer finds its batches
    ready in the device's memory, so the ratio owes nothing to its loader."""
    config = settle(config)
    settings = recipe(f"chestxray14-{config.architecture}")
    world = World("auto")
    torch.set_num_threads(config.workers)
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as work:
        raw = raw_images(config, Path(work, "raw"))
        store = _store(network_inputs(raw, config, config.size), world.device)
        what = f"epochs over {raw}"
    precision = Precision(settings.precision, world.device)
    ours, peer = _sides(config, settings, store, world, precision)
    rates = interleave("train", {"ours": ours, "peer": peer}, config.repeats)
    network = network_name(config.architecture, quick=config.quick)
    what = (
        f"{network} at {config.size} x {config.size}, all weights, batch {config.batch}, {what}; "
        f"ours in {precision.name}, channels_last, fused SGD, on {world.device}"
    )
    return Result(
        name="train",
        what=what,
        peer_name="plain torchvision loop: fp32, SGD, batches ready in memory",
        ours=rates["ours"],
        peer=rates["peer"],
        images=_copies(config, store),
        synthetic=raw.synthetic,
        quick=config.quick,
        extra={"precision": precision.name, "architecture": network},
    )


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
) -> tuple[Side, Side]:
    model, plain = build_pair(config.architecture, len(CHESTXRAY14), quick=config.quick)
    stage = settings.stages[0]
    phase = stage.phases[-1]
    model = model.to(world.device)
    set_trainable(model, phase)
    stepper = Stepper(
        model=world.wrap(model).train(),
        optim=build_optim(settings.optim, model, phase),
        store=store,
        expander=Expander({}, stage.mirror, settings.seed, config.size),
        precision=precision,
        world=world,
        micro_batch=settings.micro_batch,
    )
    plain = plain.to(world.device).train()
    sgd = torch.optim.SGD(plain.parameters(), lr=phase.lr, momentum=settings.optim.momentum)
    order = epoch_order(len(store), seed=settings.seed, epoch=0)
    steps = range(steps_per_epoch(len(store), config.batch, "wrap"))
    batches = [global_batch(order, step, config.batch, "wrap") for step in steps]
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

    def peer() -> int:
        plain_epoch(plain, sgd, ready)
        synchronise(world.device)
        return len(batches) * config.batch

    return ours, peer
