"""A training's settings: stages made of phases. Recipes (train/recipes/) return one of these."""

import math
import re
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, Literal

import torch
import tyro

from shards.console import UserError
from shards.labels import Vocabulary
from shards.manifest import Manifest
from train.augment import NONE, Augment, Expansion, Varied, check_augment
from train.loss import Loss, Output
from train.models import ARCHITECTURES, fails_on_one_image
from train.optim import OptimConfig
from train.phases import Phase
from train.store import InputConfig
from train.weights import StartConfig


@dataclass(frozen=True)
class LabelExpansion:
    """How the images of one label are multiplied."""

    label: str
    expansion: Expansion


@dataclass(frozen=True)
class LabelVariation:
    """The images of one label become `copies`: as they are, and changed at random."""

    label: str
    copies: int
    augment: Augment


@dataclass(frozen=True)
class KeptNeuron:
    """Output neuron keeping: the neuron of `label` starts as the one of `old_label`."""

    label: str
    old_label: str


@dataclass(frozen=True)
class Stage:
    """One data set's training. dataset: its folder under --shards; labels: those of its labels that
    are trained, none named: all; output: sigmoid per label, or softmax over exclusive labels;
    class_weights: of labels in the loss: of their YES terms with sigmoid, of their images with
    softmax. batch: of one step, over all ranks, in units of batch_unit: source images, each with
    all its copies, or augmented copies, those of the whole epoch shuffled; remainder: an epoch's
    last step is filled up with its first units, or left out; expansions, variations: how the images
    of a label are multiplied; augment: the change that takes the place of any other image, in
    training only; expand_validation: expansions and variations hold on validation too; balance: an
    epoch draws its units with replacement, so that it has as many copies of each label."""

    name: str
    dataset: str
    phases: tuple[Phase, ...]
    batch: int
    augment: Augment = NONE
    expansions: tuple[LabelExpansion, ...] = ()
    variations: tuple[LabelVariation, ...] = ()
    expand_validation: bool = True
    keep_neurons: tuple[KeptNeuron, ...] = ()
    remainder: Literal["wrap", "drop"] = "wrap"
    batch_unit: Literal["source", "augmented"] = "source"
    balance: bool = False
    labels: tuple[str, ...] = ()
    output: Output = "sigmoid"
    class_weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run."""

    recipe: Annotated[str, tyro.conf.Suppress]  # the command line's first word, no flag
    architecture: Annotated[str, tyro.conf.arg(help=f"One of: {', '.join(ARCHITECTURES)}.")]
    stages: tuple[Stage, ...]
    start: StartConfig = field(default_factory=StartConfig)
    size: int = 224
    """Side of the network's input in pixels, at least 32."""
    seed: int = 0
    """Decides the start, the order of images and how their copies are changed."""
    micro_batch: int = 64
    """Copies that go through the network at once; their gradients add up over a step."""
    head: Literal["linear", "soares"] = "linear"
    """The network's end: the architecture's own layer, or that of Soares & Soares."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_decay: float | None = None
    """Validate and keep the weights' moving average, which keeps this share of itself at each step,
    such as 0.999."""
    sync_norm: bool = False
    """Batch norm over the images of all GPUs, not of each one."""
    skip_stages: int = 0
    """Leave out so many of the first stages, which the run at --start.path has trained."""
    input: InputConfig = field(default_factory=InputConfig)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the device computes in it, else fp16 on a GPU, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    tf32: bool = True
    """In fp32 an NVIDIA GPU may round what it multiplies to 10 bits of mantissa."""
    auto_micro_batch: bool = False
    """Where memory runs out, halve micro_batch and go on."""
    checkpoint_every_s: float = 600.0
    """At most so many seconds between two checkpoints; each epoch writes one too."""
    keep_checkpoints: int = 2
    """So many of the last ones are kept, beside the best weights."""


_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TAKEN = ("checkpoints", "events")  # folders of a run, beside those of its stages


def check_config(config: TrainConfig) -> None:
    """UserError for settings that cannot be trained."""
    _check_finite(config)
    if not 0 <= config.seed < 1 << 32:
        raise UserError(f"seed is {config.seed}; 0 to {(1 << 32) - 1}")
    if config.size < 32:
        raise UserError(f"size is {config.size}; the networks need at least 32 pixels")
    if config.micro_batch < 3:
        raise UserError(
            f"micro_batch is {config.micro_batch}; batch norm needs at least 3 (parts of 2 or more)"
        )
    if config.keep_checkpoints < 1:
        raise UserError(f"keep_checkpoints is {config.keep_checkpoints}; at least 1")
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        raise UserError(f"ema_decay is {config.ema_decay}; between 0 and 1, such as 0.999, or None")
    if config.checkpoint_every_s < 0:
        raise UserError(f"checkpoint_every_s is {config.checkpoint_every_s}; 0 or more")
    if config.input.threads < 0:
        raise UserError(f"input.threads is {config.input.threads}; at least 1, or 0 for all cores")
    if config.input.cache is not None and config.input.cache.is_file():
        raise UserError(f"input.cache is {config.input.cache}, a file; name a folder")
    clip, momentum = config.optim.clip_norm, config.optim.momentum
    if clip is not None and clip <= 0:
        raise UserError(f"optim.clip_norm is {clip}; over 0, or None")
    if not 0 <= momentum < 1:
        raise UserError(f"optim.momentum is {momentum}; 0 or more and under 1")
    if config.start.path is not None and config.start.kind in ("random", "imagenet"):
        raise UserError(
            f"start.path is {config.start.path}, which start.kind {config.start.kind} does not "
            "read; take --start.kind checkpoint (a run) or chexnet (its file), or leave it out"
        )
    names = [stage.name for stage in config.stages]
    for stage in config.stages:
        if not _NAME.fullmatch(stage.name) or stage.name in _TAKEN or names.count(stage.name) > 1:
            raise UserError(
                f"stage name {stage.name!r}: it becomes a folder of the run, so it is made of "
                f"letters, digits, - and _, of one stage only, and not {' or '.join(_TAKEN)}"
            )
        if stage.batch < 1:
            raise UserError(f"stage {stage.name}: batch is {stage.batch}; at least 1")
        if not stage.phases or any(phase.epochs < 1 for phase in stage.phases):
            raise UserError(f"stage {stage.name}: every phase needs at least 1 epoch")
        for phase in stage.phases:
            _check_phase(stage.name, phase)
        check_augment(f"stage {stage.name}: augment", stage.augment)
        for variation in stage.variations:
            where = f"stage {stage.name}: the variations of {variation.label}"
            check_augment(where, variation.augment)
            if variation.copies < 1:
                raise UserError(f"{where}: copies is {variation.copies}; at least 1")
        for item in stage.expansions:
            if item.expansion.rotations < 1 or item.expansion.translations < 1:
                raise UserError(
                    f"stage {stage.name}: the expansion of {item.label} needs at least 1 rotation "
                    "and 1 translation (1: the image as it is)"
                )


def _check_finite(value: Any, name: str = "-") -> None:
    """UserError for the first number anywhere in the settings that is none, or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name.replace('_', '-')} is {value}; a finite number is needed")
    parts: list[tuple[Any, Any]] = list(enumerate(value)) if isinstance(value, tuple) else []
    if is_dataclass(value):
        parts = [(item.name, getattr(value, item.name)) for item in fields(value)]
    for key, part in parts:
        _check_finite(part, f"{name}{'-' if name == '-' else '.'}{key}")


