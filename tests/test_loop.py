"""train.loop: what a stage's settings say reaches the steps and the validation, phase by phase."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_engine import Meddler, equal, terminate, trained
from tiny_training import CHEST, CONFIG, COVID, TWO_STAGES
from torch import nn

from shards.labels import Vocabulary
from train import loop as train_loop
from train.config import Stage
from train.loop import Trainer
from train.loss import Loss
from train.metrics import Metrics
from train.phases import Phase
from train.precision import Precision
from train.step import Stepper
from train.stop import Interrupted
from train.store import Store

pytestmark = pytest.mark.usefixtures("tiny_network")

NONE_OF_THREE = (None, None, None)
FIRST = "features.conv0.weight"


def judge(monkeypatch: pytest.MonkeyPatch, val_losses: Iterator[float]) -> list[torch.Tensor]:
    """Each validation has the next of these losses; the network is not asked. The first weights of
    each that was judged."""
    seen: list[torch.Tensor] = []

    def judged(trainer: Trainer, stage: Stage, model: nn.Module, split: str, *_) -> Metrics:
        loss = 9.0
        if split == "val":
            loss = next(val_losses)
            seen.append(model.state_dict()[FIRST].clone())
        return Metrics(loss, None, NONE_OF_THREE, NONE_OF_THREE)

    monkeypatch.setattr(Trainer, "_validate", judged)
    return seen


def phases_of(folder: Path) -> list[tuple[int, int, float]]:
    """Epochs, best epoch through the stage, its validation loss."""
    result = json.loads((folder / "covid" / "result.json").read_bytes())
    names = ("epochs", "best_epoch", "best_val_loss")
    return [tuple(phase[name] for name in names) for phase in result["phases"]]


def test_a_phase_ends_with_its_patience_and_its_best_weights_go_on_also_when_stopped(
    tiny_shards, tmp_path, monkeypatch
):
    head, whole = Phase("head", 1, "head", 0.05), Phase("all", 6, "all", 0.02, patience=2)
    config = replace(CONFIG, stages=(replace(COVID, phases=(head, whole, head)),))
    losses = iter([3.0, *(5.0, 4.0, 4.5, 4.0), 8.0])
    judged = judge(monkeypatch, losses)
    with monkeypatch.context() as patch:
        Meddler(patch, 4 * 4 + 2, terminate)  # in the epoch after the one that was waited
        with pytest.raises(Interrupted):
            trained(tiny_shards, tmp_path, config)
    trained(tiny_shards, tmp_path, config)
    assert phases_of(tmp_path) == [(1, 1, 3.0), (4, 3, 4.0), (1, 6, 8.0)]
    assert list(losses) == []
    assert not torch.equal(judged[2], judged[4])
    for name in ("phase-2", "phase-3", "model"):  # the third phase trains the head alone
        assert torch.equal(load_file(tmp_path / "covid" / f"{name}.safetensors")[FIRST], judged[2])


def test_each_stage_is_trained_and_judged_by_its_own_loss(tiny_shards, tmp_path, monkeypatch):
    trainings: list[Loss] = []
    judgements: list[Loss] = []

    def noting(call, seen: list[Loss]):
        return lambda *words, **options: seen.append(options["loss"]) or call(*words, **options)

    monkeypatch.setattr(train_loop, "Stepper", noting(train_loop.Stepper, trainings))
    monkeypatch.setattr(train_loop, "validate", noting(train_loop.validate, judgements))
    phases = (Phase("head", 1, "head", 0.05),)
    weighted = replace(
        COVID, phases=phases, output="softmax", class_weights=(("COVID-19", 3.0), ("Normal", 0.5))
    )
    stages = (replace(CHEST, phases=phases), weighted)
    closed: list[Store] = []
    monkeypatch.setattr(Store, "close", lambda store: closed.append(store))
    trained(tiny_shards, tmp_path, replace(CONFIG, stages=stages))
    assert len(closed) == 6  # each split's, at the end of its stage
    for losses in (trainings, judgements[::2], judgements[1::2]):  # of val, of test
        plain, own = losses
        assert (plain.output, plain.weights) == ("sigmoid", None)
        assert own.weights is not None
        assert (own.output, own.weights.tolist()) == ("softmax", [0.5, 1.0, 3.0])


def test_a_network_with_another_head_and_size_goes_on(tiny_shards, tmp_path, monkeypatch):
    stage = replace(COVID, phases=(Phase("head", 1, "head", 0.05),))
    config = replace(CONFIG, stages=(stage,), head="soares", size=64)
    whole = trained(tiny_shards, tmp_path / "whole", config)
    expect = Stepper.expect
    with monkeypatch.context() as patch:  # in the first step
        patch.setattr(Stepper, "expect", lambda *words: terminate(expect(*words)))
        with pytest.raises(Interrupted):
            trained(tiny_shards, tmp_path / "cut", config)
    assert equal(trained(tiny_shards, tmp_path / "cut", config), whole)


def test_a_run_that_ends_between_two_stages_draws_the_same_new_neurons(
    tiny_shards, tmp_path, monkeypatch
):
    phases = (Phase("all", 1, "all", 0.02),)
    stages = tuple(replace(stage, phases=phases) for stage in TWO_STAGES.stages)
    config = replace(TWO_STAGES, stages=stages)
    whole = trained(tiny_shards, tmp_path / "whole", config)
    load = Trainer._load_stores

    def cut(trainer: Trainer, stage: Stage, vocabulary: Vocabulary) -> dict[str, Store]:
        if stage.name == "covid":
            raise RuntimeError("cut")
        return load(trainer, stage, vocabulary)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_load_stores", cut)
        with pytest.raises(RuntimeError, match="cut"):
            trained(tiny_shards, tmp_path / "cut", config)
    assert equal(trained(tiny_shards, tmp_path / "cut", config), whole)


def test_the_test_is_in_fp32_whatever_the_training_computes_in(tiny_shards, tmp_path, monkeypatch):
    """As the exported model, so that both call the same images."""
    seen, modes, validate = [], [], train_loop.validate

    def noting(model, store, expander, **options):
        found = validate(model, store, expander, **options)
        seen.append((options["precision"].name, modes[-1]))
        if len(seen) == 2:
            exact = options | {"precision": Precision("fp32", torch.device("cpu"))}
            assert validate(model, store, expander, **exact) == found
        return found

    monkeypatch.setattr(train_loop, "validate", noting)
    monkeypatch.setattr(train_loop, "set_cuda", lambda _, tf32, **__: modes.append(tf32))
    stage = replace(COVID, phases=(Phase("head", 1, "head", 0.05),))
    folder = tmp_path / "run"
    trained(tiny_shards, folder, replace(CONFIG, stages=(stage,), precision="bf16"))
    assert seen == [("bf16", True), ("fp32", False)]
    assert modes == [True, False, True]  # TF32 in the steps, where the settings allow it
    (phase,) = json.loads((folder / "covid" / "result.json").read_bytes())["phases"]
    assert phase["test"]["precision"] == "fp32"
