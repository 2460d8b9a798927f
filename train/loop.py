"""The training loop: stages of phases of epochs of steps, resumable after any step.

Run: python -m train RECIPE --shards DIR --run DIR
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shards.console import RunFailed, UserError, progress, warn
from shards.labels import Vocabulary
from shards.manifest import Manifest, check_shards, load_manifest, manifest_hash
from shards.order import copy_order, epoch_order, steps_per_epoch
from train.augment import NONE
from train.checkpoint import Checkpoint, save_best
from train.config import (
    Stage,
    TrainConfig,
    check_kept,
    check_stage,
    expansions_of,
    loss_of,
    vocabulary_of,
)
from train.dist import World, is_lost_peer
from train.ema import Ema
from train.epoch import Clock, PhaseRun
from train.expand import Expander
from train.load import load_stores
from train.log import MetricsLog, draw_curves, write_splits
from train.memory_limit import MicroBatch, is_out_of_memory, making_optim_state, what_it_says
from train.metrics import Metrics
from train.models import build_model, load_weights
from train.monitor import Monitor
from train.optim import build_optim, check_optim, set_trainable
from train.phases import Phase, finished
from train.position import Position
from train.precision import Precision, set_cuda
from train.results import TEST_PRECISION, best_path, load_best, phase_result, write_stage
from train.runs import ModelSpec, read_json
from train.sampling import balanced_copies, balanced_order
from train.saver import Saver
from train.settings import identity_of, note_start
from train.step import Stepper
from train.stop import Interrupted, Stop
from train.store import Store, select_labels
from train.transfer import transfer_head
from train.validate import validate
from train.weights import start_model

SPLITS = ("train", "val", "test")


class Trainer:
    """One run of a recipe on this rank; `run()` trains from the last checkpoint to the end."""

    def __init__(self, config: TrainConfig, shards: Path, run: Path, world: World) -> None:
        """UserError when a data set is missing, or does not match its manifest."""
        self.config, self.shards, self.folder, self.world = config, shards, run, world
        self.precision = Precision(config.precision, world.device)
        set_cuda(world.device, tf32=config.tf32, few_shapes=True)
        self.manifests = [load_manifest(shards / stage.dataset) for stage in config.stages]
        self.vocabularies = []
        for stage, manifest in zip(config.stages, self.manifests):
            _check_splits(shards / stage.dataset, manifest)
            check_shards(shards / stage.dataset, manifest, SPLITS)
            self.vocabularies.append(vocabulary_of(stage, manifest))
            check_stage(config, stage, self.vocabularies[-1], world.size)
        # Found now, not after the days that the stage before takes; the first one's are found when
        # the start is loaded.
        for number, stage in enumerate(config.stages[1:]):
            check_kept(stage, *self.vocabularies[number : number + 2])
        check_optim(config.optim, world.device)
        world.check_sync_norm(config.sync_norm)
        self.stop, self.monitor = Stop(), Monitor(world.device)
        self.micro_batch = MicroBatch(run, config.micro_batch, auto=config.auto_micro_batch)
        self.saver = Saver(
            run / "checkpoints",
            world,
            self.stop,
            identity_of(config, shards, self.manifests),
            config.keep_checkpoints,
            config.checkpoint_every_s,
        )

    def run(self) -> None:
        """Train all stages. Interrupted after a signal; RunFailed for a loss that is no number, for
        processes that diverge, and where memory runs out. UserError for another run's checkpoint.
        """
        self.stop.listen()
        try:
            self._run()
        except (RuntimeError, MemoryError) as error:
            if self.stop.number is not None and is_lost_peer(error):
                raise Interrupted(self.stop.number) from error  # it has obeyed the same signal
            if is_out_of_memory(error):
                raise RunFailed(
                    f"out of memory ({what_it_says(error)}); lower --micro-batch or --size, or "
                    "take --input.store host"
                ) from error
            raise

    def check_finished(self) -> None:
        """UserError where a finished stage was trained on other data than what is there now."""
        for stage in self.config.stages:
            now = manifest_hash(self.shards / stage.dataset)
            if read_json(self.folder / stage.name / "model.json").get("manifest_hash", now) != now:
                raise UserError(
                    f"{self.folder} is finished, and was trained on another {stage.dataset} than "
                    f"is in {self.shards} now; take another --run folder, or what that run had"
                )

    def _run(self) -> None:
        checkpoint = self.saver.latest()
        if checkpoint and self.world.is_first:
            self._compare_precision(checkpoint)
        self.at = Position.from_json(checkpoint.state["position"]) if checkpoint else Position()
        if not self.world.is_first:
            self.at.energy_j = 0.0  # a checkpoint has that of all processes
        self.log = MetricsLog(self.folder, self.at.lines) if self.world.is_first else None
        with self.stop.together(self.world):
            self.model, vocabulary = self._first_model(checkpoint)
        for stage in self.config.stages[self.at.stage :]:
            vocabulary = self._run_stage(stage, vocabulary, checkpoint)
            checkpoint = None
        if self.log:
            self.log.close()

    def _compare_precision(self, checkpoint: Checkpoint) -> None:
        """`auto` may be another one on this device: no error, since a run may go on elsewhere."""
        before, now = checkpoint.state.get("precision", self.precision.name), self.precision.name
        if before != now:
            warn(
                f"this run was trained in {before} so far and goes on in {now}, which is what "
                f"--precision {self.config.precision} means on this device "
                f"({self.world.device.type}); to keep {before}, go on where it began"
            )

    def _note_start(self, stage: Stage, taken: dict[str, Any]) -> None:
        if self.world.is_first:
            device, precision = self.world.device.type, self.precision.name
            own = {"stage": stage.name, "device": device, "precision": precision}
            note_start(self.folder, {**own, "micro_batch": self.micro_batch.now, **taken})

    def _first_model(self, checkpoint: Checkpoint | None) -> tuple[nn.Module, Vocabulary]:
        config, vocabulary = self.config, self.vocabularies[self.at.stage]
        name, head, size = config.architecture, config.head, config.size
        torch.manual_seed(config.seed)
        if checkpoint is None:
            return start_model(config.start, name, vocabulary, head=head, size=size)
        model = build_model(name, len(vocabulary), head=head, size=size)
        load_weights(model, checkpoint.weights, str(self.folder / "checkpoints"))
        return model, vocabulary

    def _run_stage(
        self, stage: Stage, old: Vocabulary, checkpoint: Checkpoint | None
    ) -> Vocabulary:
        vocabulary = self.vocabularies[self.at.stage]
        if checkpoint is None and (stage.keep_neurons or old != vocabulary):
            # Seeded here, so that a resumed run draws the same new neurons.
            torch.manual_seed(self.config.seed + self.at.stage)
            keep = {kept.label: kept.old_label for kept in stage.keep_neurons}
            transfer_head(self.model, old, vocabulary, keep)
        self.model = self.world.sync_norm(self.model.to(self.world.device), self.config.sync_norm)
        self.stores = self._load_stores(stage, vocabulary)
        self.expansions = expansions_of(stage, vocabulary)
        self.loss = loss_of(stage, vocabulary, self.world.device)
        self._check_known(stage, vocabulary)
        while self.at.phase < len(stage.phases):
            self._run_phase(stage, stage.phases[self.at.phase], checkpoint)
            checkpoint = None
        if self.world.is_first:
            spec = self._spec(stage)
            draw_curves(self.folder)  # before the stage counts as finished
            write_stage(self.folder / stage.name, self.model, spec, self.stores, self.at.phases)
        for store in self.stores.values():
            store.close()
        self.stores = {}  # the next stage's are chosen by what memory is free
        self.at.end_stage()
        return vocabulary

    def _check_known(self, stage: Stage, vocabulary: Vocabulary) -> None:
        """UserError where there is nothing to learn, or nothing to choose the best epoch by."""
        chosen = any(phase.keep != "last" for phase in stage.phases)
        for split in ("train", "val") if chosen else ("train",):
            if not self.loss.terms(self.stores[split].labels).any():
                raise UserError(
                    f"stage {stage.name}: no image of {split} has a known label (of: "
                    f"{', '.join(vocabulary.names)}); ingest with labels, or take other --stages."
                    f"{stage.name}.labels"
                )

    def _load_stores(self, stage: Stage, vocabulary: Vocabulary) -> dict[str, Store]:
        manifest = self.manifests[self.at.stage]
        stores = load_stores(
            self.shards / stage.dataset,
            manifest,
            SPLITS,
            size=self.config.size,
            config=self.config.input,
            world=self.world,
            note=partial(self._note_start, stage),
            stop=self.stop,
        )
        if self.world.is_first:
            keys = {split: store.keys for split, store in stores.items()}
            write_splits(self.folder / stage.name, keys)
        columns = [manifest.vocabulary.index(name) for name in vocabulary.names]
        return {split: select_labels(store, columns) for split, store in stores.items()}

    def _run_phase(self, stage: Stage, phase: Phase, checkpoint: Checkpoint | None) -> None:
        stepper = self._stepper(stage, phase)
        if checkpoint:
            self.saver.restore(checkpoint, stepper)
        run = PhaseRun(
            stage=stage,
            phase=phase,
            at=self.at,
            stepper=stepper,
            saver=self.saver,
            micro_batch=self.micro_batch,
            validate=partial(self._validate, stage),
            order=partial(self._order, stage, stepper),
            labels=self.vocabularies[self.at.stage].names,
            clock=Clock(self.monitor),
            log=self.log,
        )
        units = len(self._order(stage, stepper, self.at.epoch))
        steps = steps_per_epoch(units, stage.batch, stage.remainder)
        if not steps:
            raise UserError(
                f"stage {stage.name}: an epoch has {units} units of {stage.batch_unit}, the batch "
                f"is {stage.batch}, and --remainder drop leaves no step; take a smaller batch, or "
                "wrap"
            )
        label = f"{stage.name} {self.at.phase + 1}/{len(stage.phases)} {phase.name}"
        with progress(label, phase.epochs * steps, shown=self.world.is_first) as advance:
            advance(self.at.progress.epoch * steps + self.at.step)
            while not finished(phase, self.at.progress):
                run.epoch(advance)
        self._end_phase(stage, phase)

    def _stepper(self, stage: Stage, phase: Phase) -> Stepper:
        set_trainable(self.model, phase)
        config = self.config
        with making_optim_state():
            optim = build_optim(config.optim, self.model, phase)
        return Stepper(
            model=self.world.wrap(self.model),
            optim=optim,
            store=self.stores["train"],
            expander=Expander(self.expansions, stage.augment, config.seed, config.size),
            precision=self.precision,
            world=self.world,
            micro_batch=self.micro_batch.now,
            loss=self.loss,
            clip_norm=config.optim.clip_norm,
            ema=Ema(self.model, config.ema_decay) if config.ema_decay else None,
        )

    def _end_phase(self, stage: Stage, phase: Phase) -> None:
        """Go back to the phase's best weights, which the next phase begins with, and test them."""
        self.world.barrier()  # the first rank may still be writing them
        load_best(self.saver.best(self.at), self.model)
        test = self._test(stage)
        if self.world.is_first:
            path = best_path(self.folder, stage.name, self.at.phase)
            save_best(path.parent, path.name, self.model)
        self.at.end_phase(phase_result(phase, self.at, test))

    def _test(self, stage: Stage) -> Metrics:
        """The test split in fp32 without TF32, as the exported model computes: in bf16 one of 45
        images was called otherwise."""
        device = self.world.device
        set_cuda(device, tf32=False, few_shapes=True)
        found = self._validate(stage, self.model, "test", Precision(TEST_PRECISION, device))
        set_cuda(device, tf32=self.config.tf32, few_shapes=True)
        return found

    def _order(self, stage: Stage, stepper: Stepper, epoch: int) -> np.ndarray:
        """The epoch's samples, of all ranks, as positions in the store; or its copies."""
        labels, seed = stepper.store.labels, self.config.seed
        factors = stepper.expander.factors(labels)
        if stage.balance:
            draw = balanced_order if stage.batch_unit == "source" else balanced_copies
            return draw(labels, factors, seed=seed, epoch=epoch)
        samples = epoch_order(len(labels), seed=seed, epoch=epoch)
        if stage.batch_unit == "source":
            return samples
        return copy_order(samples, factors[samples], seed=seed, epoch=epoch)

    def _validate(
        self, stage: Stage, model: nn.Module, split: str, precision: Precision | None = None
    ) -> Metrics:
        """Validation sees the stage's copies (if it says so), test the images; neither augments.
        precision: by default the training's."""
        expand = split == "val" and stage.expand_validation
        return validate(
            model,
            self.stores[split],
            Expander(self.expansions if expand else {}, NONE, self.config.seed, self.config.size),
            exclusive=self.vocabularies[self.at.stage].exclusive,
            world=self.world,
            precision=precision or self.precision,
            micro_batch=self.micro_batch.now,
            loss=self.loss,
            leave=partial(self.stop.together, self.world),
        )

    def _spec(self, stage: Stage) -> ModelSpec:
        manifest, vocabulary = self.manifests[self.at.stage], self.vocabularies[self.at.stage]
        return ModelSpec(
            architecture=self.config.architecture,
            labels=vocabulary.names,
            exclusive=vocabulary.exclusive,
            size=self.config.size,
            shorter_side=manifest.shorter_side,
            preprocessing_version=manifest.preprocessing_version,
            dataset=manifest.dataset,
            manifest_hash=manifest_hash(self.shards / stage.dataset),
            recipe=self.config.recipe,
            stage=stage.name,
            synthetic=manifest.synthetic,
            output=stage.output,
            head=self.config.head,
            depth=manifest.depth,
        )


def _check_splits(folder: Path, manifest: Manifest) -> None:
    """UserError for a data set without one of the splits, which says how to make it."""
    missing = [split for split in SPLITS if split not in manifest.splits]
    if missing:
        keep = "--keep-test " if "test" in manifest.splits else ""
        raise UserError(
            f"data set {manifest.dataset} has no split {' and no '.join(missing)}, only "
            f"{', '.join(sorted(manifest.splits))}; a training needs all three, which this makes "
            f"without decoding: python -m ingest resplit {folder} {keep}--fractions 0.7 0.1 0.2"
        )
