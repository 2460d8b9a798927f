"""A training's settings: stages made of phases. Recipes (train/recipes.py) return one of these."""

from dataclasses import dataclass, field
from typing import Literal

from shards.console import UserError
from shards.labels import Vocabulary
from train.augment import Expansion
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
class KeptNeuron:
    """Output neuron keeping: the neuron of `label` starts as the one of `old_label`."""

    label: str
    old_label: str


@dataclass(frozen=True)
class Stage:
    """One data set's training. dataset: its folder under --shards; batch: source images of one
    step, over all ranks, before expansion; mirror: probability that a mirrored image takes the
    place of the original; expand_validation: the expansions hold on validation too."""

    name: str
    dataset: str
    phases: tuple[Phase, ...]
    batch: int
    mirror: float = 0.0
    expansions: tuple[LabelExpansion, ...] = ()
    expand_validation: bool = True
    keep_neurons: tuple[KeptNeuron, ...] = ()
    remainder: Literal["wrap", "drop"] = "wrap"


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run. size: of the network's input, pixels; micro_batch: copies that go
    through the network at once (gradients accumulate over a step)."""

    recipe: str
    architecture: str
    stages: tuple[Stage, ...]
    start: StartConfig = field(default_factory=StartConfig)
    size: int = 224
    seed: int = 0
    micro_batch: int = 64
    optim: OptimConfig = field(default_factory=OptimConfig)
    input: InputConfig = field(default_factory=InputConfig)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every_s: float = 600.0


def check_config(config: TrainConfig) -> None:
    """UserError for settings that cannot be trained."""
    if config.size < 32:
        raise UserError(f"size is {config.size}; the networks need at least 32 pixels")
    if config.micro_batch < 3:
        raise UserError(
            f"micro_batch is {config.micro_batch}; batch norm needs at least 3 (equal parts of 2)"
        )
    for stage in config.stages:
        if stage.batch < 1:
            raise UserError(f"stage {stage.name}: batch is {stage.batch}; at least 1")
        if not stage.phases or any(phase.epochs < 1 for phase in stage.phases):
            raise UserError(f"stage {stage.name}: every phase needs at least 1 epoch")
        for phase in stage.phases:
            _check_phase(stage.name, phase)
        for item in stage.expansions:
            if item.expansion.rotations < 1 or item.expansion.translations < 1:
                raise UserError(
                    f"stage {stage.name}: the expansion of {item.label} needs at least 1 rotation "
                    "and 1 translation (1: the image as it is)"
                )


def _check_phase(stage: str, phase: Phase) -> None:
    if phase.lr <= 0 or phase.weight_decay < 0:
        raise UserError(
            f"stage {stage}, phase {phase.name}: lr is {phase.lr}, weight_decay is "
            f"{phase.weight_decay}; lr must be over 0, weight_decay at least 0"
        )
    if phase.patience is not None and phase.patience < 1:
        raise UserError(
            f"stage {stage}, phase {phase.name}: patience is {phase.patience}; at least 1, or None"
        )


def expansions_of(stage: Stage, vocabulary: Vocabulary) -> dict[int, Expansion]:
    """The stage's expansions by label position. UserError for a label the vocabulary lacks."""
    return {vocabulary.index(item.label): item.expansion for item in stage.expansions}
