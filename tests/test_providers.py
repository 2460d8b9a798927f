"""A session runs where it was asked to run, on a model that says what it is, or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tiny_model import write_model

from serve.providers import (
    GpuOptions,
    _provider_list,
    create_session,
    misplaced_layers,
    probabilities,
    provider_of,
    read_model_info,
    reason,
)
from shards.console import RunFailed, UserError

TELEMETRY = "ORT_DISABLE_TELEMETRY"


class FakeSession:
    """Stands for a session whose GPU libraries did not load."""

    def __init__(self, *args, **kwargs):
        assert kwargs["enable_fallback"] == 0

    def get_providers(self):
        return ["CPUExecutionProvider"]


def test_onnx_runtime_keeps_nothing_to_send(tmp_path):
    """Its telemetry begins with its import, with a file of what it runs on in the user's cache."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", TELEMETRY)}
    subprocess.run(
        [sys.executable, "-c", "import serve.network"],
        cwd=Path(__file__).parents[1],
        env=kept | {"HOME": str(tmp_path)},
        check=True,
    )
    assert not list(tmp_path.rglob("*onnxruntime*"))


@pytest.mark.parametrize("there", [False, True])
def test_cpu_and_auto_without_cuda(tmp_path, monkeypatch, capsys, there):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("serve.providers.has_gpu", lambda: there)
    path = write_model(tmp_path / "m.onnx")
    assert provider_of(create_session(path, "cpu", 1)) == "cpu"
    assert capsys.readouterr().err == ""
    assert provider_of(create_session(path, "auto", 1)) == "cpu"
    said = capsys.readouterr().err
    assert ("this machine has a GPU, and its onnxruntime is the CPU's" in said) == there
    assert there or not said


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_built_in_is_an_error(tmp_path, monkeypatch, provider):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = write_model(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=f"{provider} needs .*lacks .*onnxruntime-gpu"):
        create_session(path, provider, 1)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_load_is_an_error(tmp_path, monkeypatch, provider):
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    path = write_model(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=f"{provider} was asked for, but .* did not load"):
        create_session(path, provider, 1)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_library_that_is_missing_is_named_in_one_line(tmp_path, monkeypatch, capfd, provider):
    """A GPU's onnxruntime where CUDA is not installed: it prints four lines of its own."""
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    severity = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas"))
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", severity.append)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    missing = rf"did not load \(.*libonnxruntime_providers_{provider}\.so: cannot open shared"
    with pytest.raises(UserError, match=missing):
        create_session(write_model(tmp_path / "m.onnx"), provider, 1)
    assert severity == [4]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("provider", "fp16", "before", "then"),
    [
        ("tensorrt", False, None, "0"),
        ("tensorrt", False, "1", "1"),  # who sets it knows better
        ("tensorrt", True, None, None),
        ("cuda", False, None, None),  # has an option of its own
    ],
)
def test_tensorrt_builds_no_tf32_into_fp32(tmp_path, monkeypatch, provider, fp16, before, then):
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", before or "")
    if before is None:
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    gpu = GpuOptions(fp16=fp16, engines=tmp_path)
    with pytest.raises(UserError, match="did not load"):
        create_session(write_model(tmp_path / "m.onnx"), provider, 1, gpu)
    assert os.environ.get("NVIDIA_TF32_OVERRIDE") == then


def test_layers_that_a_provider_leaves_to_another_are_an_error(tmp_path, monkeypatch):
    path = write_model(tmp_path / "m.onnx")
    session = create_session(path, "cpu", 1)
    assert not misplaced_layers(session, "CPUExecutionProvider")
    assert misplaced_layers(session, "CUDAExecutionProvider") == {"MatMul": 1}

    class Partly(onnxruntime.InferenceSession):
        """Stands for a session of a GPU's that took none of the layers."""

        def __init__(self, path, options, providers, enable_fallback):
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return names

    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Partly)
    with pytest.raises(UserError, match=r"does not take 1 layers of .*m\.onnx \(MatMul\)"):
        create_session(path, "cuda", 1)


def test_two_models_of_one_name_share_no_engine(tmp_path):
    folders = set()
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        path = write_model(tmp_path / str(seed) / "model.onnx", seed)
        for _ in range(2):
            (_, options), *_ = _provider_list(path, "tensorrt", GpuOptions(engines=tmp_path))
            folders.add(options["trt_engine_cache_path"])
    assert len(folders) == 2


