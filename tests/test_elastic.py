"""A run that is stopped in the middle of an epoch and goes on with other processes: the copies that
each step trains on, and the weights at the end, are those of a run that nothing disturbed."""

import json
import os
import signal
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from ingest_runs import ROOT
from safetensors.torch import load_file
from tiny_training import play

pytestmark = pytest.mark.soak

# One stage of two epochs, batch norm in inference mode, so that what a step does to the weights
# does not depend on how its copies are shared out. Each process notes the copies of each step (keys
# and matrices), and asks for the end by itself after STOP steps; a negative STOP kills rank 1.
PROCESS = """
import json, os, signal, sys
from pathlib import Path
from shards.console import run
from train import __main__ as command
from train.augment import EIGHT, Augment
from train.config import LabelExpansion, Stage, TrainConfig
from train.phases import Phase
from train.step import Stepper
from train.weights import StartConfig

shards, folder, notes, unit, balance, stop = sys.argv[1:]
note, updates = Path(f"{notes}-{os.environ.get('RANK', 0)}"), []
copies, update = Stepper._copies, Stepper.update

def noting(self, share, epoch):
    found = copies(self, share, epoch)
    keys = [self.store.keys[sample] for sample in found.sample]
    rows = [[key, *row] for key, row in zip(keys, found.matrices.reshape(-1, 6).tolist())]
    with note.open("a") as file:
        file.write(json.dumps(rows) + chr(10))
    return found

def stopping(self):
    update(self)
    updates.append(1)
    if len(updates) == int(stop):
        os.kill(os.getpid(), signal.SIGTERM)
    if len(updates) == -int(stop) and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

Stepper._copies, Stepper.update = noting, stopping
stage = Stage(
    "covid",
    "covid-radiography",
    (Phase("head", 2, "head", lr=0.05, keep="last", frozen_norm="eval"),),
    batch=5,
    batch_unit=unit,
    balance=balance == "balance",
    augment=Augment(mirror=0.5, max_rotation_deg=10),
    expansions=(LabelExpansion("COVID-19", EIGHT),),
)
config = TrainConfig(
    "elastic",
    "densenet121",
    (stage,),
    StartConfig("random"),
    size=32,
    micro_batch=16,
    precision="fp32",
    device="cpu",
)
run(lambda: command.train(command.TrainCommand(Path(shards), Path(folder), config)))
"""
PARALLEL = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
Step = list[list]  # rows: key and matrix of a copy


def train(tmp_path: Path, words: list, name: str, stop: int, processes: int) -> list[list[Step]]:
    """Start, or go on with, the run `name`; the steps that each process took part in."""
    script, notes = tmp_path / "process.py", tmp_path / f"{name}-{stop}"
    script.write_text(PROCESS)
    shards, unit, balance = words
    launcher = PARALLEL if processes == 2 else []
    options = [shards, tmp_path / name, notes, unit, balance, stop]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    noted = [Path(f"{notes}-{rank}").read_text().splitlines() for rank in range(processes)]
    return [[json.loads(line) for line in lines] for lines in noted]


def together(ranks: list[list[Step]]) -> list[Step]:
    """The copies of each step, of all processes, sorted."""
    return [sorted(chain.from_iterable(shares)) for shares in zip(*ranks, strict=True)]


@pytest.mark.parametrize(
    ("unit", "balance", "before", "after"),
    [("augmented", "", 1, 2), ("source", "balance", 2, 1)],
)
def test_stopped_in_an_epoch_it_goes_on_with_other_processes(
    tiny_shards, tmp_path, unit, balance, before, after
):
    words = [tiny_shards, unit, balance]
    whole = together(train(tmp_path, words, "whole", 0, 1))
    stop = len(whole) // 2 + 2  # in the second epoch
    first = together(train(tmp_path, words, "cut", stop, before))
    (state,) = [json.loads(p.read_bytes()) for p in last_states(tmp_path / "cut")]
    assert 0 < state["position"]["step"] < len(whole) // 2
    second = together(train(tmp_path, words, "cut", 0, after))
    assert first + second == whole
    weights = [load_file(tmp_path / n / "covid" / "model.safetensors") for n in ("whole", "cut")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)
    losses = [validation_losses(tmp_path / name) for name in ("whole", "cut")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_stopped_averages_of_two_processes_go_on_bit_by_bit(tiny_shards, tmp_path):
    done = play("averages", tiny_shards, tmp_path)
    assert done.stderr.count("stopped; the same command goes on") == 2
    runs = [tmp_path / name / "covid" for name in ("whole", "cut")]
    for path in runs[0].glob("*.safetensors"):
        one, other = load_file(path), load_file(runs[1] / path.name)
        assert all(torch.equal(value, other[name]) for name, value in one.items()), path.name
    assert validation_losses(tmp_path / "cut") == validation_losses(tmp_path / "whole")


def test_a_killed_process_ends_the_others_with_one_line(tiny_shards, tmp_path):
    (tmp_path / "process.py").write_text(PROCESS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [tiny_shards, tmp_path / "run", tmp_path / "notes", "source", "", -3]
    world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "process.py", *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            | {key: str(value) for key, value in world.items()}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1, -signal.SIGKILL], errors
    assert "Traceback" not in errors[0]
    assert errors[0].splitlines()[-1].startswith("error: another process of this run has ended")


def last_states(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("[0-9]*/state.json"))[-1:]


def validation_losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["val_loss"] for line in lines]
