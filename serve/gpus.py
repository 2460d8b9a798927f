"""One process per GPU, each with a share of the units; they commit into the same folder."""

import ctypes
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence

from shards.console import RunFailed, UserError, run


def gpu_count() -> int:
    """GPUs that CUDA gives this process, 1 where its driver does not tell. The driver itself knows
    what CUDA_VISIBLE_DEVICES and MIG leave; nvidia-smi does not, and many containers lack it."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 1
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 1
    return max(1, count.value)


def wanted_gpus(gpus: int | None, provider: str) -> int:
    """How many processes. UserError when there are fewer GPUs than asked for."""
    if provider == "cpu":
        if gpus is not None:
            raise UserError("--gpus is for GPUs; this run is on the CPU, as CUDA does not work")
        return 1
    there = gpu_count()
    if gpus is not None and gpus > there:
        raise UserError(f"--gpus {gpus}; this machine has {there}")
    return gpus or there


def run_on_each(work: Callable[..., None], arguments: Sequence[tuple]) -> None:
    """work(*arguments[i]) in process i, all at a time. RunFailed when one fails; the others go on
    to their end, and what they committed stays."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_main, args=(work, given)) for given in arguments]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
    failed = [(i, p.exitcode) for i, p in enumerate(processes) if p.exitcode]
    if failed:
        number, status = failed[0]
        raise RunFailed(
            f"process {number} of {len(processes)} ended with status {status}; the same command "
            "goes on where it stopped"
        )


def _main(work: Callable[..., None], arguments: tuple) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    run(lambda: work(*arguments))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
