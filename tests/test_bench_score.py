"""What bench score measures on a GPU, its code run on a CPU with a toy network."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from bench import scale, score_sides
from bench.images import raw_images
from bench.networks import build_pair
from bench.result import Rates
from bench.score import ScoreBench, _info, settle
from bench.score_gpu import from_shards, half_sides, joules_per_1000, measure_gpu, write_fp16
from bench.score_sides import Settings, whole_way
from serve.export import Scorer, to_onnx
from shards.console import RunFailed, UserError
from shards.labels import COVID
from shards.preprocess import MEAN, STD


class Meter:
    """A GPU that uses 3 J for each image; `clock` passes a second with each look."""

    def __init__(self) -> None:
        self.images, self.seconds = 0, itertools.count()

    def energy_j(self) -> float:
        return 3.0 * self.images

    def side(self) -> int:
        self.images += 8
        return 8

    def clock(self) -> float:
        return float(next(self.seconds))


def test_energy_is_that_of_1000_images():
    meter = Meter()
    assert joules_per_1000(meter.side, meter, meter.clock) == 3000
    assert meter.images > 8

    class Silent:
        def energy_j(self) -> None:
            return None

    assert joules_per_1000(meter.side, Silent(), meter.clock) is None


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("cpu", None)])
def test_the_whole_way_has_the_one_gpu_of_the_model_alone(tmp_path, monkeypatch, device, gpus):
    """Of a machine with eight the whole way took all: 800 % of the model's own rate."""
    asked = []

    def score(config):
        asked.append(config.gpus)
        return SimpleNamespace(errors=0, rows=3)

    monkeypatch.setattr(score_sides, "score", score)
    settings = Settings(4, 1, 64, 32, torch.device(device))
    assert whole_way(tmp_path / "m.onnx", tmp_path / "a.tar", tmp_path, settings)() == 3
    assert asked == [gpus]


def test_process_batch_resizes_as_torchxrayvisions_networks_do(tmp_path, monkeypatch):
    """scikit-image's resize, which process_batch.py does not call, took most of the peer's time."""
    xrv = pytest.importorskip("torchxrayvision")
    monkeypatch.setattr(xrv.datasets, "XRayResizer", None)
    Image.fromarray(np.full((40, 64), 255, np.uint8)).save(tmp_path / "white.png")
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images.mean((2, 3))

    settings = Settings(4, 1, 64, 32, torch.device("cpu"))
    assert score_sides.process_batch([tmp_path / "white.png"], network, settings)() == 1
    (images,) = seen
    assert images.shape == (1, 3, 32, 32)
    white = [(1 - m) / s for m, s in zip(MEAN, STD)]
    np.testing.assert_allclose(images.mean((0, 2, 3)), white, rtol=1e-5)


def test_scale_on_one_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="scale needs 2 GPUs"):
        scale.measure(scale.ScaleBench(quick=True))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory):
    work = tmp_path_factory.mktemp("bench")
    config = settle(ScoreBench(quick=True))
    model, plain = build_pair("densenet121", len(COVID), quick=True)
    raw = raw_images(config, work / "raw")
    onnx.save(to_onnx(Scorer(model).eval(), config.size, _info(config, raw)), work / "fp32.onnx")
    settings = Settings(4, 1, config.shorter_side, config.size, torch.device("cpu"))
    return config, raw, plain, settings, work


@pytest.mark.soak
def test_half_precision_scores_every_image(toy, capsys, monkeypatch):
    config, _, plain, settings, work = toy
    images = np.zeros((6, 1, config.size, config.size), np.uint8)
    monkeypatch.setattr(torch, "compile", lambda network: network)
    fp16 = write_fp16(work / "fp32.onnx")
    sides = half_sides(work / "fp32.onnx", fp16, plain, images, settings, "cpu")
    assert {"ours, fp16", "torch compiled fp16"} <= set(sides)
    assert all(side() == 6 for side in sides.values())
    if "ours, TensorRT fp16" not in sides:
        assert "without TensorRT: the provider tensorrt needs" in capsys.readouterr().out


def test_tensorrt_that_fails_is_left_out_and_its_engines_with_the_model(monkeypatch, capsys):
    asked = {}

    def alone(path, images, settings, provider, gpu=None):
        asked[provider] = gpu
        if provider == "tensorrt":
            raise RunFailed("the network does not run: no engine")
        return lambda: 0

    monkeypatch.setattr("bench.score_gpu.ours_alone", alone)
    monkeypatch.setattr("bench.score_gpu.compiled", lambda *given: lambda: 0)
    settings = Settings(4, 1, None, 8, torch.device("cpu"))
    images = np.zeros((1, 1, 8, 8), np.uint8)
    sides = half_sides(Path("work/a.onnx"), Path("work/b.onnx"), nn.Identity(), images, settings)
    assert set(sides) == {"ours, fp16", "torch compiled fp16"}
    assert "without TensorRT: the network does not run" in capsys.readouterr().out
    assert asked["tensorrt"].engines == Path("work/engines")


@pytest.mark.soak
def test_from_shards_scores_them_often_enough(toy, tmp_path: Path):
    config, raw, _, settings, work = toy
    side = from_shards(work / "fp32.onnx", raw, config, tmp_path, settings, 30)
    assert side() == 24  # 12 images, twice
    figures = measure_gpu({"a": Meter().side}, {"ours, fp16": Rates((10.0,))}, side, Meter(), 1)
    assert figures["percent_of_model"] > 0
    assert set(figures["joules_per_1000_images"]) == {"a"}


def test_a_process_of_scale_leaves_its_group_before_it_ends(monkeypatch, capsys):
    did: list[str] = []
    monkeypatch.setattr(scale.World, "close", lambda world: did.append("close"))
    monkeypatch.setattr(scale.World, "barrier", lambda world: did.append("wait"))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    scale._work({"architecture": "densenet121", "size": 32}, batch=2, quick=True)
    assert float(capsys.readouterr().out) > 0
    assert (did[-1], did.count("close")) == ("close", 1)


def test_processes_of_scale_that_hang_end_in_one_line(monkeypatch):
    monkeypatch.setattr(scale, "_LIMIT_S", 0.01)
    with pytest.raises(RunFailed, match=r"1 processes did not end within 0\.01 s; take a smaller"):
        scale._rate(1, scale.ScaleBench(quick=True))
