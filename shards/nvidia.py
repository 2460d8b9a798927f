"""Whether this machine has an NVIDIA GPU, asked without CUDA: where that does not work, it tells a
machine with a GPU from one without."""

import os
from pathlib import Path

_CARDS = Path("/proc/driver/nvidia/gpus")  # the kernel's driver; seen in containers, too


def has_gpu() -> bool:
    """By the kernel's driver; False where CUDA_VISIBLE_DEVICES hides them all."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return not hidden and _CARDS.is_dir() and any(_CARDS.iterdir())
