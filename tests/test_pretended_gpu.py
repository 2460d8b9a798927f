"""The paths of a GPU, on tensors that only say that they lie on one: no tensor of the CPU gets
among them, and what comes out is what a CPU gives."""

import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pretended_gpu import OnGpu, pretended_gpu
from tiny_training import CONFIG, COVID, tiny_densenet

from serve.explain.methods import Explainer
from serve.explain.occlusion import Outputs
from train import warp
from train.__main__ import TrainCommand, train
from train.config import TrainConfig
from train.log import read_metrics
from train.models import build_model
from train.optim import OptimConfig
from train.phases import Phase
from train.step import Stepper
from train.store import InputConfig

ONE = replace(
    CONFIG,
    input=InputConfig(backend="torch", threads=1),
    checkpoint_every_s=1e9,
    stages=(replace(COVID, phases=(Phase("all", 2, "all", 0.01),)),),
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(warp, "fused_warp", lambda: None)  # compiled for a real one only
    with pretended_gpu(monkeypatch):
        yield


def test_it_refuses_what_a_gpu_refuses(gpu):
    there, here = torch.arange(3.0, device="cuda"), torch.ones(3)
    assert isinstance(there + 1, OnGpu)
    assert (there + here.to(there.device)).tolist() == [1, 2, 3]
    assert there[torch.tensor([2])].cpu().numpy() == [2]
    for mix in (lambda: there + here, lambda: here.add_(there), lambda: torch.cat([there, here])):
        with pytest.raises(RuntimeError, match="same device"):
            mix()
    with pytest.raises(RuntimeError, match="same device"):
        here[torch.tensor([0], device="cuda")] = there[:1]
    with pytest.raises(TypeError, match="on the GPU"):
        there.numpy()


def curve(shards: Path, run: Path, config: TrainConfig) -> list[float]:
    train(TrainCommand(shards, run, config))
    return [line["train_loss"] for line in read_metrics(run) if "train_loss" in line]


def stop_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    update, count = Stepper.update, []

    def stopping(self: Stepper) -> None:
        update(self)
        count.append(1)
        if len(count) == steps:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(Stepper, "update", stopping)


@pytest.mark.parametrize(
    "changed",
    [
        {"input": replace(ONE.input, store="device")},
        {"input": replace(ONE.input, store="host"), "optim": OptimConfig("sgd", clip_norm=1.0)},
        {"input": replace(ONE.input, store="stream"), "ema_decay": 0.9},
    ],
    ids=["device", "host", "stream"],
)
def test_a_training_stopped_and_resumed_gives_the_curve_of_a_cpu(
    tiny_network, tiny_shards, tmp_path, monkeypatch, request, changed
):
    config = replace(ONE, **changed)
    on_cpu = replace(config, input=replace(config.input, store="host"))
    expected = curve(tiny_shards, tmp_path / "cpu", on_cpu)
    request.getfixturevalue("gpu")
    config = replace(config, device="cuda")
    with monkeypatch.context() as patch:
        stop_after(6, patch)  # of 8: in the second epoch
        with pytest.raises(SystemExit) as ended:
            train(TrainCommand(tiny_shards, tmp_path / "gpu", config))
    assert ended.value.code == 0
    assert curve(tiny_shards, tmp_path / "gpu", config) == pytest.approx(expected, rel=1e-3)


def test_adams_state_lies_where_its_weights_are(
    tiny_network, tiny_shards, tmp_path, monkeypatch, request
):
    request.getfixturevalue("gpu")
    config = replace(ONE, device="cuda", optim=OptimConfig("adamw"))
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        with pytest.raises(SystemExit):
            train(TrainCommand(tiny_shards, tmp_path / "run", config))
    # No comparison: Adam's first steps are as large for a gradient that is all rounding.
    assert len(curve(tiny_shards, tmp_path / "run", config)) == 2


def test_half_precision_with_its_scaler_comes_near_a_cpus_curve(
    as_before, tiny_shards, tmp_path, monkeypatch, request
):
    # Without dropout, and with enough pixels for batch norm to be no noise.
    plain = partial(tiny_densenet, drop_rate=0.0)
    monkeypatch.setattr(torchvision.models, "densenet121", plain)
    config = replace(ONE, size=64, stages=(replace(ONE.stages[0], batch=11),))
    expected = curve(tiny_shards, tmp_path / "cpu", config)
    request.getfixturevalue("gpu")
    config = replace(config, device="cuda", precision="fp16")
    assert curve(tiny_shards, tmp_path / "gpu", config) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        ("lrp", "densenet121"),
        ("gradcam", "densenet121"),
        ("cam", "resnet18"),
        ("occlusion-drop", "squeezenet1_1"),
    ],
)
def test_explanations_are_those_of_a_cpu(request, method, architecture):
    model = build_model(architecture, 3).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64), np.uint8)
    outputs = Outputs(exclusive=True)
    expected = Explainer(method, model, 64, outputs)(images, [0, 2])
    request.getfixturevalue("gpu")
    found = Explainer(method, model.to("cuda"), 64, outputs)(images, [0, 2])
    scale = np.abs(expected.maps).max()
    assert scale > 0
    np.testing.assert_allclose(found.maps, expected.maps, atol=1e-3 * scale)
