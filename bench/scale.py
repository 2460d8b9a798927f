"""Training on one process and on two with as many threads each. Run: python -m bench scale

The processes are torchrun's, as in a real run: each one is `python -m bench.scale`.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.config import NetworkBench, settle
from bench.networks import build_pair, network_name
from bench.result import Rates, Result
from shards.console import RunFailed, UserError, progress
from shards.labels import CHESTXRAY14
from train.augment import NONE
from train.dist import World
from train.expand import Expander
from train.optim import OptimConfig, build_optim
from train.phases import Phase
from train.precision import Precision, set_cuda
from train.step import Stepper
from train.store import Store

_PROCESSES = 2
_STEPS = 6  # of each run; the first two go unmeasured
_LIMIT_S = 600  # of a run: one hangs where the processes cannot reach each other


@dataclass(frozen=True)
class ScaleBench(NetworkBench):
    """How training scales from one process to two, each with half the cores or a GPU of its own,
    and with a batch of its own: gradients are exchanged as in a real run."""

    repeats: int = 3
    """Runs of either number of processes, in turns."""
    batch: int = 8
    """Images of one step and process."""


def measure(config: ScaleBench) -> Result:
    """Alternate runs of two processes and of one. UserError on a machine with a single GPU."""
    if torch.cuda.is_available() and torch.cuda.device_count() < _PROCESSES:
        raise UserError(f"scale needs {_PROCESSES} GPUs, and torch sees one; leave it out here")
    config = settle(config)
    found: dict[int, list[float]] = {_PROCESSES: [], 1: []}
    with progress("scale", len(found) * config.repeats) as advance:
        for _ in range(config.repeats):
            for processes, rates in found.items():
                rates.append(_rate(processes, config))
                advance(1, f"{processes} processes {rates[-1]:.1f} img/s")
    network = network_name(config.architecture, quick=config.quick)
    return Result(
        name="scale",
        what=f"{network} at {config.size} x {config.size}, batch {config.batch} for each process, "
        f"2 processes beside 1, threads of each: {_threads()}; constant images",
        peer_name="one process",
        ours=Rates(tuple(found[_PROCESSES])),
        peer=Rates(tuple(found[1])),
        images=config.batch * (_STEPS - 2),
        synthetic=True,
        quick=config.quick,
    )


def _threads() -> int:
    return max(1, len(os.sched_getaffinity(0)) // _PROCESSES)


def _rate(processes: int, config: ScaleBench) -> float:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    settings = json.dumps({"architecture": config.architecture, "size": config.size})
    worker = ["-m", "--", "bench.scale", settings, str(config.batch), str(int(config.quick))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(_threads())}
    command = [sys.executable, *torchrun, *worker]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(
            f"{processes} processes did not end within {_LIMIT_S} s; take a smaller --batch"
        ) from error
    if done.returncode:
        raise RunFailed(f"{processes} processes ended with {done.returncode}: {done.stderr[-500:]}")
    return float(done.stdout.splitlines()[-1])


def _work(settings: dict[str, Any], batch: int, quick: bool) -> None:
    """One process's part: steps on constant images; the first prints the rate of all."""
    config = replace(ScaleBench(batch=batch, quick=quick), **settings)
    world = World("auto")
    torch.set_num_threads(_threads())
    set_cuda(world.device, tf32=True, few_shapes=True)
    count = batch * world.size
    labels = np.eye(len(CHESTXRAY14), dtype=np.int8)[np.arange(count) % len(CHESTXRAY14)]
    images = torch.randint(0, 256, (count, config.size, config.size), dtype=torch.uint8)
    keys = tuple(f"{number:06d}" for number in range(count))
    model, _ = build_pair(config.architecture, len(CHESTXRAY14), quick=quick)
    model = model.to(world.device).train()
    stepper = Stepper(
        model=world.wrap(model),
        optim=build_optim(OptimConfig(), model, Phase("all", 1, "all", 1e-4)),
        store=Store(keys, images.to(world.device), labels),
        expander=Expander({}, NONE, 0, config.size),
        precision=Precision("auto", world.device),
        world=world,
        micro_batch=batch,
    )
    seconds = []
    for step in range(_STEPS):
        world.barrier()
        began = time.perf_counter()
        stepper.accumulate(np.arange(count), step)
        stepper.update()
        world.barrier()
        seconds.append(time.perf_counter() - began)
    if world.is_first:
        print(count / median(seconds[2:]), flush=True)
    world.close()  # while Python is there: its own end would meet gloo's threads at work


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")
