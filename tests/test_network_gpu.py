"""serve.network, serve.opened on a GPU, here a stand-in: two sessions take turns, through buffers
that stay in their places; and what is done where it does not compute."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from tiny_model import LABELS, expected, images, model_info, write_model

from serve import opened
from serve.network import GPU_BATCH, Network, open_sessions
from serve.providers import GpuOptions, create_session
from serve.score import ScoreConfig, open_network
from serve.score_ray import _chained
from shards.console import RunFailed, UserError


class OnGpu:
    """Stands for a session on a GPU: computes on the CPU, and notes what is bound and who runs."""

    def __init__(self, real):
        self.real, self.bindings, self.threads = real, [], set()

    def __getattr__(self, name):
        return getattr(self.real, name)

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        return []  # nothing is on the CPU

    def io_binding(self):
        self.bindings.append(Binding())
        return self.bindings[-1]

    def run_with_iobinding(self, binding):
        self.threads.add(threading.get_ident())
        values = self.real.run(["probabilities"], {"images": binding.input.array})[0]
        binding.output.array[:] = values


class Binding:
    def bind_ortvalue_input(self, name, value):
        assert name == "images"
        self.input = value

    def bind_ortvalue_output(self, name, value):
        assert name == "probabilities"
        self.output = value


class Value:
    """Stands for memory of a GPU."""

    made = 0

    def __init__(self, array):
        self.array = array
        Value.made += 1

    @staticmethod
    def ortvalue_from_numpy(array, device_type):
        assert device_type == "cuda"
        return Value(array.copy())

    @staticmethod
    def ortvalue_from_shape_and_type(shape, dtype, device_type):
        assert device_type == "cuda"
        return Value(np.full(shape, np.nan, dtype))

    def update_inplace(self, array):
        assert (array.shape, array.dtype) == (self.array.shape, self.array.dtype)
        self.array[:] = array

    def numpy(self):
        return self.array.copy()


def on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[OnGpu], Network]:
    monkeypatch.setattr(onnxruntime, "OrtValue", Value)
    path = write_model(tmp_path / "m.onnx")
    sessions = [OnGpu(create_session(path, "cpu", 1)) for _ in range(2)]
    return sessions, Network(sessions, "m.onnx", threads=8)


def test_a_gpu_gets_whole_batches_in_the_same_places_from_a_thread_each(tmp_path, monkeypatch):
    sessions, made = on_gpu(tmp_path, monkeypatch)
    made.try_out()
    before = Value.made
    given = [images(n, seed=n) for n in (GPU_BATCH, 5, 1, GPU_BATCH)]
    found = [made.submit(part) for part in given]
    for part, scores in zip(given, found, strict=True):
        np.testing.assert_allclose(scores.result(), expected(part), atol=1e-5)
    assert made.batch == GPU_BATCH
    assert [(len(s.bindings), len(s.threads)) for s in sessions] == [(1, 1), (1, 1)]
    assert sessions[0].threads != sessions[1].threads
    assert Value.made == before
    made.score(given[2])
    assert not sessions[0].bindings[0].input.array[1:].any()


@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_memory_that_a_gpu_lacks_for_a_batch_is_told(tmp_path, monkeypatch, capsys, provider):
    """As all else that keeps it from computing: a GPU that is full of another's work is common."""

    def full(array, device_type):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 512")

    real = create_session(write_model(tmp_path / "m.onnx"), "cpu", 1)
    monkeypatch.setattr(Value, "ortvalue_from_numpy", full)
    monkeypatch.setattr(onnxruntime, "OrtValue", Value)
    sessions = {"cpu": [real]}
    monkeypatch.setattr(
        opened, "open_sessions", lambda _, name, *__: sessions.get(name, [OnGpu(real)])
    )
    if provider == "auto":
        assert open_network(ASKED).provider == "cpu"
        assert "512; going on with the CPU" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match=r"cuda was asked for, but .* Failed to allocate"):
            open_network(replace(ASKED, provider=provider))


def test_a_batch_is_prepared_for_the_gpu_while_another_computes(tmp_path, monkeypatch):
    sessions, made = on_gpu(tmp_path, monkeypatch)
    meet = threading.Barrier(2, timeout=30)
    for session in sessions:
        monkeypatch.setattr(session.real, "run", _meeting(session.real.run, meet))
    batches = [made.submit(images(1, seed=n)) for n in range(2)]  # hangs when in turns
    assert all(batch.result().shape == (1, len(LABELS)) for batch in batches)


def _meeting(run, meet):
    def wait_for_the_other(*arguments):
        meet.wait()
        return run(*arguments)

    return wait_for_the_other


