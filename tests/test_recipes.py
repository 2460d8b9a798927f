"""train.recipes: all settings as golden files, the papers' numbers, and a real step of each on
images of synthetic shards."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ingest import __main__ as ingest
from ingest.label_map import read_label_map
from shards.console import UserError
from shards.labels import CHESTXRAY14, COVID, Vocabulary
from shards.manifest import load_manifest
from shards.order import global_batch, steps_per_epoch
from train.augment import NONE, Augment
from train.config import (
    Stage,
    TrainConfig,
    check_config,
    check_stage,
    expansions_of,
    loss_of,
)
from train.dist import World
from train.expand import Expander
from train.load import load_store
from train.loop import Trainer
from train.models import build_model
from train.optim import OptimConfig, build_optim, set_mode, set_trainable
from train.precision import Precision
from train.recipes import RECIPES, recipe
from train.recipes.entry import passes
from train.settings import jsonable
from train.step import Stepper
from train.store import InputConfig, Store

GOLDEN = Path(__file__).parent / "golden"
TWO = Vocabulary(("Other", "COVID-19"), exclusive=True)
VOCABULARIES = {
    "chestxray14": CHESTXRAY14,
    "covid-radiography": COVID,
    "covid-chestxray": Vocabulary(("Not COVID-19", "COVID-19"), exclusive=True),
    "joint15": Vocabulary((*CHESTXRAY14.names[:14], "COVID-19"), exclusive=True),
    "soares": Vocabulary(("Normal", "Other infection", "COVID-19"), exclusive=True),
    "covid-xray-5k": TWO,
}
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
    entry = RECIPES[name]
    assert 10 < len(entry.what) < 300
    for text in (entry.source, entry.data, entry.cost, entry.expect):
        assert 5 < len(text) < 600
    check_config(config)
    for stage in config.stages:
        check_stage(config, stage, stage_vocabulary(stage), processes=1)


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
    assert (stage.augment, stage.expand_validation) == (NONE, True)
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
    assert (stage.batch, stage.augment, stage.expansions) == (16, Augment(mirror=0.5), ())


def test_networks_and_starts():
    found = {name: (recipe(name).architecture, recipe(name).start.kind) for name in BASSI}
    twice = ("densenet201", "imagenet")
    chexnet = ("densenet121", "chexnet")
    assert found == dict(zip(BASSI, [twice, twice, twice, chexnet, chexnet]))
    assert recipe("network-b").stages[0] == recipe("chestxray14-densenet201").stages[0]
    assert recipe("network-c").stages[0] == recipe("network-b").stages[0]
    bare = replace(recipe("network-c").stages[1], keep_neurons=())
    assert bare == recipe("network-b").stages[1] == recipe("network-a").stages[0]


def stage_vocabulary(stage: Stage) -> Vocabulary:
    whole = VOCABULARIES[stage.dataset]
    return whole if not stage.labels else Vocabulary(stage.labels, exclusive=False)


def toy_store(shards: Path, width: int, size: int) -> Store:
    """Three images of synthetic shards, of as many labels in turn."""
    folder, config = shards / "covid-radiography", InputConfig("torch", threads=1)
    options = {"size": size, "config": config, "device": torch.device("cpu"), "shown": False}
    store = load_store(folder, load_manifest(folder), "train", **options)
    labels = np.eye(width, dtype=np.int8)[np.arange(3) % width]
    return Store(store.keys[:3], store.images[:3].clone(), labels)


# The soares head pools maps of 2 x 2.
def size_of(config: TrainConfig) -> int:
    return 64 if config.head == "soares" else 32


def one_step(
    config: TrainConfig, stage: Stage, shards: Path
) -> tuple[torch.nn.Module, tuple[float, int, int]]:
    """The stage's last phase for one step over all three images with all their copies."""
    torch.manual_seed(0)
    vocabulary, phase, size = stage_vocabulary(stage), stage.phases[-1], size_of(config)
    model = build_model(config.architecture, len(vocabulary), head=config.head, size=size)
    world = World("cpu")
    set_trainable(model, phase)
    set_mode(model, phase)
    stepper = Stepper(
        model=model,
        optim=build_optim(config.optim, model, phase),
        store=toy_store(shards, len(vocabulary), size),
        expander=Expander(expansions_of(stage, vocabulary), stage.augment, config.seed, size),
        precision=Precision("fp32", world.device),
        world=world,
        micro_batch=config.micro_batch,
        loss=loss_of(stage, vocabulary, world.device),
    )
    result = stepper.accumulate(np.arange(3), 0)
    stepper.update()
    return model, result


