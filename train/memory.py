"""How much memory is free, and so where the images of a stage are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from shards.console import UserError

Place = Literal["device", "host", "disk", "stream"]
_DEVICE_SHARE = 0.5  # of what is free on a GPU: the network, its activations and its optimiser too
_HOST_SHARE = 0.7  # of what is free on the machine: Linux still needs room to cache shards
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Free bytes. host: of this machine; device: of the GPU, None where a CPU trains."""

    host: int
    device: int | None


def choose_place(
    asked: Literal["auto", "device", "host", "disk", "stream"],
    needed: int,
    memory: Memory,
    *,
    cache: bool,
) -> Place:
    """Where `needed` bytes of images are kept. `auto` takes the first that has room of: the GPU,
    the host, the on-disk store (where `cache` says that there is one), and streams otherwise.

    UserError when what was asked for has no room, or disk is asked for without a folder.
    """
    if asked == "disk" and not cache:
        raise UserError("--input.store disk needs a folder; name it with --input.cache DIR")
    if asked == "stream" and cache:
        raise UserError(
            "--input.store stream reads the shards, --input.cache DIR is a store; give one of them"
        )
    rooms = _rooms(memory)
    if asked in ("device", "host"):
        place: Place = "host" if memory.device is None else asked
        free = memory.host if place == "host" else memory.device or 0
        if needed > free:
            raise UserError(
                f"--input.store {asked} needs {gigabytes(needed)} of memory, "
                f"{gigabytes(free)} are free; take --input.store auto"
            )
        return place
    if asked != "auto":
        return asked
    for place, room in rooms.items():
        if needed <= room:
            return place
    return "disk" if cache else "stream"


def _rooms(memory: Memory) -> dict[Place, float]:
    """What a store may take of each memory, the best first."""
    host: dict[Place, float] = {"host": memory.host * _HOST_SHARE}
    if memory.device is None:
        return host
    return {"device": memory.device * _DEVICE_SHARE, **host}


def fits_host(needed: int, memory: Memory) -> bool:
    """Whether so many bytes may lie in the host's memory."""
    return needed <= memory.host * _HOST_SHARE


def describe_place(asked: str, place: Place, needed: int, memory: Memory) -> str:
    """The one line that says where the images are and why."""
    where = {
        "device": "kept on the GPU",
        "host": "kept in memory" if memory.device is None else "kept in pinned host memory",
        "disk": "read from the on-disk store",
        "stream": "streamed from the shards in every epoch",
    }[place]
    free = f"{gigabytes(memory.host)} of the host's memory"
    if memory.device is not None:
        free = f"{gigabytes(memory.device)} of the GPU's and {free}"
    why = "" if asked == "auto" else f" (--input.store {asked})"
    return f"input: {gigabytes(needed)} of images, {where}{why}; free: {free}"


def gigabytes(number: int) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"


def free_memory(device: torch.device) -> Memory:
    """What is free now."""
    return Memory(_host_free(), _device_free(device) if device.type == "cuda" else None)


def _device_free(device: torch.device) -> int:
    """NVML's number; where NVML is not there, the CUDA runtime's."""
    torch.cuda.empty_cache()  # what an earlier stage left there, both would call taken
    try:
        import pynvml
    except ImportError:
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        pynvml.nvmlInit()
        try:
            # By UUID, since CUDA_VISIBLE_DEVICES renumbers the GPUs for torch and not for NVML.
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
        finally:
            pynvml.nvmlShutdown()
    except (AttributeError, pynvml.NVMLError):
        return int(torch.cuda.mem_get_info(device)[0])


def _host_free() -> int:
    """The machine's available memory, or what its container may still take."""
    return min([int(psutil.virtual_memory().available), *_cgroup_free(_CGROUPS)])


def _cgroup_free(root: Path) -> list[int]:
    """Of each memory limit (cgroup v2) over this process: limit - use + file cache."""
    try:
        line = Path("/proc/self/cgroup").read_text().splitlines()[-1]
    except (OSError, IndexError):
        return []
    own = root / line.split(":", 2)[-1].lstrip("/")
    return [
        free
        for folder in (own, *own.parents)
        if folder.is_relative_to(root) and (free := _group_free(folder)) is not None
    ]


def _group_free(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        rows = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + int(rows.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
