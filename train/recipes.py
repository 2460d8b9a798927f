"""Recipes: typed functions that return all settings of a training. `python -m train list`.

Sources: Bassi & Attux, "A Deep CNN for COVID-19 Detection Using Chest X-Rays", arXiv 2005.01578 v2.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace

from shards.console import UserError
from train.augment import EIGHT, SEVENTY_TWO
from train.config import KeptNeuron, LabelExpansion, Stage, TrainConfig
from train.phases import Phase
from train.weights import StartConfig

_COVID_EXPANSIONS = (
    LabelExpansion("Normal", EIGHT),
    LabelExpansion("Viral Pneumonia", EIGHT),
    LabelExpansion("COVID-19", SEVENTY_TWO),
)
_KEEP_PNEUMONIA = KeptNeuron("Viral Pneumonia", "Pneumonia")
_KEEP_NORMAL = KeptNeuron("Normal", "No Finding")


def _chestxray14_stage() -> Stage:
    """Read as: the best-validation-loss weights of a phase go on to the next."""
    return Stage(
        name="chestxray14",
        dataset="chestxray14",
        phases=(
            Phase("output layer", epochs=20, trainable="head", lr=1e-3),
            Phase("all", epochs=90, trainable="all", lr=1e-4),
        ),
        batch=16,
        mirror=0.5,
    )


def _covid_stage() -> Stage:
    """Read as: batches of 9 source images before expansion; each phase starts from the previous
    phase's best weights with a fresh optimiser; validation sees the copies of epoch 0."""
    return Stage(
        name="covid",
        dataset="covid-radiography",
        phases=(
            Phase("output layer", epochs=10, trainable="head", lr=1e-3, weight_decay=0.01),
            Phase("all", epochs=48, trainable="all", lr=1e-4, weight_decay=0.01, patience=20),
            Phase("all, slow", epochs=48, trainable="all", lr=1e-5, weight_decay=0.01, patience=20),
            Phase("all, no decay", epochs=48, trainable="all", lr=1e-5),
        ),
        batch=9,
        expansions=_COVID_EXPANSIONS,
    )


def chestxray14_densenet121() -> TrainConfig:
    """DenseNet121, ImageNet -> ChestX-ray14 (15 outputs), as stage one of networks B and C."""
    return replace(
        chestxray14_densenet201(), recipe="chestxray14-densenet121", architecture="densenet121"
    )


def chestxray14_densenet201() -> TrainConfig:
    """DenseNet201, ImageNet -> ChestX-ray14 (15 outputs): what networks B and C share."""
    return TrainConfig("chestxray14-densenet201", "densenet201", (_chestxray14_stage(),))


def network_a() -> TrainConfig:
    """Network A: DenseNet201, ImageNet -> COVID."""
    return TrainConfig("network-a", "densenet201", (_covid_stage(),))


def network_b() -> TrainConfig:
    """Network B: DenseNet201, ImageNet -> ChestX-ray14 -> COVID (twice transfer learning)."""
    return replace(network_a(), recipe="network-b", stages=(_chestxray14_stage(), _covid_stage()))


def network_c() -> TrainConfig:
    """Network C: B with output neuron keeping (No Finding, Pneumonia)."""
    keeping = replace(_covid_stage(), keep_neurons=(_KEEP_NORMAL, _KEEP_PNEUMONIA))
    return replace(network_b(), recipe="network-c", stages=(_chestxray14_stage(), keeping))


def network_d() -> TrainConfig:
    """Network D: CheXNet (DenseNet121, 14 outputs) -> COVID. Needs --start.path FILE."""
    return TrainConfig("network-d", "densenet121", (_covid_stage(),), start=StartConfig("chexnet"))


def network_e() -> TrainConfig:
    """Network E: D with output neuron keeping (Pneumonia only: CheXNet has no healthy neuron)."""
    keeping = replace(_covid_stage(), keep_neurons=(_KEEP_PNEUMONIA,))
    return replace(network_d(), recipe="network-e", stages=(keeping,))


def demo() -> TrainConfig:
    """Network C at toy size and length, for synthetic radiographs: DenseNet121 at 64 pixels from a
    random start. Higher rates than the paper's, since it has minutes instead of days."""
    first = replace(
        _chestxray14_stage(),
        phases=(
            Phase("output layer", epochs=1, trainable="head", lr=0.05),
            Phase("all", epochs=8, trainable="all", lr=0.05),
        ),
    )
    second = replace(
        network_c().stages[1],
        phases=(
            Phase("output layer", epochs=1, trainable="head", lr=0.05, weight_decay=1e-4),
            Phase("all", 4, "all", lr=0.02, weight_decay=1e-4, patience=2),
            Phase("all, slow", 2, "all", lr=0.005, weight_decay=1e-4, patience=2),
            Phase("all, no decay", 1, "all", lr=0.005),
        ),
    )
    return TrainConfig("demo", "densenet121", (first, second), start=StartConfig("random"), size=64)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    function().recipe: function
    for function in (
        demo,
        chestxray14_densenet121,
        chestxray14_densenet201,
        network_a,
        network_b,
        network_c,
        network_d,
        network_e,
    )
}


def recipe(name: str) -> TrainConfig:
    """The settings of a recipe by name. UserError that lists all when there is none."""
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]()


def describe(name: str) -> str:
    """The first paragraph of a recipe's docstring, on one line."""
    text = inspect.getdoc(RECIPES[name]) or ""
    return " ".join(text.split("\n\n")[0].split())
