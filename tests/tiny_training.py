"""A training of seconds: four stages of one dense layer, with batch norm and dropout, 32 pixels.

Run: python tests/tiny_training.py SHARDS RUN [SECONDS A STEP TAKES AT LEAST]: one rank of it
     python tests/tiny_training.py kills SHARDS FOLDER: FOLDER/whole; FOLDER/cut: killed 10 times
     python tests/tiny_training.py averages SHARDS FOLDER: two ranks, FOLDER/cut stopped twice
     python tests/tiny_training.py moments SHARDS FOLDER: FOLDER/cut: signals at different moments
     python tests/tiny_training.py loads SHARDS FOLDER: a signal to one rank, while both decode
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torchvision

from shards.console import run as run_main
from shards.split_reader import SplitReader
from train import decoding
from train import loop as train_loop
from train.__main__ import TrainCommand, train
from train.augment import EIGHT, Augment
from train.config import KeptNeuron, LabelExpansion, Stage, TrainConfig
from train.phases import Phase
from train.step import Stepper
from train.store import InputConfig
from train.weights import StartConfig

ROOT = Path(__file__).resolve().parents[1]
_PHASES = (Phase("head", 1, "head", 0.05), Phase("all", 3, "all", 0.02, weight_decay=0.01))
COVID = Stage("covid", "covid-radiography", _PHASES, batch=6, augment=Augment(mirror=0.5))
CHEST = Stage("chestxray14", "chestxray14", _PHASES[1:], batch=12)
KEEP = (KeptNeuron("Viral Pneumonia", "Pneumonia"),)
CONFIG = TrainConfig(
    "tiny",
    "densenet121",
    (COVID,),
    start=StartConfig("random"),
    size=32,
    precision="fp32",
    device="cpu",
)
TWO_STAGES = replace(CONFIG, stages=(CHEST, replace(COVID, keep_neurons=KEEP)))
# The demo at 32 pixels and about one epoch a phase; Normal keeps its 8 copies, COVID-19 has 12
# (test_recipes.py takes a step with all 72).
TINY = [
    *("--size", "32", "--precision", "fp32", "--device", "cpu", "--micro-batch", "32"),
    *("--stages.0.phases.1.epochs", "1", "--stages.1.phases.1.epochs", "1"),
    *("--stages.1.batch", "6", "--stages.1.expansions.2.expansion.rotations", "1"),
    *("--stages.1.expansions.1.expansion.rotations", "1"),
    *("--stages.1.expansions.1.expansion.translations", "1"),
]


def arguments(shards: Path, folder: Path, *more: str) -> list[str]:
    return ["demo", "--shards", str(shards), "--run", str(folder), *TINY, *more]


def play(part: str, shards: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`python tests/tiny_training.py PART SHARDS FOLDER`, which must end well."""
    done = subprocess.run(
        [sys.executable, __file__, part, str(shards), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def tiny_densenet(
    weights: None = None, num_classes: int = 3, drop_rate: float = 0.2
) -> torchvision.models.DenseNet:
    options = {"drop_rate": drop_rate, "num_classes": num_classes}
    return torchvision.models.DenseNet(4, (1, 1, 1, 1), 8, **options)


def slow_down(seconds: float) -> None:
    update = Stepper.update

    def slow(self: Stepper) -> None:
        update(self)
        time.sleep(seconds)

    Stepper.update = slow


def one_rank(shards: Path, run: Path, config: TrainConfig = TWO_STAGES) -> None:
    torchvision.models.densenet121 = tiny_densenet
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    train(TrainCommand(shards, run, config))


def forked(shards: Path, run: Path) -> int:
    """A process of its own that has imported everything. A checkpoint after each step."""
    pid = os.fork()
    if pid == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        run_main(lambda: one_rank(shards, run, replace(TWO_STAGES, checkpoint_every_s=0)))
        os._exit(0)
    return pid


def wait(pid: int, seconds: float) -> int | None:
    """The exit status, None while it still runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kills(shards: Path, folder: Path) -> None:
    """Kill a run at 10 random moments of its work; then let it end."""
    began = time.monotonic()
    assert wait(forked(shards, folder / "whole"), 60) == 0
    took = time.monotonic() - began
    seed = random.randrange(1 << 30)
    print(f"seed {seed}, {took:.1f} s undisturbed", file=sys.stderr)
    rng, count = random.Random(seed), 0
    while count < 10:
        pid = forked(shards, folder / "cut")
        if wait(pid, rng.uniform(0.1, 0.5) * took) is None:
            os.kill(pid, signal.SIGKILL)
            assert wait(pid, 10) == -signal.SIGKILL
            count += 1
        elif count < 10:  # finished: the next kills meet a new run
            shutil.rmtree(folder / "cut")
    assert wait(forked(shards, folder / "cut"), 60) == 0


def stop_at(calls: int) -> None:
    """SIGTERM to this process itself at the given call of Stepper.update; below 0: of validate."""
    owner, name = (Stepper, "update") if calls > 0 else (train_loop, "validate")
    made, call = [], getattr(owner, name)

    def stopping(*words: object, **options: object) -> object:
        made.append(1)
        if len(made) == -calls:
            os.kill(os.getpid(), signal.SIGTERM)
        result = call(*words, **options)
        if len(made) == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    setattr(owner, name, stopping)


def signal_at(passes: dict[int, tuple[int, int]]) -> None:
    """{rank: (signal, in which forward pass it meets the process)}."""
    made, forward = [], torchvision.models.DenseNet.forward
    number, at = passes.get(int(os.environ["RANK"]), (0, 0))

    def meddled(net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        made.append(1)
        if len(made) == at:
            os.kill(os.getpid(), number)
        return forward(net, images)

    torchvision.models.DenseNet.forward = meddled


def two_ranks(
    shards: Path,
    run: Path,
    meddle: Callable[[], None] = lambda: None,
    config: TrainConfig = CONFIG,
) -> list[int | None]:
    """Both ranks' exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config, pids = replace(config, ema_decay=0.9), []
    for rank in range(2):
        pids.append(os.fork())
        if pids[-1] == 0:
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in world.items()})
            meddle()
            run_main(lambda: one_rank(shards, run, config))
            os._exit(0)
    return [wait(pid, 100) for pid in pids]


