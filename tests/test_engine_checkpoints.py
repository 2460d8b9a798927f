"""The engine's checkpoints: which are kept, which are refused, what they hold."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_engine import Meddler, equal, newest_state, terminate, trained
from tiny_training import CONFIG, COVID

from shards.console import UserError
from train.dist import World
from train.loop import Trainer
from train.phases import Progress
from train.position import Position
from train.precision import Precision
from train.saver import Saver
from train.stop import Interrupted, Stop

pytestmark = pytest.mark.usefixtures("tiny_network")


def test_a_checkpoint_of_other_settings_or_data_is_refused(tiny_shards, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    Meddler(monkeypatch, 9, terminate)
    with pytest.raises(Interrupted):
        trained(tiny_shards, folder)
    for changes, name in (
        ({"seed": 1}, "config.seed"),
        ({"stages": (replace(COVID, batch=7),)}, "config.stages"),
    ):
        config = replace(CONFIG, **changes)
        with pytest.raises(UserError, match=f"of another run .differing: {name}"):
            Trainer(config, tiny_shards, folder, World("cpu")).run()
    for field in ("manifest_hash", "preprocessing_version"):
        trainer = Trainer(CONFIG, tiny_shards, folder, World("cpu"))
        trainer.saver.identity["data"]["covid-radiography"][field] = "another"
        with pytest.raises(UserError, match=f"differing: data.covid-radiography.{field}"):
            trainer.run()
    elsewhere = replace(CONFIG, keep_checkpoints=3, checkpoint_every_s=1.0, auto_micro_batch=True)
    trained(tiny_shards, folder, elsewhere)


def test_the_last_k_and_the_best_are_kept(tiny_shards, tmp_path):
    folder = trained(tiny_shards, tmp_path / "run", replace(CONFIG, keep_checkpoints=3))
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names[:3] == ["000002", "000003", "000004"]
    assert all(name.startswith("best-1-2-") for name in names[3:])
    assert names[3:]


def test_the_loss_scaler_goes_on(tiny_shards, tmp_path, monkeypatch):
    build = Precision.__init__

    def scaled(self, *words, **options) -> None:
        build(self, *words, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)

    monkeypatch.setattr(Precision, "__init__", scaled)
    trained(tiny_shards, tmp_path / "whole")
    with monkeypatch.context() as patch:
        Meddler(patch, 9, terminate)
        with pytest.raises(Interrupted):
            trained(tiny_shards, tmp_path / "run")
    assert newest_state(tmp_path / "run")["scaler"]["scale"] == 4096  # 4 + 2 steps
    trained(tiny_shards, tmp_path / "run")
    states = [newest_state(tmp_path / name)["scaler"] for name in ("run", "whole")]
    assert states[0] == states[1]
    assert states[0]["scale"] == 1024 * 2**5
    assert equal(tmp_path / "run", tmp_path / "whole")


def make_stepper() -> SimpleNamespace:
    model = torch.nn.Linear(2, 2)
    optim = torch.optim.SGD(model.parameters(), lr=0.1)
    precision = Precision("fp32", torch.device("cpu"))
    return SimpleNamespace(model=model, optim=optim, precision=precision, ema=None)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_is_wanted_when_the_last_is_so_old_or_a_signal_came(
    tmp_path, monkeypatch, rank
):
    world, stop, now = World("cpu"), Stop(), [1000.0]
    world.rank = rank
    monkeypatch.setattr("train.saver.time.monotonic", lambda: now[0])
    saver = Saver(tmp_path, world, stop, {}, keep=2, every_s=100.0, saved_at=now[0])
    wanted = []
    for now[0] in (1000.0, 1100.0, 1101.0):
        wanted.append(saver.wanted())
    saver.save(Position(), make_stepper())
    assert [*wanted, saver.wanted()] == [False, False, True, False]
    assert len(list(tmp_path.iterdir())) == (rank == 0)
    stop.number = signal.SIGTERM
    assert saver.wanted()
    with pytest.raises(Interrupted):
        saver.save(Position(), make_stepper())
    assert len(list(tmp_path.iterdir())) == 2 * (rank == 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_writes_the_best_weights_of_which_the_next_phase_has_none(tmp_path, rank):
    world, stepper = World("cpu"), make_stepper()
    world.rank = rank
    saver = Saver(tmp_path, world, Stop(), {}, keep=2, every_s=0.0)
    at = Position(stage=1, phase=2, progress=Progress(4, 3, 0.5))
    saver.write_best(at, stepper.model)
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["best-2-3-00003.safetensors"] * (rank == 0)
    assert saver.best_file == "best-2-3-00003.safetensors"
    assert saver.best(at) == tmp_path / "best-2-3-00003.safetensors"
    assert (saver.best_file, saver.best_sha256) == ("", "")


def test_a_run_that_passed_over_a_damaged_checkpoint_keeps_good_ones_only(tmp_path):
    world, folder, stepper = World("cpu"), tmp_path / "checkpoints", make_stepper()
    for step in range(3):  # the last one is damaged, and met when the run goes on
        saver = Saver(folder, world, Stop(), {}, keep=2, every_s=0.0)
        saver.latest()
        saver.save(Position(step=step), stepper)
        if step == 1:
            (folder / "000002" / "model.safetensors").write_bytes(b"half")
    assert sorted(path.name for path in folder.iterdir()) == ["000001", "000003"]
    saver.save(Position(step=3), stepper)
    assert sorted(path.name for path in folder.iterdir()) == ["000003", "000004"]
