"""python -m train as a command: whole runs, kills, stops, two processes, wrong requests."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from shards.console import UserError, run
from shards.manifest import load_manifest, shard_path
from train import __main__ as command
from train.dist import World
from train.log import read_metrics
from train.loop import Trainer
from train.models import build_model
from train.recipes import RECIPES
from train.runs import ModelSpec, load_run_model, save_model
from train.settings import jsonable, write_settings

ROOT = Path(__file__).resolve().parent.parent
# The demo at 32 pixels and about one epoch a phase; Normal keeps its 8 copies, COVID-19 has 12
# (test_recipes.py takes a step with all 72).
TINY = [
    *("--size", "32", "--precision", "fp32", "--device", "cpu", "--micro-batch", "32"),
    *("--stages.0.phases.1.epochs", "1", "--stages.1.phases.1.epochs", "1"),
    *("--stages.1.batch", "6", "--stages.1.expansions.2.expansion.rotations", "1"),
    *("--stages.1.expansions.1.expansion.rotations", "1"),
    *("--stages.1.expansions.1.expansion.translations", "1"),
]
COVID = "covid-radiography"


def arguments(shards: Path, folder: Path, *more: str) -> list[str]:
    return ["demo", "--shards", str(shards), "--run", str(folder), *TINY, *more]


def one_core() -> None:
    """The same number of threads in every process: bits may depend on it."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def start(words: list[str], *, pinned: bool = True) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        preexec_fn=one_core if pinned else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 200) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def final_weights(folder: Path) -> dict[str, str]:
    """SHA-256 of every weights file of the run."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for stage in ("chestxray14", "covid")
        for path in sorted((folder / stage).glob("*.safetensors"))
    }


def lasting(folder: Path) -> list[dict]:
    """The metrics that do not tell of time."""
    names = ("seconds", "step_s", "img_s", "time")
    return [{k: v for k, v in line.items() if k not in names} for line in read_metrics(folder)]


def newest_state(folder: Path) -> dict:
    """The JSON of the newest checkpoint; {} when there is none."""
    states = sorted((folder / "checkpoints").glob("[0-9]*/state.json"))
    try:
        return json.loads(states[-1].read_bytes())["position"] if states else {}
    except FileNotFoundError:  # removed between the two lines: a newer one is there
        return newest_state(folder)


def is_within_epoch(state: dict, after: int) -> bool:
    """Whether it is of an epoch's first steps, after so many finished epochs."""
    return state.get("lines", 0) >= after and 1 <= state["step"] <= 2


