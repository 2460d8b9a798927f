"""The engine's promises: stops, resumes, losses that are no number, memory that runs out."""

import errno
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

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
from train.config import TrainConfig
from train.dist import World
from train.log import read_metrics
from train.loop import Trainer
from train.memory_limit import MicroBatch, is_out_of_memory
from train.monitor import Monitor
from train.phases import Phase
from train.position import Position
from train.precision import Precision
from train.saver import Saver
from train.settings import write_settings
from train.step import Stepper
from train.stop import Interrupted, Stop
from train.store import Store


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> Iterator[None]:
    """The tiny network, one thread (bits depend on it), and the signals as they were."""
    monkeypatch.setattr(torchvision.models, "densenet121", tiny_densenet)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


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


def test_a_second_signal_disturbs_nothing():
    stop = Stop()
    stop.listen()

    def stopped_twice() -> None:
        with stop.at_once():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)  # while the checkpoint is written

    with pytest.raises(Interrupted):
        stopped_twice()
    assert stop.number == signal.SIGTERM
    with pytest.raises(Interrupted), stop.at_once():
        raise AssertionError("went on")


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


def exhausted(limit: int):
    forward = torchvision.models.DenseNet.forward

    def limited(net, images):
        out = forward(net, images)
        if net.training and len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return out

    return limited


def test_out_of_memory_names_the_setting(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.models.DenseNet, "forward", exhausted(5))
    with pytest.raises(RunFailed, match=r"lower --micro-batch \(now 64\).* --auto-micro-batch"):
        trained(tiny_shards, tmp_path / "run")


def test_auto_micro_batch_goes_on_as_if_it_had_begun_so(tiny_shards, tmp_path, monkeypatch, capsys):
    smaller = replace(CONFIG, micro_batch=4)
    trained(tiny_shards, tmp_path / "small", smaller)
    monkeypatch.setattr(torchvision.models.DenseNet, "forward", exhausted(5))
    asked = replace(CONFIG, micro_batch=16, auto_micro_batch=True)
    trained(tiny_shards, tmp_path / "run", asked)
    assert equal(tmp_path / "run", tmp_path / "small")
    assert "out of memory with 16 images at once; going on with 8" in capsys.readouterr().err
    assert {line["micro_batch"] for line in read_metrics(tmp_path / "run")} == {4}
    recorded = json.loads((tmp_path / "run" / "micro-batch.json").read_bytes())
    assert recorded == {"micro_batch": 4, "asked": 16}
    monkeypatch.setattr(torchvision.models.DenseNet, "forward", exhausted(2))
    with pytest.raises(RunFailed, match="out of memory with 4 images at once, the least"):
        trained(tiny_shards, tmp_path / "none", asked)


def test_after_a_step_without_memory_the_epochs_images_are_expected_again(
    tiny_shards, tmp_path, monkeypatch
):
    expected, expect = [], Store.expect

    def noted(self: Store, positions: np.ndarray) -> None:
        expected.append(positions.tolist())
        expect(self, positions)

    monkeypatch.setattr(Store, "expect", noted)
    monkeypatch.setattr(torchvision.models.DenseNet, "forward", exhausted(5))
    phase = Phase("head", 1, "head", 0.05)
    config = replace(CONFIG, stages=(replace(COVID, phases=(phase,)),), auto_micro_batch=True)
    trained(tiny_shards, tmp_path / "run", config)
    epoch, *again, val, test = expected  # 64, 32, 16, 8: each does not fit
    assert again == [epoch] * 4
    assert (len(epoch), len(val), len(test)) == (24, 5, 9)


