"""DD2424 project, "Transfer learning for COVID-19 detection" (KTH, 2020): DenseNet121 and ResNet50,
one linear layer and sigmoids, binary cross-entropy, Adam, batch 16.

Read as: 100 epochs and the same rates on all three data sets; the best-validation-loss weights are
tested; COVID-19 and not COVID-19 are two sigmoids; the 15 classes start where the two do, from the
ChestX-ray14 network; the colour jitter of 0.5 is one of brightness and contrast (saturation and hue
change nothing in a grey image); the small affine is up to 5 % of shift and scale and 5 degrees of
shear; COVID-19 or not is split 70/10/20, the 15 classes 60/20/20, patients apart.
"""

from functools import partial
from pathlib import Path

from shards.labels import CHESTXRAY14
from train.augment import Augment
from train.config import Stage, TrainConfig
from train.optim import OptimConfig
from train.phases import Phase
from train.recipes.entry import Recipe
from train.schedule import Schedule
from train.weights import StartConfig

_AUGMENT = Augment(
    mirror=0.5,
    brightness=0.5,
    contrast=0.5,
    max_rotation_deg=20.0,
    max_shear_deg=5.0,
    scale=(0.95, 1.05),
    max_shift=0.05,
)
# lr, weight decay, epochs without a better validation loss before the rate falls to a tenth
_RATES = {"densenet121": (1e-4, 5e-5, 5), "resnet50": (1e-3, 1e-5, 1)}


def _config(architecture: str, name: str, start: str, stage: Stage) -> TrainConfig:
    return TrainConfig(
        f"dd2424-{architecture}-{name}",
        architecture,
        (stage,),
        start=StartConfig(start),  # type: ignore[arg-type]  # one of its kinds
        optim=OptimConfig("adam"),
    )


def _phases(architecture: str) -> tuple[Phase, ...]:
    lr, weight_decay, patience = _RATES[architecture]
    schedule = Schedule("plateau", factor=0.1, patience=patience)
    return (Phase("all", 100, "all", lr, weight_decay, schedule=schedule),)


def chestxray14(architecture: str) -> TrainConfig:
    """The 14 findings of ChestX-ray14, DenseNet121 from ImageNet, ResNet50 from scratch. Our
    validation shares no patient with training; the original's was drawn by image."""
    stage = Stage(
        name="chestxray14",
        dataset="chestxray14",
        phases=_phases(architecture),
        batch=16,
        augment=_AUGMENT,
        labels=CHESTXRAY14.names[:14],
    )
    start = "imagenet" if architecture == "densenet121" else "random"
    return _config(architecture, "chestxray14", start, stage)


def covid(architecture: str) -> TrainConfig:
    """COVID-19 or not, all layers, from the ChestX-ray14 network: --start.path RUN names the run of
    dd2424-ARCHITECTURE-chestxray14."""
    stage = Stage("covid", "covid-chestxray", _phases(architecture), batch=16, augment=_AUGMENT)
    return _config(architecture, "covid", "checkpoint", stage)


def joint15(architecture: str) -> TrainConfig:
    """15 classes, ChestX-ray14's 14 findings and COVID-19, images of one label only, at most 220 of
    each; from the ChestX-ray14 network: --start.path RUN."""
    stage = Stage("joint15", "joint15", _phases(architecture), batch=16, augment=_AUGMENT)
    return _config(architecture, "joint15", "checkpoint", stage)


MAP = Path(__file__).parent.relative_to(Path(__file__).parents[2]) / "maps" / "joint15.toml"
_NIH = "python -m ingest chestxray14 --src NIH --out SHARDS"
_COHEN = "python -m ingest covid-chestxray --src COHEN --out SHARDS"
# Of the official train_val list's 86,524 images 22,424 validate: 57.17, 20 and 22.83 % of all.
_RESPLIT = (
    "python -m ingest resplit SHARDS/chestxray14 --keep-test --seed 42 "
    "--fractions 0.5717 0.2 0.2283"
)
_MERGE = (
    f"python -m ingest merge SHARDS/chestxray14 SHARDS/covid-chestxray --map {MAP} --name joint15 "
    "--exclusive --cap-per-class 220 --fractions 0.6 0.2 0.2 --out SHARDS"
)
_SOURCE = "DD2424 project, Transfer learning for COVID-19 detection (2020)"
_EXPECT = {
    ("densenet121", "chestxray14"): "mean test AUC 0.81",
    ("resnet50", "chestxray14"): "mean test AUC 0.74 (from scratch)",
    ("densenet121", "covid"): "AUC 0.88 (from ImageNet 0.87, from scratch 0.73)",
    ("densenet121", "joint15"): "AUC 0.89 of COVID-19",
}

RECIPES = tuple(
    Recipe(
        partial(build, architecture),
        _SOURCE,
        data,
        _EXPECT.get((architecture, build.__name__), "the paper reports DenseNet121 only"),
        counts,
    )
    for build, data, counts in (
        (chestxray14, f"{_NIH}; {_RESPLIT}", ({"": 64_100}, {"": 22_424})),
        (covid, _COHEN, None),
        (joint15, f"{_NIH}; {_COHEN}; {_MERGE}", None),
    )
    for architecture in _RATES
)