def test_what_is_asked_of_a_gpu(tmp_path):
    """Names and values that onnxruntime-gpu 1.31.1 takes; it refuses those it does not know."""
    gpu = GpuOptions(fp16=True, graph=True, engines=tmp_path)
    path = write_model(tmp_path / "m.onnx")
    exact = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    cuda, cpu = _provider_list(path, "cuda", gpu)
    assert cuda == ("CUDAExecutionProvider", exact | {"enable_cuda_graph": True})
    (name, options), *rest = _provider_list(path, "tensorrt", gpu)
    assert rest == [("CUDAExecutionProvider", exact), cpu]
    folder = options["trt_engine_cache_path"]
    assert (name, options) == (
        "TensorrtExecutionProvider",
        {
            "trt_fp16_enable": True,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": folder,
        },
    )


def test_auto_says_that_it_takes_the_cpu(tmp_path, monkeypatch, capsys):
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    real = onnxruntime.InferenceSession

    def session(path, options, providers, enable_fallback):
        if providers == ["CPUExecutionProvider"]:
            return real(path, options, providers=providers)
        return FakeSession(enable_fallback=enable_fallback)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    made = create_session(write_model(tmp_path / "m.onnx"), "auto", 1)
    assert provider_of(made) == "cpu"
    assert "did not load" in capsys.readouterr().err


@pytest.mark.parametrize(("provider", "way_out"), [("cpu", ""), ("cuda", ".*hides the GPU")])
def test_a_network_that_does_not_run_is_one_line(tmp_path, monkeypatch, provider, way_out):
    """On a GPU some libraries load, and memory runs out, only when it computes."""
    session = create_session(write_model(tmp_path / "m.onnx"), "cpu", 1)
    monkeypatch.setattr("serve.providers.provider_of", lambda session: provider)
    with pytest.raises(RunFailed, match=f"does not run on {provider}: .*{way_out}") as caught:
        probabilities(session, np.zeros((1, 1, 3, 3), np.uint8))
    assert "\n" not in str(caught.value)


FAILED = (
    "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: /src/cuda_call.cc:154 bool "
    "onnxruntime::CudaCall(const char*, int) [with THRW = true] "
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            f"{FAILED}CUDA failure 100: no CUDA-capable device is detected ; GPU=0 ; "
            "hostname=ward ; file=/src/info.cc ; line=70 ; expr=cudaGetDeviceCount(&count); ",
            "CUDA failure 100: no CUDA-capable device is detected",
        ),
        (
            "Error in execution: running Conv. Status Message: /src/cuda_kernel.h:296\n static "
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : cuDNN is unavailable",
            "9 : NOT_IMPLEMENTED : cuDNN is unavailable",
        ),
        ("bad allocation", "bad allocation"),
    ],
)
def test_of_onnx_runtimes_errors_the_failure_is_told(text, found):
    assert reason(RuntimeError(text)) == found


def test_onnx_runtime_prints_nothing_of_its_own(tmp_path, capfd):
    """What it logs in colours and lines of its own stands in the error."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("shape", TensorProto.INT64, [1], [7])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, tmp_path / "m.onnx")
    session = create_session(tmp_path / "m.onnx", "cpu", 1)
    with pytest.raises(Exception, match="Reshape"):
        session.run(None, {"x": np.zeros(3, np.float32)})
    assert capfd.readouterr() == ("", "")


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(UserError, match="no model at"):
        create_session(tmp_path / "none.onnx", "cpu", 1)
    for content in (b"", b"not a model", bytes(1000)):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(UserError, match="not an ONNX model"):
            create_session(tmp_path / "bad.onnx", "cpu", 1)


@pytest.mark.parametrize("inner", [False, True])
def test_a_model_with_weights_in_other_files_is_refused(tmp_path, inner):
    """Else a run would go on with other weights, since the file's hash stays."""
    model = onnx.load(write_model(tmp_path / "m.onnx"))
    if inner:
        weights = model.graph.initializer.pop(0)
        model.graph.node.insert(0, helper.make_node("Constant", [], [weights.name], value=weights))
    place = {"size_threshold": 0, "location": "m.data", "convert_attribute": True}
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, **place)
    with pytest.raises(UserError, match=r"m\.onnx keeps weights in other files; make it one"):
        create_session(tmp_path / "m.onnx", "cpu", 1)
    onnx.save(onnx.load(tmp_path / "m.onnx"), tmp_path / "one.onnx")
    (tmp_path / "m.data").unlink()
    assert read_model_info(create_session(tmp_path / "one.onnx", "cpu", 1), "one.onnx")


def test_a_model_that_may_not_be_read_is_no_damaged_one(tmp_path, monkeypatch):
    path = write_model(tmp_path / "m.onnx")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission to read"):
        create_session(path, "cpu", 1)
