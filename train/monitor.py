"""What the GPU says of itself through NVML: memory, power, energy. Nothing of it on a CPU."""

import time
from typing import Any

import torch

_EVERY_S = 1.0  # the bar asks at every step, of which a GPU makes up to 100 a second


class Monitor:
    """Of one device; where NVML is not there, it knows nothing."""

    def __init__(self, device: torch.device) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        if device.type == "cuda":
            self._nvml, self._handle = _connect(device)
        self._note, self._asked_at = "", float("-inf")

    def note(self) -> str:
        """'12.3 GB, 412 W'; '' where nothing is known."""
        if self._nvml and time.monotonic() - self._asked_at > _EVERY_S:
            self._asked_at = time.monotonic()
            parts = (self._memory(), self._power())
            self._note = ", ".join(part for part in parts if part)
        return self._note

    def energy_j(self) -> float | None:
        """Joules since the driver started; None where the GPU does not count them."""
        used = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if used is None else used / 1e3

    def _memory(self) -> str:
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return "" if memory is None else f"{memory.used / 1e9:.1f} GB"

    def _power(self) -> str:
        power = self._ask("nvmlDeviceGetPowerUsage")
        return "" if power is None else f"{power / 1e3:.0f} W"

    def _ask(self, name: str) -> Any:
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, name)(self._handle)
        except self._nvml.NVMLError:
            return None


def _connect(device: torch.device) -> tuple[Any, Any]:
    try:
        import pynvml

        pynvml.nvmlInit()
        # By UUID, since CUDA_VISIBLE_DEVICES renumbers the GPUs for torch and not for NVML.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except (ImportError, AttributeError):
        return None, None
    except pynvml.NVMLError:
        return None, None
