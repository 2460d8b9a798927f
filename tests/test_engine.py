"""The engine's promises: stops, resumes, and losses that are no number."""

import errno
import json
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from tiny_training import CONFIG, COVID, tiny_densenet

from shards.console import RunFailed, UserError, run
from shards.labels import UNKNOWN
from train import __main__ as command
from train import loop as train_loop
from train.augment import EIGHT
from train.config import LabelExpansion, TrainConfig
from train.dist import World
from train.log import read_metrics
from train.loop import Trainer
from train.phases import Phase
from train.settings import write_settings
from train.step import Stepper
from train.stop import Interrupted
from train.store import Store

pytestmark = pytest.mark.usefixtures("tiny_network")


def trained(shards: Path, folder: Path, config: TrainConfig = CONFIG) -> Path:
    trainer = Trainer(config, shards, folder, World("cpu"))
    write_settings(folder, config, shards, True)
    trainer.run()
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "covid" / "model.safetensors")


def equal(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def lasting(folder: Path) -> list[dict]:
    names = ("seconds", "step_s", "img_s", "time")
    return [{k: v for k, v in line.items() if k not in names} for line in read_metrics(folder)]


def newest_state(folder: Path) -> dict:
    path = sorted((folder / "checkpoints").glob("[0-9]*/state.json"))[-1]
    return json.loads(path.read_bytes())


@pytest.fixture(scope="module")
def undisturbed(tiny_shards, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "densenet121", tiny_densenet)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        folder = trained(tiny_shards, tmp_path_factory.mktemp("engine") / "run")
        torch.set_num_threads(threads)
    return folder


class Meddler:
    """Calls `act` in the forward pass of this micro-batch, counted over the whole run."""

    def __init__(self, monkeypatch, number: int, act) -> None:
        self.count, forward = 0, torchvision.models.DenseNet.forward

        def meddled(net, images):
            out = forward(net, images)
            self.count += 1
            return act(out) if self.count == number else out

        monkeypatch.setattr(torchvision.models.DenseNet, "forward", meddled)


def terminate(out: torch.Tensor) -> torch.Tensor:
    signal.raise_signal(signal.SIGTERM)
    return out


# Each epoch is 4 steps and a validation; 6: the first phase's test, 9: in the second's first epoch.
@pytest.mark.parametrize("number", [2, 5, 6, 9, 16])
def test_stopped_within_a_step_or_a_validation_it_goes_on_bit_by_bit(
    undisturbed, tiny_shards, tmp_path, monkeypatch, number
):
    with monkeypatch.context() as patch:
        Meddler(patch, number, terminate)
        with pytest.raises(Interrupted):
            trained(tiny_shards, tmp_path / "run")
    trained(tiny_shards, tmp_path / "run")
    assert equal(tmp_path / "run", undisturbed)
    assert lasting(tmp_path / "run") == lasting(undisturbed)


def test_a_stopped_command_ends_with_status_0(tiny_shards, tmp_path, monkeypatch, capsys):
    Meddler(monkeypatch, 9, terminate)
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as ended:
        run(lambda: command.train(command.TrainCommand(tiny_shards, tmp_path / "run", CONFIG)))
    assert ended.value.code == 0
    assert "stopped; the same command goes on from the last" in capsys.readouterr().err
    assert newest_state(tmp_path / "run")["position"]["step"] == 2


def test_a_signal_while_images_are_decoded_ends_at_once(tiny_shards, tmp_path, monkeypatch):
    def decode(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("went on")

    monkeypatch.setattr("train.load.Loader._decode", decode)
    with pytest.raises(Interrupted):
        trained(tiny_shards, tmp_path / "run")


def test_a_stage_is_finished_when_its_curves_are_there(tiny_shards, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train_loop, "draw_curves", full)
        with pytest.raises(OSError, match="No space left"):
            trained(tiny_shards, run)
    assert not (run / "covid" / "model.json").exists()
    trained(tiny_shards, run)
    assert (run / "covid" / "model.json").exists()
    assert (run / "curves.png").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_known_label_is_refused(tiny_shards, tmp_path, monkeypatch, split):
    load = train_loop.load_stores

    def unknown(*words: object, **options: object) -> dict[str, Store]:
        stores = load(*words, **options)
        stores[split].labels[:] = UNKNOWN
        return stores

    monkeypatch.setattr(train_loop, "load_stores", unknown)
    with pytest.raises(UserError, match=f"no image of {split} has a known label .of: Normal, "):
        trained(tiny_shards, tmp_path / "run")
    if split == "val":  # which the last epoch is kept without
        last = replace(COVID, phases=(Phase("all", 1, "all", 0.1, keep="last"),))
        run = trained(tiny_shards, tmp_path / "last", replace(CONFIG, stages=(last,)))
        assert np.isnan(read_metrics(run)[0]["val_loss"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_the_images(
    undisturbed, tiny_shards, tmp_path, monkeypatch, value
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        Meddler(patch, 9, lambda out: out * value)
        with pytest.raises(RunFailed, match=r"loss is .* epoch 2, step 3; its batch: ") as error:
            trained(tiny_shards, folder)
    named = str(error.value).split("its batch: ")[1].split("; look")[0].split(", ")
    keys = (folder / "covid" / "splits" / "train.txt").read_text().split()
    assert len(named) == 6
    assert set(named) <= set(keys)
    assert newest_state(folder)["position"]["step"] == 2  # from before
    trained(tiny_shards, folder)  # without the meddler nothing of it is left
    assert equal(folder, undisturbed)


@pytest.mark.parametrize(("every_s", "message"), [(0, "the weights are no"), (600, "the loss is")])
def test_weights_that_are_no_numbers_are_not_written(
    undisturbed, tiny_shards, tmp_path, monkeypatch, every_s, message
):
    folder, config = tmp_path / "run", replace(CONFIG, checkpoint_every_s=every_s)
    steps, update = [], Stepper.update

    def diverge(self: Stepper) -> None:
        update(self)
        steps.append(1)
        if len(steps) == 6:  # the second of the second phase
            with torch.no_grad():
                next(self.model.parameters())[0] = torch.nan

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "update", diverge)
        with pytest.raises(RunFailed, match=f"{message} .*the last checkpoint is from before"):
            trained(tiny_shards, folder, config)
    position = newest_state(folder)["position"]
    assert (position["lines"], position["step"]) == (1, 0 if every_s else 1)
    trained(tiny_shards, folder, config)
    assert equal(folder, undisturbed)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "best"])
def test_a_damaged_checkpoint_gives_way_and_the_end_is_the_same(
    undisturbed, tiny_shards, tmp_path, monkeypatch, capsys, name
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        Meddler(patch, 13, terminate)  # in the second phase's second epoch
        with pytest.raises(Interrupted):
            trained(tiny_shards, folder)
    newest = sorted((folder / "checkpoints").glob("[0-9]*"))[-1]
    best = folder / "checkpoints" / newest_state(folder)["best_file"]
    path = best if name == "best" else newest / name
    path.write_bytes(path.read_bytes()[:-7])
    if name == "best":  # both checkpoints speak of it: there is none before
        with pytest.raises(RunFailed, match=r"no checkpoint in .* can be read"):
            trained(tiny_shards, folder)
        return
    capsys.readouterr()
    trained(tiny_shards, folder)
    assert f"warning: checkpoint {newest} is damaged" in capsys.readouterr().err
    assert equal(folder, undisturbed)
    assert lasting(folder) == lasting(undisturbed)


def starts(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]


def test_each_start_tells_what_it_took_for_auto(tiny_shards, tmp_path, monkeypatch, capsys):
    folder, config = tmp_path / "run", replace(CONFIG, precision="auto")
    monkeypatch.setattr("train.precision.best_precision", lambda device: "bf16")
    with monkeypatch.context() as patch:
        Meddler(patch, 9, terminate)
        with pytest.raises(Interrupted):
            trained(tiny_shards, folder, config)
    assert "this run was trained in" not in capsys.readouterr().err
    monkeypatch.setattr("train.precision.best_precision", lambda device: "fp32")
    trained(tiny_shards, folder, config)
    error = capsys.readouterr().err
    assert "warning: this run was trained in bf16 so far and goes on in fp32" in error
    names = ("stage", "device", "precision", "micro_batch", "store", "backend")
    assert [tuple(line[name] for name in names) for line in starts(folder)] == [
        ("covid", "cpu", precision, 64, "host", "torch") for precision in ("bf16", "fp32")
    ]
    for line in starts(folder):
        assert line["threads"] >= 1
        assert len(line["gpu_names"]) == line["environment"]["gpus"]
        assert line["environment"]["processes"] == 1


def test_a_resumed_epochs_line_is_of_the_whole_epoch(
    undisturbed, tiny_shards, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        Meddler(patch, 9, terminate)
        with pytest.raises(Interrupted):
            trained(tiny_shards, folder)
    path = sorted((folder / "checkpoints").glob("[0-9]*"))[-1]
    before = json.loads((path / "state.json").read_bytes())["position"]
    assert before["seconds"] > before["step_seconds"] > 0
    assert before["copies"] == 12
    trained(tiny_shards, folder)
    line = read_metrics(folder)[1]
    assert line["copies"] == read_metrics(undisturbed)[1]["copies"] == 24
    assert line["seconds"] > before["seconds"]
    assert line["img_s"] < line["copies"] / before["step_seconds"]


def test_the_ranks_weights_are_compared_each_epoch_before_it_is_judged(
    tiny_shards, tmp_path, monkeypatch
):
    done: list[str] = []
    monkeypatch.setattr(World, "check_same", lambda self, model: done.append("compared"))
    validate = Trainer._validate
    monkeypatch.setattr(
        Trainer, "_validate", lambda *words: done.append(words[3]) or validate(*words)
    )
    trained(tiny_shards, tmp_path / "run")
    assert done == [*["compared", "val"], "test", *["compared", "val"] * 3, "test"]


@pytest.mark.parametrize("expand", [True, False])
def test_validation_sees_the_copies_where_it_is_said_and_the_test_none(
    tiny_shards, tmp_path, monkeypatch, expand
):
    seen, validate = [], train_loop.validate

    def noting(model, store, expander, **options):
        more = expander.factors(store.labels).sum() - len(store)
        seen.append((int(more), 7 * int((store.labels[:, 2] == 1).sum())))
        return validate(model, store, expander, **options)

    monkeypatch.setattr(train_loop, "validate", noting)
    stage = replace(
        COVID,
        phases=(Phase("head", 1, "head", 0.05),),
        expansions=(LabelExpansion("COVID-19", EIGHT),),
        expand_validation=expand,
    )
    trained(tiny_shards, tmp_path / "run", replace(CONFIG, stages=(stage,)))
    (val, of_val), (test, of_test) = seen
    assert (val, test) == (of_val if expand else 0, 0)
    assert min(of_val, of_test) > 0


def test_a_line_has_auroc_and_f1_of_each_label(undisturbed):
    for line in read_metrics(undisturbed):
        for measure in ("val_auroc", "val_f1"):
            by_label = line[f"{measure}_by_label"]
            assert list(by_label) == ["Normal", "Viral Pneumonia", "COVID-19"]
            known = [value for value in by_label.values() if value is not None]
            assert np.mean(known) == pytest.approx(line[measure])


def test_bf16_has_the_loss_curve_of_fp32(tiny_shards, tmp_path, monkeypatch):
    """Within 3 % at each epoch: a bf16 product has 8 bits, the sums are in fp32. Without dropout,
    which draws other numbers in bf16, and with enough pixels for batch norm to be no noise: over
    16 other trainings the curves were up to 1.5 % apart."""
    plain = partial(torchvision.models.DenseNet, 4, (1, 1, 1, 1), 8)
    monkeypatch.setattr(
        torchvision.models, "densenet121", lambda weights, **options: plain(**options)
    )
    config = replace(CONFIG, size=64, checkpoint_every_s=1e9)
    stage = replace(COVID, batch=11, phases=(Phase("all", 4, "all", 0.01),))
    curves = [
        [
            line["train_loss"]
            for line in read_metrics(
                trained(
                    tiny_shards,
                    tmp_path / name,
                    replace(config, stages=(stage,), precision=name),
                )
            )
        ]
        for name in ("fp32", "bf16")
    ]
    assert curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], rel=0.03)
    assert curves[0][-1] < curves[0][0]
