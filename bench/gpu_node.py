"""What keeps a machine with NVIDIA GPUs from using them, each in a line that says what to do.

`python -m bench doctor` begins with it. Nothing is said on a machine without a GPU.
"""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.distributed as dist
from onnx import TensorProto, helper, numpy_helper

from serve.providers import create_session, reason
from shards.console import UserError
from shards.nvidia import has_gpu
from train.device import why_no_gpu

_SHARED = Path("/dev/shm")
_SHARED_BYTES = 512 * 2**20  # NCCL takes 10 to 30 MB of it for each GPU; a container has 64


def gpu_problems() -> list[str]:
    """In the order in which they are to be mended."""
    if not (has_gpu() or torch.cuda.is_available()):
        return []
    checks = (_torch, _dali, _onnxruntime, _nvml, _nccl)
    return [line for check in checks for line in check()]


def _torch() -> Iterator[str]:
    lack = why_no_gpu()
    if lack:
        yield f"training and explanations are on the CPU, as torch cannot use the GPU: {lack}"


def _dali() -> Iterator[str]:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        yield (
            f"DALI is not there ({error}): the first epoch is decoded on the CPU; install "
            "nvidia-dali-cuda130"
        )


def _onnxruntime() -> Iterator[str]:
    packages = {distribution.name for distribution in importlib.metadata.distributions()}
    if {"onnxruntime", "onnxruntime-gpu"} <= packages:
        yield (
            "onnxruntime and onnxruntime-gpu are both installed, which write the same files: "
            "uninstall both, then install onnxruntime-gpu[cuda,cudnn]"
        )
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as folder:
        path = Path(folder, "probe.onnx")
        onnx.save(_convolution(), path)
        try:
            session = create_session(path, "cuda", 1)
            session.run(None, {"x": np.zeros((1, 1, 8, 8), np.float32)})  # cuDNN loads only now
        except UserError as error:
            yield f"serve scores on the CPU: {error}"
        except Exception as error:  # ONNX Runtime's errors share no base class
            yield f"serve scores on the CPU, since CUDA does not compute: {reason(error)}"


def _convolution() -> onnx.ModelProto:
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, side, side])
        for name, side in (("x", 8), ("y", 6))
    )
    weight = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _nvml() -> Iterator[str]:
    import pynvml

    try:
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            if _is_cut(pynvml.nvmlDeviceGetHandleByIndex(number)):
                yield (
                    f"GPU {number} is cut by MIG: a process uses one instance, named by "
                    "CUDA_VISIBLE_DEVICES=MIG-..., NCCL joins none (train with GPUS=1), and power "
                    "and energy of an instance are not told; nvidia-smi -mig 0 makes it whole"
                )
    except pynvml.NVMLError as error:
        yield f"NVML does not answer ({error}): metrics are without memory, power and energy"


def _is_cut(handle: object) -> bool:
    import pynvml

    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError_NotSupported:
        return False


def _nccl() -> Iterator[str]:
    count = torch.cuda.device_count()
    if count < 2:
        return
    if not (dist.is_available() and dist.is_nccl_available()):
        yield (
            f"torch {torch.__version__} is built without NCCL, so that one of the {count} GPUs "
            "trains; install PyTorch's own build for CUDA"
        )
    size = shutil.disk_usage(_SHARED).total
    if size < _SHARED_BYTES:
        yield (
            f"{_SHARED} has {size / 2**20:.0f} MiB, and NCCL needs up to 30 for each of {count} "
            "GPUs: start the container with --shm-size=1g"
        )