def _check_phase(stage: str, phase: Phase) -> None:
    if phase.lr <= 0 or phase.weight_decay < 0:
        raise UserError(
            f"stage {stage}, phase {phase.name}: lr is {phase.lr}, weight_decay is "
            f"{phase.weight_decay}; lr must be over 0, weight_decay at least 0"
        )
    schedule = phase.schedule
    if not 0 < schedule.factor <= 1 or schedule.patience < 0 or schedule.every < 1:
        raise UserError(
            f"stage {stage}, phase {phase.name}: schedule.factor is {schedule.factor} (over 0, at "
            f"most 1), patience {schedule.patience} (0 or more), every {schedule.every} (1 or more)"
        )
    if phase.patience is not None and phase.patience < 1:
        raise UserError(
            f"stage {stage}, phase {phase.name}: patience is {phase.patience}; at least 1, or None"
        )
    if phase.patience is not None and phase.keep == "last":
        raise UserError(
            f"stage {stage}, phase {phase.name}: keep last has no best epoch to wait for; take "
            "patience None, or keep best loss"
        )


def without_skipped(config: TrainConfig) -> TrainConfig:
    """The same training without the stages that it starts after. UserError when none is left."""
    count = config.skip_stages
    if not count:
        return config
    if not 0 < count < len(config.stages) or config.start.kind != "checkpoint":
        raise UserError(
            f"skip_stages is {count}, start.kind is {config.start.kind}; the recipe has "
            f"{len(config.stages)} stages, of which at least one is trained, and what stands for "
            "the others is a run: --start.kind checkpoint --start.path RUN"
        )
    return replace(config, stages=config.stages[count:], skip_stages=0)


