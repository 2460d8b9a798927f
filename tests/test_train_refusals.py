"""python -m train as a command: wrong requests end in one line that says what is allowed."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import arguments

from shards.console import UserError, run
from shards.manifest import load_manifest, shard_path
from train import __main__ as command
from train.dist import World
from train.loop import Trainer
from train.models import build_model
from train.runs import ModelSpec, save_model
from train.settings import write_settings

COVID = "covid-radiography"


@pytest.fixture
def fail_with(monkeypatch, capsys) -> Iterator[Callable[..., str]]:
    """Runs the command here; it must end with status 2 and one line, which is returned."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()

    def run_here(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["train", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run(command.main)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    yield run_here
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_an_unknown_setting_lists_the_valid(fail_with, tmp_path):
    line = fail_with(*arguments(tmp_path, tmp_path / "run", "--stages.0.phases.1.lrr", "1"))
    assert "no setting --stages.0.phases.1.lrr in recipe demo" in line
    assert "--stages.N.phases.N.lr," in line
    assert "--micro-batch," in line


def test_missing_shards_and_manifests_are_named(fail_with, tiny_shards, tmp_path):
    line = fail_with(*arguments(tmp_path / "none", tmp_path / "run"))
    assert f"no folder {tmp_path / 'none' / 'chestxray14'}; make it with: python -m ingest" in line
    shutil.copytree(tiny_shards, tmp_path / "shards")
    (tmp_path / "shards" / COVID / "manifest.json").unlink()
    line = fail_with(*arguments(tmp_path / "shards", tmp_path / "run"))
    assert "no manifest.json in" in line
    assert "run the same ingest command again" in line
    assert not (tmp_path / "run").exists()


def test_a_shard_cut_short_is_named(fail_with, tiny_shards, tmp_path):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    folder = tmp_path / "shards" / COVID
    path = shard_path(folder, load_manifest(folder).of_split("test")[0])
    path.write_bytes(path.read_bytes()[:-1024])
    line = fail_with(*arguments(tmp_path / "shards", tmp_path / "run"))
    assert f"{path} has {path.stat().st_size} bytes, expected" in line
    assert "ingest again" in line


@pytest.mark.parametrize(
    ("missing", "has", "way"),
    [
        ({"val"}, "no split val, only test, train; ", " --keep-test --fractions 0.7 0.1 0.2"),
        ({"val", "test"}, "no split val and no test, only train; ", " --fractions 0.7 0.1 0.2"),
    ],
)
def test_a_missing_split_is_named_with_the_way_to_make_it(
    fail_with, tiny_shards, tmp_path, missing, has, way
):
    folder = tmp_path / "shards" / COVID
    shutil.copytree(tiny_shards, tmp_path / "shards")
    whole = load_manifest(folder)
    kept = {name: counts for name, counts in whole.splits.items() if name not in missing}
    shards = tuple(shard for shard in whole.shards if shard.split in kept)
    cut = replace(whole, splits=kept, shards=shards)
    (folder / "manifest.json").write_bytes(cut.to_json())
    line = fail_with(*arguments(tmp_path / "shards", tmp_path / "run"))
    assert f"data set {COVID} has {has}" in line
    assert line.endswith(f": python -m ingest resplit {folder}{way}")


@pytest.fixture
def finished(tiny_shards, tmp_path) -> Path:
    """What a finished run of `arguments` leaves, as far as a second start looks at it."""
    folder = tmp_path / "finished"
    config = command.parse("demo", arguments(tiny_shards, folder)[1:], command.TrainCommand).config
    write_settings(folder, config, tiny_shards, synthetic=True)
    for name in ("chestxray14", "covid"):
        (folder / name).mkdir()
        (folder / name / "model.json").write_text("{}")
        (folder / name / "result.json").write_text('{"phases": []}')
    (folder / "checkpoints").mkdir()
    return folder


def test_a_folder_of_another_run_is_refused(fail_with, finished, tiny_shards, tmp_path):
    folder = finished
    before = (folder / "settings.json").read_bytes()
    line = fail_with(*arguments(tiny_shards, folder, "--seed", "1"))
    assert "holds another run (differing: config.seed); take another --run folder" in line
    assert (folder / "settings.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    line = fail_with(*arguments(tiny_shards, tmp_path / "mine"))
    assert f"{tmp_path / 'mine'} is not empty and holds no run" in line


def test_a_run_finished_on_other_data_is_refused(fail_with, finished, tiny_shards):
    (finished / "covid" / "model.json").write_text('{"manifest_hash": "of older shards"}')
    line = fail_with(*arguments(tiny_shards, finished))
    assert f"is finished, and was trained on another {COVID} than is in {tiny_shards} now" in line


def test_a_start_of_another_architecture_is_refused(fail_with, tiny_shards, tmp_path):
    values = dict.fromkeys(("dataset", "manifest_hash", "recipe", "stage"), "first")
    values |= {"architecture": "densenet201", "exclusive": True, "size": 32, "synthetic": True}
    values |= {"labels": ("a", "b"), "shorter_side": None, "preprocessing_version": 1}
    save_model(tmp_path / "first", build_model("densenet201", 2), ModelSpec(**values))
    settings = {"config": {"stages": [{"name": "first"}]}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    start_here = ["--start.kind", "checkpoint", "--start.path", str(tmp_path)]
    line = fail_with(*arguments(tiny_shards, tmp_path / "run", *start_here))
    assert "holds a densenet201, the recipe trains a densenet121" in line


def test_a_label_that_the_vocabulary_lacks_is_named(fail_with, tiny_shards, tmp_path):
    label = ["--stages.1.expansions.0.label", "Nope"]
    line = fail_with(*arguments(tiny_shards, tmp_path / "run", *label))
    assert "no label 'Nope' in the vocabulary; it has: Normal, Viral Pneumonia, COVID-19" in line


def test_a_batch_smaller_than_the_world_is_refused(tiny_shards, tmp_path):
    words = arguments(tiny_shards, tmp_path / "run")[1:]
    config = command.parse("demo", words, command.TrainCommand).config
    world = World("cpu")
    world.size = 7
    with pytest.raises(UserError, match="stage covid: batch is 6, fewer than the 7 processes"):
        Trainer(config, tiny_shards, tmp_path / "run", world)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "16"], "size is 16; the networks need at least 32 pixels"),
        (["--micro-batch", "1"], "micro_batch is 1"),
        (["--stages.0.batch", "0"], "batch is 0; at least 1"),
        (["--stages.0.phases.0.epochs", "0"], "every phase needs at least 1 epoch"),
        (["--stages.0.phases.0.lr", "0"], "lr is 0.0"),
        (["--stages.0.phases.0.weight-decay", "-1"], "weight_decay is -1.0"),
        (["--stages.0.phases.1.patience", "0"], "patience is 0; at least 1, or None"),
        (["--stages.1.expansions.0.expansion.rotations", "0"], "of Normal needs at least 1"),
        (["--stages.1.expansions.2.expansion.translations", "0"], "of COVID-19 needs at least 1"),
        (["--precision", "fp16"], "precision fp16 needs a GPU"),
        (["--recipe", "network-c"], "no setting --recipe in recipe demo"),
        (["--stages.0.expansions", "x"], "no setting --stages.0.expansions in recipe demo"),
        (["--stages.1.keep-neurons.0.old-label", "Nope"], "no label 'Nope' in the vocabulary"),
        (["--stages.1.class-weights", "Nope", "2"], "no label 'Nope' in the vocabulary"),
        (["--stages.1.class-weights", "Normal"], "Error parsing --stages.1.class-weights"),
        (["--seed", "1.5"], "Error parsing --seed"),
        (["--optim.name", "apex-adam"], "apex-adam needs a GPU; take adam"),
        (["--architecture", "vgg7"], "no architecture 'vgg7'; there are: densenet121"),
        (["--start.path", "runs/first"], "start.path is runs/first, which start.kind random does"),
        (["--start.kind", "chexnet"], "--start.kind chexnet needs --start.path"),
    ],
)
def test_wrong_settings_are_named(fail_with, tiny_shards, tmp_path, words, message):
    assert message in fail_with(*arguments(tiny_shards, tmp_path / "run", *words))


def test_class_weights_are_given_by_label():
    words = ["--shards", "a", "--run", "b", "--stages.covid.class-weights", "COVID-19", "2"]
    stage = command.parse("network-c", [*words, "Normal", "0.5"], command.TrainCommand).config
    assert stage.stages[1].class_weights == (("COVID-19", 2.0), ("Normal", 0.5))


def test_a_finished_run_with_a_damaged_result_is_named(fail_with, finished, tiny_shards):
    path = finished / "covid" / "result.json"
    for content in ('{"phases": [', "[]"):
        path.write_text(content)
        assert f"{path} is damaged" in fail_with(*arguments(tiny_shards, finished))
    path.unlink()
    assert f"{path} is damaged (" in fail_with(*arguments(tiny_shards, finished))
