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

from bench import scale, score, score_gpu, score_sides
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


@pytest.mark.parametrize(
    ("device", "provider", "gpus", "threads"),
    [("cuda", "auto", 1, None), ("cuda", "cpu", None, 16), ("cpu", "auto", None, 16)],
)
def test_the_whole_way_has_the_one_gpu_of_the_model_alone(
    tmp_path, monkeypatch, device, provider, gpus, threads
):
    """Of a machine with eight the whole way took all: 800 % of the model's own rate; and on one a
    session, with its memory, for each of the machine's cores."""
    asked = []

    def score(config):
        asked.append((config.provider, config.gpus, config.threads))
        return SimpleNamespace(errors=0, rows=3)

    monkeypatch.setattr(score_sides, "score", score)
    settings = Settings(4, 16, 64, 32, torch.device(device))
    assert whole_way(tmp_path / "m.onnx", tmp_path / "a.tar", tmp_path, settings, provider)() == 3
    assert asked == [(provider, gpus, threads)]


def test_int8_is_measured_on_the_cpu_which_it_is_for(tmp_path, monkeypatch):
    asked = {}

    def alone(path, images, settings, provider="auto"):
        asked[path.name] = provider
        return lambda: 4

    monkeypatch.setattr(score, "ours_alone", alone)
    for name in ("torch_alone", "numpy_batches"):
        monkeypatch.setattr(score, name, lambda *_, **__: lambda: 4)
    settings = Settings(4, 1, 64, 32, torch.device("cuda"))
    images = np.zeros((4, 1, 32, 32), np.uint8)
    score._alone(tmp_path / "fp32", tmp_path / "int8", torch.nn.Identity(), images, settings)
    assert asked == {"fp32": "auto", "int8": "cpu"}


@pytest.mark.parametrize(("device", "threads"), [("cuda", []), ("cpu", ["--threads", "16"])])
def test_growth_has_as_many_sessions_as_the_command_by_itself(
    tmp_path, monkeypatch, device, threads
):
    asked = []
    monkeypatch.setattr(score_sides, "peak_mb", lambda module, words: asked.append(words) or 1.0)
    (tmp_path / "a.png").touch()
    settings = Settings(4, 16, 64, 32, torch.device(device))
    score_sides.growth(tmp_path / "m.onnx", [tmp_path / "a.png"], tmp_path, settings, (1,))
    (words,) = asked
    assert words[-2 - len(threads) :] == ["--workers", "16", *threads]


def test_ours_goes_on_without_cuda_graphs_where_they_do_not_run(tmp_path, monkeypatch, capsys):
    asked = []

    class Stub:
        provider, batch = "cuda", 4

        def __init__(self, sessions, model, threads):
            self.graph = sessions

        def try_out(self):
            if self.graph:
                raise RunFailed("the network does not run: operation not permitted")

    def open_sessions(path, provider, gpu):
        asked.append(gpu.graph)
        return gpu.graph

    monkeypatch.setattr(score_sides, "Network", Stub)
    monkeypatch.setattr(score_sides, "open_sessions", open_sessions)
    settings = Settings(4, 1, 64, 32, torch.device("cuda"))
    images = np.zeros((4, 1, 32, 32), np.uint8)
    score_sides.ours_alone(tmp_path / "m.onnx", images, settings)
    assert asked == [True, False]
    assert "m.onnx without CUDA graphs: the network does not run" in capsys.readouterr().out


def test_a_peer_that_does_not_run_on_this_gpu_is_left_out_aloud(tmp_path, monkeypatch, capsys):
    def alone(path, images, settings, provider, gpu=None):
        if provider == "tensorrt":
            raise RunFailed("TensorRT builds no engine")
        return lambda: 4

    def lacking() -> int:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(score_gpu, "ours_alone", alone)
    monkeypatch.setattr(score_gpu, "compiled", lambda *_: lacking)
    images = np.zeros((4, 1, 32, 32), np.uint8)
    settings = Settings(4, 1, 64, 32, torch.device("cuda"))
    sides = half_sides(tmp_path / "a", tmp_path / "b", torch.nn.Identity(), images, settings)
    assert set(sides) == {"ours, fp16"}
    said = capsys.readouterr().out
    assert "without TensorRT: TensorRT builds no engine" in said
    assert "without torch compiled: Failed to find C compiler. Please specify via CC" in said


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
