"""Minaee et al., "Deep-COVID: Predicting COVID-19 From Chest X-Ray Images Using Deep Transfer
Learning" (arXiv 2004.09363): four networks of which the last layer alone is trained.

Read as: SqueezeNet is 1.0; "small" is up to 10 degrees of rotation and 4 pixels of distortion,
drawn anew in each epoch; the tenth of the training images that validates is set apart before the
copies are made; an epoch draws as many images as the training set has with its copies (76 x 5 +
1800 = 2180, 109 steps of 20), half of them COVID-19; the best-validation-loss weights are tested.
"""

from dataclasses import replace
from functools import partial

from train.augment import Augment
from train.config import LabelVariation, Stage, TrainConfig
from train.optim import OptimConfig
from train.phases import Phase
from train.recipes.entry import Recipe
from train.schedule import Schedule

_SMALL = Augment(mirror=0.5, max_rotation_deg=10.0, elastic_px=4.0)
_ARCHITECTURES = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "squeezenet": "squeezenet1_0",
    "densenet121": "densenet121",
}


def deepcovid(name: str) -> TrainConfig:
    """COVID-19 or other as the paper has it: ImageNet's network, the last layer alone, Adam, each
    COVID-19 image five times (as it is and four changed), classes balanced by sampling; 20 images,
    copies counted, are a batch."""
    stage = Stage(
        name="covid",
        dataset="covid-xray-5k",
        phases=(Phase("output layer", 100, "head", lr=1e-4),),
        batch=20,
        batch_unit="augmented",
        variations=(LabelVariation("COVID-19", 5, _SMALL),),
        expand_validation=False,
        balance=True,
        output="softmax",
    )
    return TrainConfig(
        f"deepcovid-{name}", _ARCHITECTURES[name], (stage,), optim=OptimConfig("adam")
    )


def deepcovid_code(name: str) -> TrainConfig:
    """The same as the authors' program has it: SGD with a tenth of the rate every 7 epochs, random
    resized crops, no copies and no balance, the weights of the best validation accuracy."""
    config = deepcovid(name)
    schedule = Schedule("step", factor=0.1, every=7)
    stage = replace(
        config.stages[0],
        phases=(Phase("output layer", 100, "head", 1e-4, schedule=schedule, keep="best accuracy"),),
        augment=Augment(crop_area=(0.08, 1.0)),
        variations=(),
        batch_unit="source",
        balance=False,
    )
    sgd = OptimConfig("sgd", momentum=0.9)
    return replace(config, recipe=f"{config.recipe}-code", stages=(stage,), optim=sgd)


_SOURCE = "Minaee et al., arXiv 2004.09363"
_DATA = "python -m ingest covid-xray-5k --src FOLDER --out SHARDS"
_SPECIFICITY = {"resnet18": 90.7, "resnet50": 89.6, "squeezenet": 92.9, "densenet121": 75.1}

RECIPES = tuple(
    Recipe(
        partial(build, name),
        _SOURCE,
        _DATA,
        f"{specificity} % specificity at 98 % sensitivity on 3,100 test images",
    )
    for build in (deepcovid, deepcovid_code)
    for name, specificity in _SPECIFICITY.items()
)