def test_sessions_are_tried_out_one_after_the_other(tmp_path, monkeypatch):
    sessions, made = on_gpu(tmp_path, monkeypatch)
    running = threading.Lock()
    for session in sessions:
        monkeypatch.setattr(session.real, "run", _alone(session.real.run, running))
    made.try_out()
    assert [len(session.threads) for session in sessions] == [1, 1]


def _alone(run, running):
    def nobody_else(*arguments):
        assert running.acquire(blocking=False)
        time.sleep(0.05)
        try:
            return run(*arguments)
        finally:
            running.release()

    return nobody_else


@pytest.mark.parametrize(("provider", "count"), [("cpu", 1), ("cuda", 2)])
def test_a_gpu_has_two_sessions_and_the_cpu_one(monkeypatch, provider, count):
    asked = []

    def create(path, provider, threads, gpu):
        asked.append((provider, threads, gpu))
        return SimpleNamespace(get_providers=lambda: [f"{found.upper()}ExecutionProvider"])

    found = provider
    monkeypatch.setattr("serve.network.create_session", create)
    gpu = GpuOptions(graph=True)
    assert len(open_sessions(Path("m.onnx"), "auto", gpu)) == count
    # What `auto` found for the first holds for the second.
    assert asked == [("auto", 1, gpu), (provider, 1, gpu)][:count]


@pytest.mark.parametrize("graph", [True, False])
def test_a_cuda_graph_is_asked_for_and_done_without_aloud(tmp_path, monkeypatch, capsys, graph):
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    real, asked = onnxruntime.InferenceSession, []

    def session(path, options, providers, enable_fallback):
        asked.append(dict([providers[0]])["CUDAExecutionProvider"]["enable_cuda_graph"])
        if asked[-1]:
            raise RuntimeError("cannot use the graph capture feature")
        return OnGpu(real(path, options, providers=["CPUExecutionProvider"]))

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    create_session(write_model(tmp_path / "m.onnx"), "cuda", 1, GpuOptions(graph=graph))
    assert asked == [True, False] if graph else [False]
    assert ("without CUDA graphs" in capsys.readouterr().err) == graph


ASKED = ScoreConfig(Path("m.onnx"), Path("out"), (Path("a.tar"),))


class Opened:
    """Stands for `_open`: networks on a GPU that fail as often as said; `asked` notes provider and
    graph of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
        self.failures, self.asked, self.tried = failures, [], 0
        monkeypatch.setattr(opened, "_open", self)

    def __call__(self, config: ScoreConfig, provider: str, gpu: GpuOptions) -> SimpleNamespace:
        self.asked.append((provider, gpu.graph))
        name = "cuda" if provider == "auto" else provider
        return SimpleNamespace(provider=name, try_out=self.try_out)

    def try_out(self) -> None:
        self.tried += 1
        if self.tried <= self.failures:
            raise RunFailed("the network does not run: CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED")


@pytest.mark.parametrize(
    ("provider", "failures", "then"),
    [
        ("auto", 0, []),
        ("auto", 1, [("auto", False)]),
        ("auto", 2, [("auto", False), ("cpu", False)]),
        ("cuda", 1, [("cuda", False)]),
        ("tensorrt", 0, []),
    ],
)
def test_auto_takes_the_cpu_aloud_where_cuda_starts_and_does_not_compute(
    monkeypatch, capsys, provider, failures, then
):
    gpu = Opened(monkeypatch, failures)
    found = open_network(replace(ASKED, provider=provider))
    assert gpu.asked == [(provider, True), *then]
    there = provider if provider == "tensorrt" else "cuda"
    assert found.provider == ("cpu" if ("cpu", False) in then else there)
    assert gpu.tried
    assert capsys.readouterr().err.count("CUDNN_STATUS") == len(then)


@pytest.mark.parametrize(("provider", "tried"), [("cuda", [True, False]), ("tensorrt", [True])])
def test_a_provider_asked_for_that_does_not_compute_is_an_error(monkeypatch, provider, tried):
    """Of onnxruntime-gpu 1.31 a session starts without cuDNN, and does not run."""
    gpu = Opened(monkeypatch, 2)
    with pytest.raises(UserError, match=f"{provider} was asked for, but .*CUDNN_STATUS"):
        open_network(replace(ASKED, provider=provider))
    assert gpu.asked == [(provider, graph) for graph in tried]


def test_a_ray_worker_keeps_its_gpu_and_model_from_batch_to_batch():
    """Ray ends a process after one task on a GPU, unless told otherwise."""
    options = {}

    def remote(**given):
        return lambda work: options.update({work.__name__: given})

    _chained(SimpleNamespace(remote=remote), "run", [], ASKED, model_info(), gpu=True)
    assert "num_gpus" not in options["decode_chunk"]
    score = options["score_decoded"]
    assert (score["num_cpus"], score["num_gpus"], score["max_calls"]) == (0, 1, 0)
