"""The training loop: stages of phases of epochs of steps, resumable after any step.

Run: python -m train RECIPE --shards DIR --run DIR
"""

import signal
import time
from pathlib import Path
from statistics import median
from types import FrameType

import torch
from torch import nn

from shards.console import Advance, RunFailed, UserError, progress
from shards.labels import Vocabulary
from shards.manifest import check_shards, load_manifest, manifest_hash
from shards.order import epoch_order, global_batch, steps_per_epoch
from train.batch import Expander
from train.checkpoint import Checkpoint, latest_checkpoint, load_optim, save_checkpoint
from train.config import Stage, TrainConfig, expansions_of
from train.dist import World
from train.log import MetricsLog, draw_curves
from train.metrics import Metrics
from train.models import build_model, load_weights
from train.optim import build_optim, set_trainable
from train.phases import Phase, finished
from train.position import Position
from train.precision import Precision
from train.results import best_path, load_best, phase_result, save_best, write_stage
from train.runs import ModelSpec
from train.step import Stepper
from train.store import load_store
from train.transfer import transfer_head
from train.validate import validate
from train.weights import start_model

SPLITS = ("train", "val", "test")


class Interrupted(Exception):
    """A signal asked the run to stop; its checkpoint is written."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Trainer:
    """One run of a recipe on this rank; `run()` trains from the last checkpoint to the end."""

    def __init__(self, config: TrainConfig, shards: Path, run: Path, world: World) -> None:
        """UserError when a data set is missing, or does not match its manifest."""
        self.config, self.shards, self.folder, self.world = config, shards, run, world
        self.precision = Precision(config.precision, world.device)
        self.manifests = [load_manifest(shards / stage.dataset) for stage in config.stages]
        for stage, manifest in zip(config.stages, self.manifests):
            if stage.batch < world.size:
                raise UserError(
                    f"stage {stage.name}: batch is {stage.batch}, fewer than the {world.size} "
                    "processes; start fewer, or take a larger batch"
                )
            check_shards(shards / stage.dataset, manifest, SPLITS)
            expansions_of(stage, manifest.vocabulary)
        self.signal: int | None = None
        self.saved_at = time.monotonic()

    def run(self) -> None:
        """Train all stages. Interrupted after a signal, RunFailed for a loss that is no number."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        checkpoint = latest_checkpoint(self.folder / "checkpoints")
        self.at = Position.from_json(checkpoint.state) if checkpoint else Position()
        self.log = MetricsLog(self.folder, self.at.lines) if self.world.is_first else None
        self.model, vocabulary = self._first_model(checkpoint)
        for stage in self.config.stages[self.at.stage :]:
            vocabulary = self._run_stage(stage, vocabulary, checkpoint)
            checkpoint = None
        if self.log:
            draw_curves(self.folder)
            self.log.close()

    def _first_model(self, checkpoint: Checkpoint | None) -> tuple[nn.Module, Vocabulary]:
        vocabulary = self.manifests[self.at.stage].vocabulary
        torch.manual_seed(self.config.seed)
        if checkpoint is None:
            return start_model(self.config.start, self.config.architecture, vocabulary)
        model = build_model(self.config.architecture, len(vocabulary))
        load_weights(model, checkpoint.weights, str(self.folder / "checkpoints"))
        return model, vocabulary

    def _run_stage(
        self, stage: Stage, old: Vocabulary, checkpoint: Checkpoint | None
    ) -> Vocabulary:
        manifest = self.manifests[self.at.stage]
        vocabulary = manifest.vocabulary
        if checkpoint is None and (stage.keep_neurons or old != vocabulary):
            # Seeded here, so that a resumed run draws the same new neurons.
            torch.manual_seed(self.config.seed + self.at.stage)
            keep = {kept.label: kept.old_label for kept in stage.keep_neurons}
            transfer_head(self.model, old, vocabulary, keep)
        self.model = self.model.to(self.world.device)
        self.stores = {
            split: load_store(
                self.shards / stage.dataset,
                manifest,
                split,
                size=self.config.size,
                config=self.config.input,
                device=self.world.device,
                shown=self.world.is_first,
            )
            for split in SPLITS
        }
        self.expansions = expansions_of(stage, vocabulary)
        while self.at.phase < len(stage.phases):
            self._run_phase(stage, stage.phases[self.at.phase], checkpoint)
            checkpoint = None
        if self.world.is_first:
            spec = self._spec(stage)
            write_stage(self.folder / stage.name, self.model, spec, self.stores, self.at.phases)
        self.at.end_stage()
        return vocabulary

    def _run_phase(self, stage: Stage, phase: Phase, checkpoint: Checkpoint | None) -> None:
        set_trainable(self.model, phase)
        self.optim = build_optim(self.config.optim, self.model, phase)
        if checkpoint:
            load_optim(self.optim, checkpoint.optim)
        stepper = Stepper(
            model=self.world.wrap(self.model),
            optim=self.optim,
            store=self.stores["train"],
            expander=Expander(self.expansions, stage.mirror, self.config.seed, self.config.size),
            precision=self.precision,
            world=self.world,
            micro_batch=self.config.micro_batch,
        )
        steps = steps_per_epoch(len(stepper.store), stage.batch, stage.remainder)
        label = f"{stage.name} {self.at.phase + 1}/{len(stage.phases)} {phase.name}"
        with progress(label, phase.epochs * steps, shown=self.world.is_first) as advance:
            advance(self.at.progress.epoch * steps + self.at.step)
            while not finished(phase, self.at.progress):
                self._run_epoch(stage, phase, stepper, steps, advance)
        self.world.barrier()  # the first rank may still be writing the best weights
        load_best(best_path(self.folder, stage.name, self.at.phase), self.model)
        result = phase_result(phase, self.at, self._validate(stage, "test"))
        self.at.end_phase(result)

    def _run_epoch(
        self, stage: Stage, phase: Phase, stepper: Stepper, steps: int, advance: Advance
    ) -> None:
        started, durations, copies = time.monotonic(), [], 0
        epoch = self.at.epoch
        order = epoch_order(len(stepper.store), seed=self.config.seed, epoch=epoch)
        self.model.train()
        for step in range(self.at.step, steps):
            began = time.monotonic()
            batch = global_batch(order, step, stage.batch, stage.remainder)
            loss, known, count = stepper.accumulate(batch, epoch)
            loss_sum, stop = self._agree(loss, [stepper.store.keys[i] for i in batch])
            stepper.update()
            self.at.step = step + 1
            self.at.loss_sum += loss_sum
            self.at.loss_count += known
            copies += count
            durations.append(time.monotonic() - began)
            advance(1, note=f"loss {self.at.train_loss:.4f}")
            if stop:
                self._save()
        val = self._validate(stage, "val")
        train_loss = self.at.train_loss
        self.at.end_epoch(val.loss)
        if self.at.progress.improved and self.world.is_first:
            save_best(best_path(self.folder, stage.name, self.at.phase), self.model)
        if self.log:
            self.log.write(
                {
                    "stage": stage.name,
                    "phase": self.at.phase + 1,
                    "phase_name": phase.name,
                    "epoch": epoch + 1,
                    "train_loss": train_loss,
                    "val_loss": val.loss,
                    "val_accuracy": val.accuracy,
                    "val_auroc": val.auroc_mean,
                    "lr": phase.lr,
                    "seconds": time.monotonic() - started,
                    "step_s": median(durations) if durations else None,
                    "img_s": copies / sum(durations) if durations else None,
                    "copies": copies,
                    "time": time.time(),
                }
            )
            self.at.lines = self.log.lines
        self._save()

    def _agree(self, loss: float, keys: list[str]) -> tuple[float, bool]:
        """Between backward and update, in one exchange: the loss summed over the ranks, and whether
        to write a checkpoint now. RunFailed on every rank when any rank's loss is no number."""
        due = time.monotonic() - self.saved_at > self.config.checkpoint_every_s
        stop = due or self.signal is not None
        total, stops = self.world.sum([loss, float(stop)])
        if not abs(total) < float("inf"):
            raise RunFailed(
                f"the loss is {total} in stage {self.at.stage + 1}, epoch {self.at.epoch + 1}, "
                f"step {self.at.step + 1}; its batch: {', '.join(keys[:16])}; lower the phase's lr "
                "or take --precision fp32 in a new run (the last checkpoint is from before)"
            )
        return total, stops > 0

    def _validate(self, stage: Stage, split: str) -> Metrics:
        """Validation sees the stage's copies (if it says so), test the images; neither mirrors."""
        expand = split == "val" and stage.expand_validation
        self.world.average_buffers(self.model)
        return validate(
            self.model,
            self.stores[split],
            Expander(self.expansions if expand else {}, 0.0, self.config.seed, self.config.size),
            exclusive=self.manifests[self.at.stage].exclusive,
            world=self.world,
            precision=self.precision,
            micro_batch=self.config.micro_batch,
        )

    def _spec(self, stage: Stage) -> ModelSpec:
        manifest = self.manifests[self.at.stage]
        return ModelSpec(
            architecture=self.config.architecture,
            labels=manifest.labels,
            exclusive=manifest.exclusive,
            size=self.config.size,
            shorter_side=manifest.shorter_side,
            preprocessing_version=manifest.preprocessing_version,
            dataset=manifest.dataset,
            manifest_hash=manifest_hash(self.shards / stage.dataset),
            recipe=self.config.recipe,
            stage=stage.name,
            synthetic=manifest.synthetic,
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _save(self) -> None:
        """Write a checkpoint; when a signal asked for the end, end (Interrupted, on every rank)."""
        if self.world.is_first:
            folder = self.folder / "checkpoints"
            save_checkpoint(folder, self.model, self.optim, self.at.to_json())
        self.saved_at = time.monotonic()
        number = int(self.world.max(float(self.signal or 0)))
        if number:
            raise Interrupted(number)
