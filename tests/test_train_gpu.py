"""A training on a GPU: the curve of a CPU's in every precision, resume, the loss scaler, NVML."""

import json
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from tiny_training import CONFIG, COVID

from train.__main__ import TrainCommand, train
from train.config import TrainConfig
from train.log import read_metrics
from train.monitor import Monitor
from train.phases import Phase
from train.step import Stepper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
DEVICE = "cuda"
# As on the CPU: without dropout, and with enough pixels for batch norm to be no noise.
ONE = replace(
    CONFIG,
    size=64,
    checkpoint_every_s=1e9,
    stages=(replace(COVID, batch=11, phases=(Phase("all", 4, "all", 0.01),)),),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    plain = partial(torchvision.models.DenseNet, 4, (1, 1, 1, 1), 8)
    monkeypatch.setattr(
        torchvision.models, "densenet121", lambda weights, **options: plain(**options)
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def trained(shards: Path, run: Path, device: str, config: TrainConfig = ONE) -> list[float]:
    """The training loss of each epoch."""
    train(TrainCommand(shards, run, replace(config, device=device)))
    return [line["train_loss"] for line in read_metrics(run) if "train_loss" in line]


@pytest.fixture(scope="module")
def on_cpu(tiny_shards, tmp_path_factory) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        plain = partial(torchvision.models.DenseNet, 4, (1, 1, 1, 1), 8)
        patch.setattr(
            torchvision.models, "densenet121", lambda weights, **options: plain(**options)
        )
        return trained(tiny_shards, tmp_path_factory.mktemp("cpu") / "run", "cpu")


@pytest.mark.parametrize("store", ["device", "host", "stream"])
@pytest.mark.parametrize(("precision", "apart"), [("fp32", 0.01), ("bf16", 0.03), ("fp16", 0.03)])
def test_the_loss_curve_is_a_cpus(tiny_shards, tmp_path, on_cpu, precision, apart, store):
    config = replace(ONE, precision=precision, input=replace(ONE.input, store=store))
    curve = trained(tiny_shards, tmp_path / "run", DEVICE, config)
    assert len(curve) == 4
    assert curve == pytest.approx(on_cpu, rel=apart)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_stopped_it_goes_on_to_the_same_weights(tiny_shards, tmp_path, monkeypatch, precision):
    config = replace(ONE, precision=precision)
    trained(tiny_shards, tmp_path / "whole", DEVICE, config)
    update, count = Stepper.update, []

    def stopping(self):
        update(self)
        count.append(1)
        if len(count) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Stepper, "update", stopping)
    with pytest.raises(SystemExit) as ended:
        trained(tiny_shards, tmp_path / "cut", DEVICE, config)
    assert ended.value.code == 0
    assert not (tmp_path / "cut" / "covid" / "model.safetensors").exists()
    (state,) = (tmp_path / "cut" / "checkpoints").glob("[0-9]*/state.json")
    assert json.loads(state.read_bytes())["position"]["step"] == 3
    trained(tiny_shards, tmp_path / "cut", DEVICE, config)
    whole, cut = (
        load_file(tmp_path / name / "covid" / "model.safetensors") for name in ("whole", "cut")
    )
    for name, values in whole.items():  # a GPU's sums have no fixed order
        torch.testing.assert_close(cut[name], values, rtol=1e-2, atol=1e-3)


def test_a_gpu_tells_its_memory_and_power():
    monitor = Monitor(torch.device(DEVICE))
    assert " GB, " in monitor.note()
    assert monitor.note().endswith(" W")
