"""What the processes of one machine share: memory that Linux frees with the last of them.

The memory has no name (memfd): nothing is left in /dev/shm, however the processes end, and the
size of /dev/shm (64 MB in a container) is no limit.
"""

import mmap
import os

import numpy as np
import torch

from shards.console import RunFailed
from train.dist import World


def local_part(count: int, world: World | None) -> tuple[int, int]:
    """start and stop of this process's part of `count` things that its machine shares out."""
    if world is None:
        return 0, count
    return (
        count * world.local_rank // world.local_size,
        count * (world.local_rank + 1) // world.local_size,
    )


def is_leader(world: World | None) -> bool:
    """Whether this is the first process of its machine."""
    return world is None or world.local_rank == 0


def shared_array(
    shape: tuple[int, ...], dtype: type[np.generic], world: World | None
) -> np.ndarray | None:
    """Zeros that all processes of this machine see; every process of the world must ask. None on
    all of them when any machine's do not get at each other's memory."""
    if world is None or world.size == 1:
        return np.zeros(shape, dtype)
    length = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    file = os.memfd_create("cxrstack", os.MFD_CLOEXEC) if is_leader(world) else -1
    if file >= 0:
        os.ftruncate(file, length)
    places = gather([os.getpid(), file, _inode(file)], world)
    if file < 0:
        file = _open_of(*places[world.rank - world.local_rank])
    failed = world.max(float(file < 0)) > 0
    if failed:
        if file >= 0:
            os.close(file)
        return None
    memory = mmap.mmap(file, length)
    os.close(file)  # the mapping keeps the memory; the leader has waited for the others in max()
    return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)


def gather(values: list[int], world: World) -> list[list[int]]:
    """The values of every process, by rank."""
    rows = torch.tensor([values], dtype=torch.int64, device=world.device)
    return world.gather_rows(rows, world.size).tolist()


def smallest(values: list[int], world: World | None) -> list[int]:
    """Of each value the smallest over all processes."""
    return values if world is None else np.array(gather(values, world)).min(0).tolist()


def largest(value: int, world: World | None) -> int:
    """The largest of all processes' values."""
    return value if world is None else int(world.max(float(value)))


def leaders_value(value: int, world: World | None) -> int:
    """The value of the first process of this machine."""
    if world is None:
        return value
    return gather([value], world)[world.rank - world.local_rank][0]


def agree(error: Exception | None, world: World | None) -> None:
    """Raise this process's error; RunFailed where only another process has one."""
    failed = largest(int(error is not None), world)
    if error is not None:
        raise error
    if failed:
        raise RunFailed("another process of this run could not load its part; it says why")


def _inode(file: int) -> int:
    return os.fstat(file).st_ino if file >= 0 else 0


def _open_of(pid: int, file: int, inode: int) -> int:
    """Another process's open file, opened here; -1 when it cannot be."""
    try:
        mine = os.open(f"/proc/{pid}/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    if _inode(mine) == inode:
        return mine
    os.close(mine)  # a process of another container has the same number
    return -1
