"""When a run writes a checkpoint, what stands in it, and how a run goes on from one."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.console import RunFailed, UserError
from train.agreed import agreed_checkpoint
from train.checkpoint import (
    Checkpoint,
    Tensors,
    load_optim,
    numbers_of,
    optim_tensors,
    save_best,
    save_checkpoint,
    weights_of,
)
from train.dist import World, unwrap
from train.models import load_weights
from train.position import Position
from train.settings import differences
from train.step import Stepper
from train.stop import Interrupted, Stop


@dataclass
class Saver:
    """folder: RUN/checkpoints; identity: what a run is, which a checkpoint must share (see
    train.settings); keep: how many checkpoints; every_s: at most so many seconds between two."""

    folder: Path
    world: World
    stop: Stop
    identity: dict[str, Any]
    keep: int
    every_s: float
    saved_at: float = field(default_factory=time.monotonic)
    best_file: str = ""
    best_sha256: str = ""
    passed: frozenset[int] = frozenset()  # checkpoints behind the one that the run went on from

    def latest(self) -> Checkpoint | None:
        """What the run goes on from, the same on all processes, which call it together. UserError
        when it is of other settings or data."""
        found = agreed_checkpoint(self.folder, self.world)
        if found is None:
            return None
        differing = differences(found.state["identity"], self.identity)
        if differing:
            raise UserError(
                f"the checkpoint in {self.folder} is of another run (differing: "
                f"{', '.join(differing[:5])}); take another --run folder, or what that run had"
            )
        self.best_file, self.best_sha256 = found.best_file, found.best_sha256
        self.passed = frozenset(n for n in numbers_of(self.folder) if n > found.number)
        return found

    def wanted(self) -> bool:
        """Whether this process has a reason to write a checkpoint now."""
        due = time.monotonic() - self.saved_at > self.every_s
        return due or self.stop.number is not None

    def save(self, at: Position, stepper: Stepper, buffers: Tensors | None = None) -> None:
        """On all processes together. Interrupted, on each, when a signal asked any for the end;
        RunFailed, on each, when the weights are no numbers. buffers: of gather, if not now."""
        if not are_numbers(unwrap(stepper.model)):
            raise RunFailed(
                f"the weights are no numbers after step {at.step} of epoch {at.epoch + 1}; lower "
                "the phase's lr or take --precision fp32 in a new run (the last checkpoint is from "
                "before)"
            )
        number = int(self.world.max(float(self.stop.number or 0)))
        (joules,) = self.world.sum([at.energy_j])
        buffers = self.gather(stepper) if buffers is None else buffers
        self.write(replace(at, energy_j=joules), stepper, buffers)
        if number:
            raise Interrupted(number)

    def gather(self, stepper: Stepper) -> Tensors:
        """All processes' batch norm statistics, on each; they call it together."""
        return self.world.gather_buffers(_with_statistics(stepper))

    def write(self, at: Position, stepper: Stepper, buffers: Tensors) -> None:
        """On the first process, which waits for no other. Weights that are no numbers are not
        written: what a run goes on from are those before them."""
        if self.world.is_first and are_numbers(unwrap(stepper.model)):
            content = Checkpoint(
                weights=weights_of(unwrap(stepper.model)),
                optim=optim_tensors(stepper.optim),
                state={
                    "position": at.to_json(),
                    "scaler": stepper.precision.scaler.state_dict(),
                    "identity": self.identity,
                    "precision": stepper.precision.name,
                },
                ema=weights_of(stepper.ema.model) if stepper.ema else {},
                buffers=buffers,
                best_file=self.best_file,
                best_sha256=self.best_sha256,
            )
            save_checkpoint(self.folder, content, self.keep, self.passed)
        self.saved_at = time.monotonic()

    def write_best(self, at: Position, model: nn.Module) -> None:
        """The phase's best weights so far; the next checkpoint speaks of them."""
        self.best_file = best_name(at)
        if self.world.is_first:
            self.best_sha256 = save_best(self.folder, self.best_file, model)

    def best(self, at: Position) -> Path:
        """Where a finished phase's best weights lie; the next phase has none yet."""
        self.best_file = self.best_sha256 = ""
        return self.folder / best_name(at)

    def restore(self, found: Checkpoint, stepper: Stepper) -> None:
        """All but the weights, into what a phase built anew."""
        load_optim(stepper.optim, found.optim)
        if found.state["scaler"]:
            stepper.precision.scaler.load_state_dict(found.state["scaler"])
        if stepper.ema:
            load_weights(stepper.ema.model, found.ema, str(self.folder))
        self.world.load_buffers(_with_statistics(stepper), found.buffers)


def are_numbers(model: nn.Module) -> bool:
    """Whether no weight is NaN or infinite. By their norms: 10 ms for DenseNet201 on 2 busy cores,
    where isfinite of each takes 500."""
    norms = torch._foreach_norm([p.detach() for p in model.parameters()])
    return bool(torch.stack(norms).isfinite().all())


def _with_statistics(stepper: Stepper) -> nn.Module:
    """What has batch norm statistics of each process's own: the network, and its average."""
    model = unwrap(stepper.model)
    return nn.ModuleList([model, stepper.ema.model]) if stepper.ema else model


def best_name(at: Position) -> str:
    """Named by its epoch, so that each checkpoint has the best weights of its own past."""
    return f"best-{at.stage + 1}-{at.phase + 1}-{at.progress.best_epoch:05d}.safetensors"
