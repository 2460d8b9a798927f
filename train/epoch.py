"""The epochs of a phase: steps, then a validation, a line of metrics and a checkpoint."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
import torch
from torch import nn

from shards.console import Advance, RunFailed
from shards.order import global_batch, samples_of, steps_per_epoch
from train.checkpoint import Tensors
from train.config import Stage
from train.dist import is_lost_peer, unwrap
from train.log import MetricsLog
from train.memory_limit import MicroBatch, is_out_of_memory, making_optim_state, what_it_says
from train.metrics import Metrics
from train.monitor import Monitor
from train.optim import set_lr, set_mode
from train.phases import Phase
from train.position import Position
from train.saver import Saver
from train.schedule import learning_rate
from train.step import Stepper
from train.stop import Interrupted

Validate = Callable[[nn.Module, str], Metrics]  # (network, split); all ranks call it together


@dataclass
class PhaseRun:
    """A phase being trained. order: (epoch) -> its samples or copies, of all ranks; labels: of the
    network's outputs."""

    stage: Stage
    phase: Phase
    at: Position
    stepper: Stepper
    saver: Saver
    micro_batch: MicroBatch
    validate: Validate
    order: Callable[[int], np.ndarray]
    labels: tuple[str, ...]
    clock: "Clock"
    log: MetricsLog | None
    durations: list[float] = field(default_factory=list)
    batches: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = unwrap(self.stepper.model)
        self.statistics = Statistics(model)
        self.exchanging = any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())

    def epoch(self, advance: Advance) -> None:
        """One epoch, or what is left of it after a resume."""
        stage, at, epoch = self.stage, self.at, self.at.epoch
        order = self.order(epoch)
        steps = range(steps_per_epoch(len(order), stage.batch, stage.remainder))
        self.batches = [global_batch(order, step, stage.batch, stage.remainder) for step in steps]
        self.stepper.expect(self.batches[at.step :])
        lr = learning_rate(self.phase.lr, self.phase.schedule, at.progress.val_losses)
        set_lr(self.stepper.optim, lr)
        set_mode(unwrap(self.stepper.model), self.phase)
        self.durations = []
        self.clock.start()
        for step in steps[at.step :]:
            stop = self._step(step, self.batches[step], epoch)
            advance(1, note=self._note())
            if stop:
                self.clock.lap(at)
                self.saver.save(at, self.stepper)
        val = self._validated()
        self.clock.lap(at)
        self._end_epoch(val, lr)
        self.saver.save(at, self.stepper)

    def _step(self, step: int, batch: np.ndarray, epoch: int) -> bool:
        """One step of all ranks; whether a checkpoint is wanted."""
        began, at = time.monotonic(), self.at
        self.statistics.keep()
        loss, known, copies = self._accumulate(batch, epoch)
        keys = [self.stepper.store.keys[i] for i in samples_of(batch)]
        loss_sum, stop = self._agree(loss, keys)
        self._update()
        self.durations.append(time.monotonic() - began)
        at.step = step + 1
        at.loss_sum += loss_sum
        at.loss_count += known
        at.copies += copies
        at.step_seconds += self.durations[-1]
        return stop

    def _accumulate(self, batch: np.ndarray, epoch: int) -> tuple[float, int, int]:
        """Stepper.accumulate, in smaller parts where memory runs out. A step that a signal meets is
        left: nothing but batch norm's statistics has moved, and those go back."""
        world = self.stepper.world
        self._seed(epoch)
        try:
            return self.stepper.accumulate(batch, epoch, self._leave)
        except Interrupted:
            self.statistics.restore()
            self.clock.lap(self.at)
            self.saver.save(self.at, self.stepper)
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = what_it_says(error)
        # Behind the handler, whose traceback holds the step's activations.
        tried = self.stepper.micro_batch
        smaller = self.micro_batch.halve(tried, reason, alone=world.size == 1)
        self.statistics.restore()
        self.stepper = replace(self.stepper, micro_batch=smaller)
        self.stepper.expect(self.batches[self.at.step :])  # what was made ready is taken already
        return self._accumulate(batch, epoch)

    def _update(self) -> None:
        with making_optim_state():
            self.stepper.update()

    def _leave(self) -> AbstractContextManager[None]:
        """Of a step, what all ranks leave together. Not where batch norm makes an exchange of every
        forward pass: such a step (on GPUs, seconds) is finished."""
        if self.exchanging and self.stepper.world.size > 1:
            return nullcontext()
        return self.saver.stop.together(self.stepper.world)

    def _seed(self, epoch: int) -> None:
        """Dropout's numbers are addressed by (seed, stage, epoch, step, rank): there is no state of
        a generator to be saved, and a resumed run draws the same."""
        words = (self.at.stage, epoch, self.at.step, self.stepper.world.rank)
        sequence = np.random.SeedSequence((self.stepper.expander.seed, *words))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def _agree(self, loss: float, keys: list[str]) -> tuple[float, bool]:
        """Between backward and update, in one exchange: the loss summed over the ranks, and whether
        to write a checkpoint now. RunFailed on every rank when any rank's loss is no number; the
        checkpoint is from before that step."""
        wanted = self.saver.wanted()
        total, stops = self.stepper.world.sum([loss, float(wanted)])
        if not abs(total) < float("inf"):
            self.statistics.restore()
            self._write(self.saver.gather(self.stepper))
            raise RunFailed(
                f"the loss is {total} in stage {self.stage.name}, epoch {self.at.epoch + 1}, "
                f"step {self.at.step + 1}; its batch: {', '.join(keys)}; look at these images, "
                "lower the phase's lr or take --precision fp32 in a new run (the last checkpoint "
                "is from before)"
            )
        return total, stops > 0

    def _validated(self) -> Metrics:
        stepper = self.stepper
        model = unwrap(stepper.model)
        stepper.world.check_same(model)
        before = self.saver.gather(stepper)
        try:
            stepper.world.average_buffers(model)
            if stepper.ema:
                stepper.world.average_buffers(stepper.ema.model)
            return self.validate(stepper.ema.model if stepper.ema else model, "val")
        except Interrupted:  # all steps are done; the resumed run averages and validates
            self.clock.lap(self.at)
            self.saver.save(self.at, stepper, before)
            raise
        except RuntimeError as error:
            if is_lost_peer(error):
                self._write(before)
            raise

    def _end_epoch(self, val: Metrics, lr: float) -> None:
        """The line of metrics, of the whole epoch wherever it was stopped in between; the best
        weights."""
        at, stepper = self.at, self.stepper
        (energy,) = stepper.world.sum([at.energy_j])
        line = {
            "stage": self.stage.name,
            "phase": at.phase + 1,
            "phase_name": self.phase.name,
            "epoch": at.epoch + 1,
            "train_loss": at.train_loss,
            "val_loss": val.loss,
            "val_accuracy": val.accuracy,
            "val_auroc": val.auroc_mean,
            "val_f1": val.f1_mean,
            "val_auroc_by_label": dict(zip(self.labels, val.auroc, strict=True)),
            "val_f1_by_label": dict(zip(self.labels, val.f1, strict=True)),
            "lr": lr,
            "seconds": at.seconds,
            "step_s": median(self.durations) if self.durations else None,
            "img_s": at.copies / at.step_seconds if at.step_seconds else None,
            "copies": at.copies,
            "micro_batch": stepper.micro_batch,
            "energy_j": energy or None,
            "time": time.time(),
        }
        at.end_epoch(val.loss, val.accuracy, self.phase.keep)
        if at.progress.improved:
            self.saver.write_best(at, stepper.ema.model if stepper.ema else unwrap(stepper.model))
        if self.log:
            self.log.write(line)
            at.lines = self.log.lines

    def _note(self) -> str:
        rate = self.at.copies / max(self.at.step_seconds, 1e-9)
        gpu = self.clock.monitor.note()
        return f"loss {self.at.train_loss:.4f}, {rate:.0f} img/s{f', {gpu}' if gpu else ''}"

    def _write(self, buffers: Tensors) -> None:
        """A checkpoint before the run ends, for which no other rank is waited."""
        self.clock.lap(self.at)
        self.saver.write(self.at, self.stepper, buffers)


class Clock:
    """Adds the time and the GPU's energy between its calls to a position."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.start()

    def start(self) -> None:
        """From now on."""
        self._at, self._energy = time.monotonic(), self.monitor.energy_j()

    def lap(self, at: Position) -> None:
        """Since the last call."""
        began, before = self._at, self._energy
        self.start()
        at.seconds += self._at - began
        if before is not None and self._energy is not None:
            at.energy_j += self._energy - before


class Statistics:
    """A network's batch norm statistics and counters: a step that is not finished gives them back.

    One fused copy for each type: a clone of each of DenseNet201's 600 buffers is as many kernels.
    """

    def __init__(self, model: nn.Module) -> None:
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        self._pairs = [([b.clone() for b in group], group) for group in by_dtype.values()]

    def keep(self) -> None:
        """As they are now."""
        for kept, buffers in self._pairs:
            torch._foreach_copy_(kept, buffers)

    def restore(self) -> None:
        """As they were kept."""
        for kept, buffers in self._pairs:
            torch._foreach_copy_(buffers, kept)