def vocabulary_of(stage: Stage, manifest: Manifest) -> Vocabulary:
    """What the stage's outputs mean. UserError for a label that the data set lacks."""
    whole = manifest.vocabulary
    if not stage.labels:
        return whole
    for name in stage.labels:
        whole.index(name)
        if stage.labels.count(name) > 1:
            raise UserError(f"stage {stage.name}: labels names {name} twice; once is enough")
    return Vocabulary(stage.labels, whole.exclusive and set(stage.labels) == set(whole.names))


def loss_of(stage: Stage, vocabulary: Vocabulary, device: torch.device) -> Loss:
    """The stage's loss."""
    if not stage.class_weights:
        return Loss(stage.output)
    weights = torch.ones(len(vocabulary), device=device)
    for label, weight in stage.class_weights:
        weights[vocabulary.index(label)] = weight
    return Loss(stage.output, weights)


def check_stage(config: TrainConfig, stage: Stage, vocabulary: Vocabulary, processes: int) -> None:
    """UserError for settings that do not go with the data set, or with so many processes."""
    if stage.batch < processes:
        raise UserError(
            f"stage {stage.name}: batch is {stage.batch}, fewer than the {processes} processes; "
            "start fewer, or take a larger batch"
        )
    expansions_of(stage, vocabulary)
    for label, weight in stage.class_weights:
        vocabulary.index(label)
        if weight <= 0 or len(dict(stage.class_weights)) < len(stage.class_weights):
            raise UserError(
                f"stage {stage.name}: the class weight of {label} must be over 0, and given once"
            )
    accuracy = any(phase.keep == "best accuracy" for phase in stage.phases)
    if not vocabulary.exclusive and (stage.output == "softmax" or accuracy):
        what = "output softmax" if stage.output == "softmax" else "keep best accuracy"
        raise UserError(
            f"stage {stage.name}: {what} needs labels of which each image has exactly one; those "
            f"of {stage.dataset} do not exclude each other: take output sigmoid, keep best loss"
        )
    uneven = stage.batch_unit == "source" and (stage.expansions or stage.variations)
    if config.sync_norm and (uneven or stage.batch % processes):
        raise UserError(
            f"stage {stage.name}: --sync-norm waits for all processes in every micro-batch, so "
            f"each needs as many copies: take --stages.{stage.name}.batch-unit augmented (now "
            f"{stage.batch_unit}) and a batch (now {stage.batch}) that {processes} divides"
        )
    if stage.batch // processes == 1 and _one_image_alone(config, stage):
        raise UserError(
            f"stage {stage.name}: batch is {stage.batch} in {processes} processes: batch norm "
            f"cannot train on one image of {config.size} pixels, where its maps have one; take a "
            "batch of 2 or more per process, or a larger size"
        )


def check_kept(stage: Stage, old: Vocabulary, new: Vocabulary) -> None:
    """UserError for a neuron to be kept that one of the two stages does not have."""
    for kept in stage.keep_neurons:
        new.index(kept.label)
        old.index(kept.old_label)


def _one_image_alone(config: TrainConfig, stage: Stage) -> bool:
    """Whether batch norm, training, may meet a single value."""
    frozen = all(p.trainable == "head" and p.frozen_norm == "eval" for p in stage.phases)
    return not frozen and fails_on_one_image(config.architecture, config.size, config.head)


def expansions_of(stage: Stage, vocabulary: Vocabulary) -> dict[int, Expansion | Varied]:
    """What multiplies the images, by label position. UserError for a label the vocabulary lacks, or
    one that is named twice."""
    rules: list[tuple[str, Expansion | Varied]] = [
        *((item.label, item.expansion) for item in stage.expansions),
        *((item.label, Varied(item.copies, item.augment)) for item in stage.variations),
    ]
    found = {vocabulary.index(label): rule for label, rule in rules}
    if len(found) < len(rules):
        raise UserError(
            f"stage {stage.name}: a label has two expansions or variations; each may have one: "
            f"{', '.join(label for label, _ in rules)}"
        )
    return found
