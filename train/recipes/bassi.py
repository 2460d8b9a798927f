"""Bassi & Attux, "A Deep CNN for COVID-19 Detection Using Chest X-Rays", arXiv 2005.01578 v2.

Networks A to E, and the ChestX-ray14 trainings before B and C. Where the text is silent, "read as"
marks how it is read here.

The paper counts 8,409 copies of COVID-19 images and 8,128 of each other class in training. Its
class sizes give 8,424 (117 x 72), 8,200 and 8,224, which the recipes take. Read as: the paper took
at most 1,330 images of a class (ingest's --cap-per-class 1330 gives 1,016 x 8 = 8,128), and took
80 % of COVID-19's 146 x 72 copies.
"""

from dataclasses import replace

from train.augment import EIGHT, SEVENTY_TWO, Augment
from train.config import KeptNeuron, LabelExpansion, Stage, TrainConfig
from train.phases import Phase
from train.recipes.entry import Recipe
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
        augment=Augment(mirror=0.5),
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


_SOURCE = "Bassi & Attux, arXiv 2005.01578 v2"
_NIH = "python -m ingest chestxray14 --random-split --src NIH --out SHARDS"
_COVID = "python -m ingest covid-radiography --exclude LATERAL.txt --src COVID --out SHARDS"
_BOTH = f"{_NIH}; {_COVID}"
_CURVE = "test accuracy after each phase: the paper's Figure 1"
_NO_AUC = "the paper gives no AUC of this stage"

RECIPES = (
    Recipe(demo, _SOURCE, "make demo", "nothing of the paper's: it shows that the way works"),
    Recipe(chestxray14_densenet121, _SOURCE, _NIH, _NO_AUC),
    Recipe(chestxray14_densenet201, _SOURCE, _NIH, _NO_AUC),
    Recipe(network_a, _SOURCE, _COVID, f"99.4 % of 180 test images; {_CURVE}"),
    Recipe(network_b, _SOURCE, _BOTH, f"less than C; {_CURVE}"),
    Recipe(network_c, _SOURCE, _BOTH, f"99.4 % of 180 test images, mean F1 0.994; {_CURVE}"),
    Recipe(network_d, _SOURCE, _COVID, f"less than E; {_CURVE}"),
    Recipe(network_e, _SOURCE, _COVID, f"less than C, more than D; {_CURVE}"),
)
