"""The loop with every part of the recipes: averages, schedules, heads, labels, and their resume."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from serve.export import Scorer
from shards.console import UserError
from train.config import (
    KeptNeuron,
    Stage,
    TrainConfig,
    check_config,
    without_skipped,
)
from train.dist import World
from train.log import read_metrics
from train.loop import Trainer
from train.models import build_model
from train.optim import OptimConfig
from train.phases import Phase
from train.runs import load_run_model
from train.schedule import Schedule, learning_rate
from train.settings import write_settings
from train.step import Stepper
from train.stop import Interrupted
from train.store import InputConfig
from train.weights import StartConfig

PHASES = (
    Phase("head", 1, "head", 0.01, frozen_norm="eval"),
    Phase("all", 3, "all", 0.01, schedule=Schedule("plateau", 0.5, patience=1), keep="last"),
)
STAGE = Stage(
    "covid",
    "covid-radiography",
    PHASES,
    batch=8,
    output="softmax",
    class_weights=(("COVID-19", 2.0),),
)
CONFIG = TrainConfig(
    "demo",
    "resnet18",
    (STAGE,),
    start=StartConfig("random"),
    size=32,
    optim=OptimConfig("adam", clip_norm=1.0),
    ema_decay=0.9,
    precision="fp32",
    device="cpu",
)


pytestmark = pytest.mark.usefixtures("as_before")


def trained(config: TrainConfig, shards: Path, run: Path) -> Path:
    check_config(config)
    trainer = Trainer(config, shards, run, World("cpu"))
    write_settings(run, config, shards, True)
    trainer.run()
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "covid" / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def undisturbed(tiny_shards, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return trained(CONFIG, tiny_shards, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.soak
def test_stopped_in_mid_epoch_averages_and_adam_go_on(
    undisturbed, tiny_shards, tmp_path, monkeypatch
):
    steps = []
    update = Stepper.update

    def stop_at_seven(self: Stepper) -> None:
        update(self)
        steps.append(1)
        if len(steps) == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Stepper, "update", stop_at_seven)
    with pytest.raises(Interrupted):
        trained(CONFIG, tiny_shards, tmp_path / "run")
    checkpoint = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"))[-1]
    state = json.loads((checkpoint / "state.json").read_bytes())["position"]
    assert state["phase"] == 1
    assert state["step"] > 0
    average = load_file(checkpoint / "ema.safetensors")
    assert not equal(average, load_file(checkpoint / "model.safetensors"))
    trained(CONFIG, tiny_shards, tmp_path / "run")
    assert equal(weights(tmp_path / "run"), weights(undisturbed))
    lasting = [
        [(line["val_loss"], line["train_loss"], line["lr"]) for line in read_metrics(run)]
        for run in (tmp_path / "run", undisturbed)
    ]
    assert lasting[0] == lasting[1]


@pytest.mark.soak
def test_the_average_is_what_is_validated_and_kept(undisturbed, tiny_shards, tmp_path):
    checkpoint = sorted((undisturbed / "checkpoints").glob("[0-9]*"))[-1]
    assert equal(weights(undisturbed), load_file(checkpoint / "ema.safetensors"))  # keep: last
    plain = trained(replace(CONFIG, ema_decay=None), tiny_shards, tmp_path / "plain")
    assert not list((plain / "checkpoints").rglob("ema.safetensors"))
    assert not equal(weights(undisturbed), weights(plain))
    assert read_metrics(plain)[0]["train_loss"] == read_metrics(undisturbed)[0]["train_loss"]
    assert read_metrics(plain)[0]["val_loss"] != read_metrics(undisturbed)[0]["val_loss"]


@pytest.mark.soak
def test_the_rate_is_the_schedules(undisturbed):
    rows = [line for line in read_metrics(undisturbed) if line["phase"] == 2]
    losses = [line["val_loss"] for line in rows]
    expected = [learning_rate(0.01, PHASES[1].schedule, losses[:n]) for n in range(len(rows))]
    assert [line["lr"] for line in rows] == expected


def test_a_soares_run_is_trained_and_read_again(tiny_shards, tmp_path):
    phase = Phase("head", 1, "head", 0.01, keep="last", frozen_norm="eval")
    stage = replace(STAGE, phases=(phase,), class_weights=())
    config = replace(CONFIG, stages=(stage,), head="soares", size=64, ema_decay=None)
    run = trained(config, tiny_shards, tmp_path / "run")
    model, spec = load_run_model(run)
    assert (spec.head, spec.size, spec.output) == ("soares", 64, "softmax")
    logits, found = Scorer(model, spec.output).eval()(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    torch.testing.assert_close(found, torch.softmax(logits, 1))
    torch.manual_seed(config.seed)
    fresh = build_model("resnet18", 3, head="soares", size=64)
    assert equal(model.features.state_dict(), fresh.features.state_dict())  # frozen, norms too
    assert not torch.equal(model.classifier[2].weight, fresh.classifier[2].weight)


def test_some_labels_of_a_data_set(tiny_shards, tmp_path):
    labels = ("Pneumonia", "Effusion")
    phase = Phase("all", 1, "all", 0.01)
    stage = Stage("two", "chestxray14", (phase,), batch=16, labels=labels)
    run = trained(replace(CONFIG, stages=(stage,)), tiny_shards, tmp_path / "run")
    model, spec = load_run_model(run)
    assert (spec.labels, spec.exclusive, spec.output) == (labels, False, "sigmoid")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.soak
def test_another_run_stands_for_the_first_stage(tiny_shards, tmp_path):
    first = Stage("chestxray14", "chestxray14", (Phase("all", 1, "all", 0.01),), batch=16)
    frozen = Phase("head", 1, "head", 0.01, frozen_norm="eval")
    keep = (KeptNeuron("Viral Pneumonia", "Pneumonia"),)
    second = replace(STAGE, phases=(frozen,), keep_neurons=keep)
    config = replace(CONFIG, ema_decay=None)
    before = trained(replace(config, stages=(first,)), tiny_shards, tmp_path / "before")
    start = StartConfig("checkpoint", before)
    rest = without_skipped(replace(config, stages=(first, second), start=start, skip_stages=1))
    run = trained(rest, tiny_shards, tmp_path / "rest")
    assert [path.parent.name for path in run.glob("*/model.json")] == ["covid"]
    old, new = load_file(before / "chestxray14" / "model.safetensors"), weights(run)
    assert {key for key in new if not torch.equal(new[key], old[key])} == {"fc.weight", "fc.bias"}
    # One epoch of small steps from Pneumonia's neuron, of which a new one is far.
    moved = (new["fc.weight"][1] - old["fc.weight"][6]).abs().max()
    assert moved < 0.1 < (new["fc.weight"][0] - old["fc.weight"][6]).norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": (replace(STAGE, batch=1),)}, "batch norm cannot train on one image of 32"),
        ({"sync_norm": True}, "--sync-norm needs GPUs"),
        ({"optim": OptimConfig("apex-adam")}, "apex-adam needs a GPU"),
        ({"head": "soares"}, "the maps are 1 x 1, and the soares head pools 2 x 2"),
        (
            {
                "stages": (
                    replace(STAGE, phases=(replace(PHASES[1], schedule=Schedule(factor=2)),)),
                )
            },
            "schedule.factor is 2 .over 0, at most 1.",
        ),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; between 0 and 1"),
        ({"optim": OptimConfig(clip_norm=0.0)}, "optim.clip_norm is 0.0; over 0"),
        ({"stages": (replace(STAGE, labels=("Nope",)),)}, "no label 'Nope'"),
        ({"stages": (replace(STAGE, labels=("Normal", "Normal")),)}, "names Normal twice"),
        (
            {"stages": (STAGE, STAGE)},
            "stage name 'covid': it becomes a folder .* of one stage only",
        ),
        ({"stages": (replace(STAGE, name="../x"),)}, "stage name '../x': it becomes a folder"),
        ({"stages": (replace(STAGE, name="events"),)}, "not checkpoints or events"),
        (
            {
                "stages": (
                    STAGE,
                    replace(STAGE, name="b", keep_neurons=(KeptNeuron("x", "Normal"),)),
                )
            },
            "no label 'x'",
        ),
        (
            {
                "stages": (
                    STAGE,
                    replace(STAGE, name="b", keep_neurons=(KeptNeuron("Normal", "x"),)),
                )
            },
            "no label 'x'",
        ),
        (
            {"stages": (replace(STAGE, phases=(replace(PHASES[1], patience=2),)),)},
            "keep last has no best epoch to wait for",
        ),
        ({"seed": -1}, "seed is -1; 0 to 4294967295"),
        ({"optim": OptimConfig(momentum=1.0)}, "optim.momentum is 1.0; 0 or more and under 1"),
        ({"checkpoint_every_s": -1.0}, "checkpoint_every_s is -1.0; 0 or more"),
        ({"input": InputConfig(threads=-1)}, "input.threads is -1; at least 1, or 0"),
        ({"input": InputConfig(cache=Path(__file__))}, r"input.cache is .*\.py, a file; name a"),
        ({"checkpoint_every_s": math.nan}, "--checkpoint-every-s is nan; a finite number"),
        (
            {"stages": (replace(STAGE, class_weights=(("Normal", math.inf),)),)},
            r"--stages\.0\.class-weights\.0\.1 is inf; a finite number",
        ),
        (
            {"stages": (replace(STAGE, phases=(replace(PHASES[1], lr=math.nan),)),)},
            r"--stages\.0\.phases\.0\.lr is nan; a finite number",
        ),
        (
            {"stages": (replace(STAGE, labels=("Normal", "COVID-19")),)},
            "output softmax needs labels of which each image has exactly one",
        ),
    ],
)
def test_what_cannot_be_trained_is_named(changes, message, tiny_shards, tmp_path):
    with pytest.raises(UserError, match=message):
        trained(replace(CONFIG, **changes), tiny_shards, tmp_path / "run")