@pytest.fixture(scope="module")
def undisturbed(tiny_shards, tmp_path_factory) -> tuple[Path, str]:
    """(the folder of a whole run, what it printed)."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    status, out, err = finish(start(["train", *arguments(tiny_shards, folder)]))
    assert status == 0, err
    return folder, out


@pytest.mark.soak
def test_a_run_leaves_its_files(undisturbed):
    folder, printed = undisturbed
    for name in ("settings.json", "environment.json", "metrics.jsonl", "curves.png"):
        assert (folder / name).stat().st_size > 0
    assert list((folder / "events").iterdir())
    assert len(list((folder / "checkpoints").glob("[0-9]*"))) == 2
    for split, count in (("train", 22), ("val", 5), ("test", 9)):
        keys = (folder / "covid" / "splits" / f"{split}.txt").read_text().splitlines()
        assert len(set(keys)) == len(keys) == count
    environment = json.loads((folder / "environment.json").read_bytes())
    assert {"torch", "cpu", "gpu", "cuda", "cudnn", "packages"} <= environment.keys()
    names = sorted(final_weights(folder))
    assert names == sorted(
        [f"{s}/model.safetensors" for s in ("chestxray14", "covid")]
        + [f"chestxray14/phase-{i}.safetensors" for i in (1, 2)]
        + [f"covid/phase-{i}.safetensors" for i in (1, 2, 3, 4)]
    )
    assert "synthetic data; not a medical device" in printed
    assert "covid" in printed


@pytest.mark.soak
def test_a_finished_run_is_left_as_it_is(undisturbed, tiny_shards):
    folder, printed = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    status, again, err = finish(start(["train", *arguments(tiny_shards, folder)]))
    assert (status, err) == (0, "")
    assert again == printed
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.soak
def test_a_runs_numbers_fit_together(undisturbed, tiny_shards):
    folder, _ = undisturbed
    lines = read_metrics(folder)
    stages = json.loads((folder / "settings.json").read_bytes())["config"]["stages"]
    for stage in stages:
        result = json.loads((folder / stage["name"] / "result.json").read_bytes())
        splits = load_manifest(tiny_shards / stage["dataset"]).splits
        assert result["counts"] == {split: counts.samples for split, counts in splits.items()}
        rows = [line for line in lines if line["stage"] == stage["name"]]
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        for number, phase in enumerate(result["phases"], 1):
            mine = [row for row in rows if row["phase"] == number]
            best = min(mine, key=lambda row: row["val_loss"])
            assert phase["epochs"] == len(mine)
            assert (phase["best_epoch"], phase["best_val_loss"]) == (
                best["epoch"],
                best["val_loss"],
            )
        last = f"phase-{len(stage['phases'])}.safetensors"
        weights = final_weights(folder)
        assert weights[f"{stage['name']}/{last}"]
        model, spec = load_run_model(folder, stage["name"])
        assert spec.weights_sha256 == weights[f"{stage['name']}/model.safetensors"]
        assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.soak
def test_killed_and_stopped_a_run_ends_as_the_undisturbed(undisturbed, tiny_shards, tmp_path):
    folder, words = tmp_path / "run", ["train", *arguments(tiny_shards, tmp_path / "run")]
    killed = start(words)
    wait_until(killed, lambda: len(read_metrics(folder)) >= 1)
    pause = random.uniform(0, 1)
    print(f"killed {pause:.3f} s after the first epoch")  # shown when the test fails
    time.sleep(pause)
    killed.kill()
    assert finish(killed)[0] == -signal.SIGKILL
    # A checkpoint after each step, so that the stop comes in the middle of a phase's epoch, when
    # the optimiser holds momentum; how often it saves is no part of what a run computes.
    stopped = start([*words, "--checkpoint-every-s", "0"])
    wait_until(stopped, lambda: is_within_epoch(newest_state(folder), after=4))
    stopped.send_signal(signal.SIGTERM)
    status, _, err = finish(stopped)
    assert status == 0
    assert err.splitlines()[-1] == "stopped; the same command goes on from the last checkpoint"
    assert not (folder / "covid" / "model.json").exists()
    status, _, err = finish(start(words))
    assert status == 0, err
    assert final_weights(folder) == final_weights(undisturbed[0])
    assert lasting(folder) == lasting(undisturbed[0])


@pytest.mark.soak
def test_two_processes_finish(tiny_shards, tmp_path):
    # Without `--` torchrun takes --run for an abbreviation of its own --run-path.
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    words = [*launcher, "train", *arguments(tiny_shards, tmp_path / "run")]
    status, _, err = finish(start(words, pinned=False))
    assert status == 0, err
    lines = read_metrics(tmp_path / "run")
    assert {line["stage"] for line in lines} == {"chestxray14", "covid"}
    for line in lines:
        assert 0 < line["train_loss"] < 20
        assert 0 < line["val_loss"] < 20
    for stage in ("chestxray14", "covid"):
        model, _ = load_run_model(tmp_path / "run", stage)
        assert all(value.isfinite().all() for value in model.state_dict().values())


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


def test_an_unknown_recipe_as_a_process():
    status, out, err = finish(start(["train", "nope", "--shards", "a", "--run", "b"]))
    assert (status, out) == (2, "")
    assert err.startswith("error: no recipe 'nope'; there are: demo, ")
    assert len(err.splitlines()) == 1


def test_list_and_show_tell_what_is_known_of_a_recipe(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "list"])
    monkeypatch.setenv("COLUMNS", "1000")
    command.main()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, entry in RECIPES.items():
        first = next(n for n, line in enumerate(lines) if line.split(" ")[0] == name)
        told = [" ".join(line.split()) for line in lines[first : first + 5]]
        facts = ("source", "data", "cost", "expect")
        assert told == [f"{name} {entry.what}", *(f"{f} {getattr(entry, f)}" for f in facts)]
        monkeypatch.setattr(sys, "argv", ["train", "show", name])
        command.main()
        assert json.loads(capsys.readouterr().out) == jsonable(asdict(entry.build()))


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


@pytest.mark.soak
def test_a_dropped_remainder_that_leaves_no_step_is_refused(tiny_shards, tmp_path):
    words = ["--stages.0.remainder", "drop", "--stages.0.batch", "1000"]
    status, _, err = finish(start(["train", *arguments(tiny_shards, tmp_path / "run", *words)]))
    assert status == 2
    line = err.splitlines()[-1]
    assert line.startswith("error: stage chestxray14: an epoch has ")
    assert "units of source, the batch is 1000, and --remainder drop leaves no step" in line


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