LARGE = ("densenet201", "vgg16", "resnet50", "xception")  # a second or more each
SLOW = [name for name in RECIPES if recipe(name).architecture in LARGE and name != "network-c"]
STEPS = [pytest.param(n, marks=pytest.mark.soak) if n in SLOW else n for n in RECIPES]


@pytest.mark.parametrize("name", STEPS)
def test_one_real_step_reaches_every_weight(name, tiny_shards):
    config = recipe(name)
    stage = config.stages[-1]
    model, (loss, terms, copies) = one_step(config, stage, tiny_shards)
    width = len(stage_vocabulary(stage))
    factors = [1 if not stage.expansions else f for f in (8, 8, 72)]
    if stage.variations:
        factors = [1, 5, 1]
    assert copies == sum(factors)
    assert terms == copies * (1 if stage.output == "softmax" else width)
    assert 0.2 < loss / terms < 4
    # Gradients, not moves: at lr 1e-5 a batch norm's weight of 1.0 may round back to itself.
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert set(trained.values()) <= set(model.parameters())
    assert (len(trained) == len(list(model.parameters()))) == (stage.phases[-1].trainable == "all")
    for key, parameter in trained.items():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key
        assert parameter.isfinite().all(), key
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if stage.phases[-1].frozen_norm == "eval":
        assert not any(norm.training for norm in norms)


def test_a_frozen_phase_moves_the_output_layer_only(tiny_shards):
    config = recipe("chestxray14-densenet121")
    stage = replace(config.stages[0], phases=config.stages[0].phases[:1])
    torch.manual_seed(0)
    before = dict(build_model(config.architecture, 15).named_parameters())
    model, _ = one_step(config, stage, tiny_shards)
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_the_dd2424_projects_numbers():
    for architecture, row in {
        "densenet121": (1e-4, 5e-5, 5, "imagenet"),
        "resnet50": (1e-3, 1e-5, 1, "random"),
    }.items():
        for name in ("chestxray14", "covid", "joint15"):
            config = recipe(f"dd2424-{architecture}-{name}")
            (stage,) = config.stages
            (phase,) = stage.phases
            schedule = phase.schedule
            assert (phase.lr, phase.weight_decay, schedule.patience) == row[:3]
            assert (schedule.kind, schedule.factor) == ("plateau", 0.1)
            assert (phase.epochs, phase.trainable, stage.batch) == (100, "all", 16)
            assert (config.optim.name, stage.output) == ("adam", "sigmoid")
            assert config.start.kind == (row[3] if name == "chestxray14" else "checkpoint")
            assert (
                len(stage_vocabulary(stage)) == {"chestxray14": 14, "covid": 2, "joint15": 15}[name]
            )


def test_soares_numbers():
    for architecture in ("vgg16", "resnet50", "xception"):
        config = recipe(f"soares-{architecture}")
        (stage,) = config.stages
        (phase,) = stage.phases
        assert (config.size, config.head, config.optim.name) == (237, "soares", "adam")
        assert (stage.batch, stage.output, stage.augment) == (15, "softmax", NONE)
        assert (phase.epochs, phase.lr, phase.keep) == (80, 1e-3, "last")
        assert (phase.trainable, phase.frozen_norm) == ("head", "eval")


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "squeezenet", "densenet121"])
def test_deepcovids_numbers(network):
    paper, code = recipe(f"deepcovid-{network}"), recipe(f"deepcovid-{network}-code")
    for config in (paper, code):
        (stage,) = config.stages
        (phase,) = stage.phases
        assert (phase.epochs, phase.trainable, phase.lr) == (100, "head", 1e-4)
        assert (stage.batch, stage.output, config.size) == (20, "softmax", 224)
        assert config.architecture.startswith(network)
    assert (paper.optim.name, paper.stages[0].balance) == ("adam", True)
    assert [(v.label, v.copies) for v in paper.stages[0].variations] == [("COVID-19", 5)]
    assert (paper.stages[0].batch_unit, code.stages[0].batch_unit) == ("augmented", "source")
    assert code.optim == OptimConfig("sgd", momentum=0.9)
    schedule = code.stages[0].phases[0].schedule
    assert (schedule.kind, schedule.every, schedule.factor) == ("step", 7, 0.1)
    assert code.stages[0].phases[0].keep == "best accuracy"
    assert code.stages[0].augment == Augment(crop_area=(0.08, 1.0))


