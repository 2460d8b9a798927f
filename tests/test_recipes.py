"""train.recipes: all settings as golden files, the papers' numbers, and a real step of each."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.console import UserError
from shards.labels import CHESTXRAY14, COVID
from train.batch import Expander
from train.config import Stage, TrainConfig, check_config, expansions_of
from train.dist import World
from train.log import jsonable
from train.models import build_model
from train.optim import build_optim, set_trainable
from train.precision import Precision
from train.recipes import RECIPES, describe, recipe
from train.step import Stepper
from train.store import Store

GOLDEN = Path(__file__).parent / "golden"
VOCABULARIES = {"chestxray14": CHESTXRAY14, "covid-radiography": COVID}
BASSI = ["network-a", "network-b", "network-c", "network-d", "network-e"]


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_the_golden_ones(name):
    # After a wanted change: python -m train show NAME > tests/golden/NAME.json
    golden = json.loads((GOLDEN / f"{name}.json").read_bytes())
    assert jsonable(asdict(recipe(name))) == golden


def test_there_is_no_golden_file_too_many():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_described_and_valid(name):
    config = recipe(name)
    assert config.recipe == name
    assert 10 < len(describe(name)) < 300
    check_config(config)


def test_an_unknown_recipe_lists_all():
    with pytest.raises(UserError, match=f"no recipe 'nope'; there are: {', '.join(RECIPES)}"):
        recipe("nope")


@pytest.mark.parametrize("name", BASSI)
def test_the_covid_stage_is_the_papers(name):
    stage = recipe(name).stages[-1]
    rows = [(p.epochs, p.trainable, p.lr, p.weight_decay, p.patience) for p in stage.phases]
    assert rows == [
        (10, "head", 1e-3, 0.01, None),
        (48, "all", 1e-4, 0.01, 20),
        (48, "all", 1e-5, 0.01, 20),
        (48, "all", 1e-5, 0.0, None),
    ]
    assert stage.batch == 9
    assert (stage.mirror, stage.expand_validation) == (0.0, True)
    factors = {item.label: item.expansion.factor for item in stage.expansions}
    assert factors == {"Normal": 8, "Viral Pneumonia": 8, "COVID-19": 72}
    for item in stage.expansions:
        e = item.expansion
        assert (e.max_rotation_deg, e.max_dx_px, e.max_dy_px) == (40, 40, 28)
    assert recipe(name).optim.momentum == 0.9
    assert recipe(name).size == 224


@pytest.mark.parametrize("name", ["network-b", "network-c", "chestxray14-densenet201"])
def test_the_chestxray14_stage_is_the_papers(name):
    stage = recipe(name).stages[0]
    rows = [(p.epochs, p.trainable, p.lr, p.weight_decay, p.patience) for p in stage.phases]
    assert rows == [(20, "head", 1e-3, 0.0, None), (90, "all", 1e-4, 0.0, None)]
    assert (stage.batch, stage.mirror, stage.expansions) == (16, 0.5, ())


def test_networks_and_starts():
    found = {name: (recipe(name).architecture, recipe(name).start.kind) for name in BASSI}
    twice = ("densenet201", "imagenet")
    chexnet = ("densenet121", "chexnet")
    assert found == dict(zip(BASSI, [twice, twice, twice, chexnet, chexnet]))
    assert recipe("network-b").stages[0] == recipe("chestxray14-densenet201").stages[0]
    assert recipe("network-c").stages[0] == recipe("network-b").stages[0]
    bare = replace(recipe("network-c").stages[1], keep_neurons=())
    assert bare == recipe("network-b").stages[1] == recipe("network-a").stages[0]


def toy_store(stage: Stage) -> Store:
    """Three random images at 32 pixels; each label of the stage's expansions is there once."""
    width = len(VOCABULARIES[stage.dataset])
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8))
    return Store(("a", "b", "c"), images, np.eye(width, dtype=np.int8)[:3])


def one_step(config: TrainConfig, stage: Stage) -> tuple[torch.nn.Module, tuple[float, int, int]]:
    """The stage's last phase for one step over all three images with all their copies."""
    torch.manual_seed(0)
    vocabulary, phase = VOCABULARIES[stage.dataset], stage.phases[-1]
    model, world = build_model(config.architecture, len(vocabulary)).train(), World("cpu")
    set_trainable(model, phase)
    stepper = Stepper(
        model=model,
        optim=build_optim(config.optim, model, phase),
        store=toy_store(stage),
        expander=Expander(expansions_of(stage, vocabulary), stage.mirror, config.seed, 32),
        precision=Precision("fp32", world.device),
        world=world,
        micro_batch=config.micro_batch,
    )
    result = stepper.accumulate(np.arange(3), 0)
    stepper.update()
    return model, result


@pytest.mark.parametrize("name", RECIPES)
def test_one_real_step_reaches_every_weight(name):
    config = recipe(name)
    stage = config.stages[-1]
    model, (loss, known, copies) = one_step(config, stage)
    assert copies == (88 if stage.expansions else 3)  # 8 + 8 + 72
    assert known == copies * len(VOCABULARIES[stage.dataset])
    assert 0.3 < loss / known < 1.5
    # Gradients, not moves: at lr 1e-5 a batch norm's weight of 1.0 may round back to itself.
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key
        assert parameter.isfinite().all(), key


def test_a_frozen_phase_moves_the_output_layer_only():
    config = recipe("chestxray14-densenet121")
    stage = replace(config.stages[0], phases=config.stages[0].phases[:1])
    torch.manual_seed(0)
    before = dict(build_model(config.architecture, 15).named_parameters())
    model, _ = one_step(config, stage)
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {"classifier.weight", "classifier.bias"}
