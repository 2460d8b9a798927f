"""What a rate was measured on: the machine and the versions."""

import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

_PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "onnxruntime",
    "onnxruntime-gpu",
    "kornia",
    "kornia-rs",
    "webdataset",
    "opencv-python-headless",
    "imagecodecs",
    "pillow",
    "numpy",
)


@dataclass(frozen=True)
class Machine:
    """cores: those this process may use; gpu: the first one's name."""

    cpu: str
    cores: int
    gpu: str | None

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"{self.cpu}, {cores}, {self.gpu or 'no GPU'}"


def this_machine() -> Machine:
    """The machine this process runs on."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return Machine(_cpu_name(), len(os.sched_getaffinity(0)), gpu)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def versions() -> dict[str, str]:
    """Python's and the versions of the packages whose speed counts here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def matmul_flop_s(device: torch.device, dtype: torch.dtype) -> float:
    """What the device computes at most, measured: a large matrix product, the best of five."""
    side = 2048 if device.type == "cpu" else 8192
    one = torch.randn(side, side, device=device).to(dtype)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        one @ one
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds[1:])


def forward_flops(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Of one forward pass, as torch counts them; a training step has three times as many."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(images)
    return int(counter.get_total_flops())


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still has to do, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