def test_a_step_of_deepcovid_is_20_images_half_of_them_covid():
    config = recipe("deepcovid-resnet18")
    (stage,) = config.stages
    labels = np.eye(2, dtype=np.int8)[np.repeat([0, 1], [1800, 76])]
    store = Store(tuple(f"k{i}" for i in range(1876)), torch.empty(0), labels)
    expander = Expander(expansions_of(stage, TWO), stage.augment, config.seed, config.size)
    trainer = Trainer.__new__(Trainer)
    trainer.config = config
    order = trainer._order(stage, SimpleNamespace(store=store, expander=expander), 0)
    assert steps_per_epoch(len(order), stage.batch, stage.remainder) == 109
    batches = [global_batch(order, step, stage.batch, stage.remainder) for step in range(109)]
    assert {len(expander.chosen_copies(store, batch, 0)) for batch in batches} == {20}
    assert labels[order[:, 0]].sum(axis=0).tolist() == [1090, 1090]


def test_the_cost_counts_copies_and_epochs():
    stage = recipe("network-a").stages[0]
    assert passes(stage, 0) == 154 * (8 * 1025 + 8 * 1028 + 72 * 117)
    assert passes(stage, 1) == 154 * (8 * 256 + 8 * 257 + 72 * 29)
    assert RECIPES["network-a"].cost == "3.83 M images trained and 954 k validated, at most"
    cost = RECIPES["dd2424-resnet50-chestxray14"].cost
    assert cost == "6.41 M images trained and 2.24 M validated, at most"
    assert passes(recipe("deepcovid-resnet18").stages[0], 0) == 100 * (76 * 5 + 1800)
    assert passes(recipe("deepcovid-resnet18").stages[0], 1) == 100 * 208  # no copies there
    assert RECIPES["dd2424-resnet50-covid"].cost == "100 epochs over your covid-chestxray"


def test_the_maps_of_the_merged_sets_fit_their_labels():
    """As ingest checks them: every label of every data set, and no other."""
    folder = Path(__file__).parent.parent / "train" / "recipes" / "maps"
    kermany = ("Normal", "Bacterial Pneumonia", "Viral Pneumonia")
    sources = {
        "chestxray14": CHESTXRAY14.names,
        "covid-chestxray": ("Not COVID-19", "COVID-19"),
        "kermany": kermany,
        "kermany100": ("Normal", "Other infection"),
    }
    merged = {"joint15": VOCABULARIES["joint15"].names, "soares": VOCABULARIES["soares"].names}
    for path in folder.glob("*.toml"):
        labels = read_label_map(path)
        assert {name: set(table) for name, table in labels.items()} == {
            name: set(sources[name]) for name in labels
        }
        used = [label for table in labels.values() for label in table.values() if label]
        if path.stem in merged:
            assert tuple(dict.fromkeys(used)) == merged[path.stem]
    for name, entry in RECIPES.items():
        for word in entry.data.split():
            if word.endswith(".toml"):
                assert (folder.parent.parent.parent / word).is_file(), name


def test_the_commands_that_make_the_data_lack_the_data_alone(monkeypatch):
    """Each is typed as `list` prints it, where no data set lies."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    lines = {line for entry in RECIPES.values() for line in entry.data.split("; ")}
    assert len(lines) > 5
    for line in lines - {"make demo"}:
        program, words = line.split()[:3], line.split()[3:]
        assert program == ["python", "-m", "ingest"]
        monkeypatch.setattr(sys, "argv", ["ingest", *words])
        with pytest.raises(UserError, match=r"^no folder (NIH|COVID|COHEN|KERMANY|FOLDER|SHARDS)"):
            ingest.main()
