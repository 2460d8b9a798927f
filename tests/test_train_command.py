"""python -m train as a command: whole runs, kills, stops, two processes."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_training import ROOT, arguments

from shards.manifest import load_manifest
from train import __main__ as command
from train.log import read_metrics
from train.recipes import RECIPES
from train.runs import load_run_model
from train.settings import jsonable


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


def test_an_unknown_recipe_as_a_process():
    status, out, err = finish(start(["train", "nope", "--shards", "a", "--run", "b"]))
    assert (status, out) == (2, "")
    assert err.startswith("error: no recipe 'nope'; there are: demo, ")
    assert len(err.splitlines()) == 1


@pytest.mark.soak
def test_a_dropped_remainder_that_leaves_no_step_is_refused(tiny_shards, tmp_path):
    words = ["--stages.0.remainder", "drop", "--stages.0.batch", "1000"]
    status, _, err = finish(start(["train", *arguments(tiny_shards, tmp_path / "run", *words)]))
    assert status == 2
    line = err.splitlines()[-1]
    assert line.startswith("error: stage chestxray14: an epoch has ")
    assert "units of source, the batch is 1000, and --remainder drop leaves no step" in line


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