def averages(shards: Path, folder: Path) -> None:
    """The weights' average has batch norm statistics too, and each rank its own until an epoch's
    end: stopped in an epoch (the 7th step is the second phase's third) and in a validation."""
    assert two_ranks(shards, folder / "whole") == [0, 0]
    assert two_ranks(shards, folder / "cut", lambda: stop_at(7)) == [0, 0]
    assert two_ranks(shards, folder / "cut", lambda: stop_at(-2)) == [0, 0]
    assert two_ranks(shards, folder / "cut") == [0, 0]


def moments(shards: Path, folder: Path) -> None:
    """An epoch is 4 steps of 3 parts for each rank, and of validation 2 for rank 1: 14 passes. What
    the checkpoint stands at after each stop is printed."""
    labels = ("Normal", "Viral Pneumonia", "COVID-19")
    expansions = tuple(LabelExpansion(label, EIGHT) for label in labels)
    stage = replace(COVID, phases=(Phase("all", 2, "all", 0.02),), expansions=expansions)
    config, run = replace(CONFIG, stages=(stage,), micro_batch=8), folder / "cut"
    term, kill = signal.SIGTERM, signal.SIGKILL
    assert two_ranks(shards, folder / "whole", config=config) == [0, 0]
    for passes, ends in (
        ({1: (term, 8), 0: (term, 7)}, [0, 0]),  # both within the third step
        ({1: (term, 1)}, [0, 0]),  # one alone, in the first part of its first step
        ({1: (term, 7)}, [0, 0]),  # one alone, in the validation
        ({1: (kill, 15)}, [1, -kill]),  # in the second epoch's validation, after the first one's
    ):
        assert two_ranks(shards, run, lambda passes=passes: signal_at(passes), config) == ends
        path = sorted((run / "checkpoints").glob("[0-9]*/state.json"))[-1]
        position = json.loads(path.read_bytes())["position"]
        print("at", position["lines"], position["step"])
    assert two_ranks(shards, run, config=config) == [0, 0]


def slow_reads() -> None:
    """Rank 1 is told to stop at its first image; rank 0 says when it has one, twice a second."""
    read, first = SplitReader.read, os.environ["RANK"] == "0"

    def meddled(reader: SplitReader, position: int) -> bytes:
        if first:
            print("read", position, flush=True)
            time.sleep(0.5)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(reader, position)

    SplitReader.read, decoding.CHUNK = meddled, 1


def loads(shards: Path, folder: Path) -> None:
    """What rank 1 is told, rank 0 heeds, which would need seconds for its part."""
    config = replace(CONFIG, input=InputConfig(threads=1))
    assert two_ranks(shards, folder / "cut", slow_reads, config) == [0, 0]


if __name__ == "__main__":
    if sys.argv[1] == "kills":
        kills(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] == "averages":
        averages(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] == "loads":
        loads(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] == "moments":
        moments(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        slow_down(float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
        run_main(lambda: one_rank(Path(sys.argv[1]), Path(sys.argv[2])))
