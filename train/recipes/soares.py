"""Soares & Soares, "Automatic detection of COVID-19 cases on X-ray images using CNNs" (2020).

VGG-16, ResNet and Xception as frozen bases under a small head. Their code has ResNet50V2; ours is
ResNet50. Read as: the 100 other infections are bacterial and viral ones, as Kermany's set has them.
Their split is told twice: 270, 30 and 75 of the 375 images train, validate and test, and 39, 17 and
19 of the classes' images test, where 75 of 175, 100 and 100 in proportion are 35, 20 and 20. Read
as: theirs was drawn by image, without regard to class or patient; ours keeps 270, 30 and 75, in
proportion to the classes and with patients apart, so other images test.
"""

from functools import partial
from pathlib import Path

from train.config import Stage, TrainConfig
from train.optim import OptimConfig
from train.phases import Phase
from train.recipes.entry import Recipe


def soares(architecture: str) -> TrainConfig:
    """COVID-19, normal, other infection at 237 pixels in [0, 1]: ImageNet's base frozen, with batch
    norm in inference mode; average pool, dense 20, dropout 0.2 and dense 3 with softmax on it."""
    stage = Stage(
        name="covid",
        dataset="soares",
        phases=(Phase("head", 80, "head", lr=1e-3, keep="last", frozen_norm="eval"),),
        batch=15,
        output="softmax",
    )
    return TrainConfig(
        f"soares-{architecture}",
        architecture,
        (stage,),
        size=237,
        head="soares",
        optim=OptimConfig("adam"),
    )


MAPS = Path(__file__).parent.relative_to(Path(__file__).parents[2]) / "maps"
_SOURCE = "Soares & Soares (2020)"
_DATA = (
    "python -m ingest kermany --src KERMANY --out SHARDS; "
    "python -m ingest covid-chestxray --src COHEN --out SHARDS; "
    f"python -m ingest merge SHARDS/kermany --map {MAPS / 'kermany.toml'} --name kermany100 "
    "--cap-per-class 100 --out SHARDS; "
    f"python -m ingest merge SHARDS/kermany100 SHARDS/covid-chestxray --map {MAPS / 'soares.toml'} "
    "--name soares --cap-per-class 175 --fractions 0.72 0.08 0.2 --out SHARDS"
)
_EXPECT = {
    "vgg16": "97.3 % of 75 test images",
    "resnet50": "94.6 to 96.0 % of 75 test images (the paper and its page swap it with Xception)",
    "xception": "94.6 to 96.0 % of 75 test images (the paper and its page swap it with ResNet)",
}

RECIPES = tuple(
    Recipe(partial(soares, architecture), _SOURCE, _DATA, expect)
    for architecture, expect in _EXPECT.items()
)
