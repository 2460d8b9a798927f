"""bench.gpu_node: what a GPU node lacks is found, each in a line with what to do."""

import importlib.metadata
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pynvml
import pytest
import torch
import torch.distributed as dist

from bench import doctor, gpu_node
from bench.gpu_node import gpu_problems
from shards.console import UserError


@pytest.fixture
def node(monkeypatch):
    """Two GPUs that lack nothing."""
    session = SimpleNamespace(run=lambda names, given: [np.zeros(1)])
    monkeypatch.setattr(gpu_node, "has_gpu", lambda: True)
    monkeypatch.setattr(gpu_node, "why_no_gpu", lambda: None)
    monkeypatch.setattr(gpu_node, "create_session", lambda path, provider, threads: session)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(gpu_node.shutil, "disk_usage", lambda _: SimpleNamespace(total=2**30))
    for name in ("nvidia", "nvidia.dali"):  # the first is not there where no package of theirs is
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: packages("onnxruntime-gpu"))
    nvml = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetMigMode": lambda handle: [0, 0],
    }
    for name, answer in nvml.items():
        monkeypatch.setattr(pynvml, name, answer)
    return session


def packages(*names: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(name=name) for name in names]


def failing(error: Exception):
    def fail(*_):
        raise error

    return fail


def test_a_node_that_lacks_nothing_is_left_alone(node):
    assert gpu_problems() == []


def test_nothing_is_asked_of_a_machine_without_a_gpu(node, monkeypatch):
    monkeypatch.setattr(gpu_node, "has_gpu", lambda: False)
    monkeypatch.setattr(gpu_node, "create_session", failing(UserError("asked")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_problems() == []


LACKS = {
    "driver": (gpu_node, "why_no_gpu", lambda: "its driver is for CUDA 12.8"),
    "onnxruntime": (gpu_node, "create_session", failing(UserError("install onnxruntime-gpu"))),
    "both": (
        importlib.metadata,
        "distributions",
        lambda: packages("onnxruntime", "onnxruntime-gpu"),
    ),
    "NVML": (pynvml, "nvmlInit", failing(pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))),
    "MIG": (pynvml, "nvmlDeviceGetMigMode", lambda handle: [handle, 0]),
    "NCCL": (dist, "is_nccl_available", lambda: False),
    "shared memory": (
        gpu_node.shutil,
        "disk_usage",
        lambda _: SimpleNamespace(total=64 * 2**20),
    ),
}
SAID = {
    "driver": "on the CPU, as torch cannot use the GPU: its driver is for CUDA 12.8",
    "onnxruntime": "serve scores on the CPU: install onnxruntime-gpu",
    "both": "both installed, which write the same files: uninstall both, then install",
    "NVML": "NVML does not answer (NVML Shared Library Not Found): metrics are without",
    "MIG": "GPU 1 is cut by MIG",
    "NCCL": "built without NCCL, so that one of the 2 GPUs trains; install",
    "shared memory": "/dev/shm has 64 MiB, and NCCL needs up to 30 for each of 2 GPUs: start the "
    "container with --shm-size=1g",
}


@pytest.mark.parametrize("lack", LACKS)
def test_what_is_missing_is_one_line(node, monkeypatch, lack):
    monkeypatch.setattr(*LACKS[lack])
    (line,) = gpu_problems()
    assert SAID[lack] in line


def test_dali_that_is_not_there_is_one_line(node, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    (line,) = gpu_problems()
    assert line.startswith("DALI is not there (")
    assert line.endswith("install nvidia-dali-cuda130")


def test_cuda_that_loads_and_does_not_compute_is_one_line(node):
    said = "CUDNN failure 1001:\nCUDNN_STATUS_NOT_INITIALIZED ; GPU=0 ; hostname=ward7 ; file=x.cc"
    node.run = failing(RuntimeError(f"[ONNXRuntimeError] : 6 : FAIL : {said}"))
    (line,) = gpu_problems()  # without the machine's name
    assert line.endswith("does not compute: CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED")


def test_a_card_that_knows_no_mig_and_a_single_one_are_well(node, monkeypatch):
    unknown = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigMode", failing(unknown))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for lack in ("NCCL", "shared memory"):
        monkeypatch.setattr(*LACKS[lack])
    assert gpu_problems() == []


def test_the_probe_is_a_model_that_computes(tmp_path):
    session = onnxruntime.InferenceSession(
        gpu_node._convolution().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": np.ones((1, 1, 8, 8), np.float32)})
    assert found.shape == (1, 1, 6, 6)
    assert (found == 9).all()


def test_the_doctor_says_it_before_it_measures(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "gpu_problems", lambda: ["DALI is not there"])
    monkeypatch.setattr(doctor, "raw_images", failing(UserError("measured")))
    with pytest.raises(UserError, match="measured"):
        doctor.diagnose(doctor.DoctorBench(quick=True))
    assert capsys.readouterr().err == "warning: DALI is not there\n"