def test_memory_that_numpy_lacks_is_one_line(tiny_shards, tmp_path, monkeypatch):
    def lacking(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 29.1 TiB for an array with shape (32, 1000000)")

    monkeypatch.setattr("train.loop.load_stores", lacking)
    with pytest.raises(
        RunFailed, match=r"out of memory \(Unable .*; lower --micro-batch or --size"
    ):
        trained(tiny_shards, tmp_path / "run")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer", Interrupted),
        ("shapes cannot be multiplied", RuntimeError),
    ],
)
def test_after_a_signal_only_a_lost_process_is_taken_for_a_stop(
    tiny_shards, tmp_path, monkeypatch, message, error
):
    def fail(*_: object, **__: object) -> None:
        trainer.stop.number = signal.SIGTERM
        raise RuntimeError(message)

    monkeypatch.setattr("train.loop.load_stores", fail)
    trainer = Trainer(CONFIG, tiny_shards, tmp_path, World("cpu"))
    with pytest.raises(error):
        trainer.run()


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


def test_one_of_many_processes_records_the_smaller_size_and_ends(tmp_path, capsys):
    size = MicroBatch(tmp_path, 64, auto=True)
    assert size.now == 64
    (tmp_path / "micro-batch.json").write_text('{"micro_')
    with pytest.raises(UserError, match=r"micro-batch\.json is damaged"):
        assert size.now
    with pytest.raises(RunFailed, match=r"lowered it to 32: the same command .* goes on"):
        size.halve(64, alone=False)
    assert MicroBatch(tmp_path, 64, auto=True).now == 32
    assert MicroBatch(tmp_path, 48, auto=True).now == 48  # mended settings begin anew


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate ...",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_that_runs_out_is_known_by_its_message(message):
    assert is_out_of_memory(RuntimeError(message))
    assert is_out_of_memory(torch.AcceleratorError(message))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_no_room_for_the_optimisers_state_says_what_makes_some(tiny_shards, tmp_path, monkeypatch):
    def lacking(self: Stepper) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 77.00 MiB")

    monkeypatch.setattr(Stepper, "update", lacking)
    config = replace(CONFIG, auto_micro_batch=True)
    with pytest.raises(RunFailed, match=r"for the optimiser's state .*--input.store host, or in"):
        trained(tiny_shards, tmp_path / "run", config)


def test_a_checkpoint_has_the_joules_of_all_processes(tmp_path, monkeypatch):
    model, world, at = torch.nn.Linear(2, 2), World("cpu"), Position(energy_j=4.0)
    optim = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = SimpleNamespace(
        model=model, optim=optim, precision=Precision("fp32", world.device), ema=None
    )
    monkeypatch.setattr(world, "sum", lambda values: [value + 5.0 for value in values])
    saver = Saver(tmp_path / "checkpoints", world, Stop(), {}, keep=1, every_s=0.0)
    saver.save(at, stepper)
    assert newest_state(tmp_path)["position"]["energy_j"] == 9.0
    assert at.energy_j == 4.0  # of this process, which goes on counting its own


def test_a_run_that_passed_over_a_damaged_checkpoint_keeps_good_ones_only(tmp_path):
    model, world, folder = torch.nn.Linear(2, 2), World("cpu"), tmp_path / "checkpoints"
    optim = torch.optim.SGD(model.parameters(), lr=0.1)
    precision = Precision("fp32", world.device)
    stepper = SimpleNamespace(model=model, optim=optim, precision=precision, ema=None)
    for step in range(3):  # the last one is damaged, and met when the run goes on
        saver = Saver(folder, world, Stop(), {}, keep=2, every_s=0.0)
        saver.latest()
        saver.save(Position(step=step), stepper)
        if step == 1:
            (folder / "000002" / "model.safetensors").write_bytes(b"half")
    assert sorted(path.name for path in folder.iterdir()) == ["000001", "000003"]
    saver.save(Position(step=3), stepper)
    assert sorted(path.name for path in folder.iterdir()) == ["000003", "000004"]


class FakeNvml:
    """One GPU at 412 W that has used 7 J, and does not tell its memory."""

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> None:
        raise self.NVMLError

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 412_300

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return 7000


def test_what_a_gpu_does_not_tell_is_left_out():
    monitor = Monitor(torch.device("cpu"))
    assert (monitor.note(), monitor.energy_j()) == ("", None)
    monitor._nvml, monitor._handle = FakeNvml(), "gpu"
    assert (monitor.note(), monitor.energy_j()) == ("412 W", 7.0)
