"""Which device computes; and why a GPU that the machine has is not taken, in one line."""

import ctypes
import re
from collections.abc import Sequence

import torch

from shards.console import UserError, one_line, warn
from shards.nvidia import has_gpu


def choose_device(device: str, local_rank: int) -> torch.device:
    """`auto`: this rank's GPU, or the CPU where there is none, said aloud where torch cannot use
    the one that is there. UserError when cuda is not there, or the GPU is older than torch's code.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"no device {device!r}; there are: auto, cpu, cuda")
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = why_no_gpu()
        if device == "cuda":
            found = f"torch cannot use the GPU: {reason}" if reason else "torch sees no GPU"
            raise UserError(f"--device cuda, but {found}; take --device cpu or mend the driver")
        if reason and local_rank == 0:
            warn(f"torch cannot use the GPU: {reason}; going on with the CPU")
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank}, but this machine has {torch.cuda.device_count()} GPUs; "
            "start fewer processes (GPUS=n)"
        )
    _check_supported(local_rank)
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def why_no_gpu() -> str | None:
    """None where torch uses one, or where there is none, or where it is hidden."""
    if torch.cuda.is_available() or not has_gpu():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is the CPU's build (make setup takes CUDA's)"
    driver = _driver_version()
    if driver is None:
        return "there is no libcuda.so.1 (a container gets it by docker run --gpus all)"
    if driver[0] < int(torch.version.cuda.split(".")[0]):
        return (
            f"its driver is for CUDA {driver[0]}.{driver[1]}, torch {torch.__version__} for CUDA "
            f"{torch.version.cuda}: a newer driver is needed (CUDA 13: 580), or a torch for the "
            "driver's CUDA"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return one_line(str(error))
    return "CUDA counts none"


def _driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver knows; None where its library is not there."""
    number = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)):
            return None
    except OSError:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _check_supported(number: int) -> None:
    """UserError for a GPU for which this torch has no code: its first kernel would say so, in a
    trace. CUDA 13 has none for Volta (V100) and older ones."""
    capability, built = torch.cuda.get_device_capability(number), torch.cuda.get_arch_list()
    if not runs_on(capability, built):
        raise UserError(
            f"torch {torch.__version__} has no code for {torch.cuda.get_device_name(number)} "
            f"(compute capability {capability[0]}.{capability[1]}; it is built for "
            f"{', '.join(built)}); install a torch for CUDA 12, or hide the GPU with "
            "CUDA_VISIBLE_DEVICES="
        )


def runs_on(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """built: sm_NN, which runs on its own generation from NN on (sm_NNa on NN alone), and
    compute_NN, which the driver compiles for any later one."""
    own = 10 * capability[0] + capability[1]
    for kind, number, only in re.findall(r"(sm|compute)_(\d+)(a?)", " ".join(built)):
        least = int(number)
        same = kind == "compute" or least // 10 == own // 10
        if own == least or (not only and same and least < own):
            return True
    return False
