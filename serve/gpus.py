"""One process per GPU, each with a share of the units; they commit into the same folder."""

import ctypes
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

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


@contextmanager
def on_the_others(work: Callable[..., None], arguments: Sequence[tuple]) -> Iterator[None]:
    """While this process works on the first GPU: work(*arguments[i]) in a process that sees no GPU
    but the i-th of the others. RunFailed when one fails; all go on to their end, and what they
    committed stays."""
    context = multiprocessing.get_context("spawn")
    each = zip(_names(1 + len(arguments))[1:], arguments, strict=True)
    processes = [context.Process(target=_main, args=(gpu, work, given)) for gpu, given in each]
    for process in processes:
        process.start()
    try:
        try:
            yield
        except RunFailed:
            _join(processes)
            raise
        _join(processes)
    finally:
        for process in processes:
            process.terminate()
    failed = [(i, p.exitcode) for i, p in enumerate(processes, 1) if p.exitcode]
    if failed:
        number, status = failed[0]
        raise RunFailed(
            f"the process of GPU {number} ended with status {status}; the same command goes on "
            "where it stopped"
        )


def _names(count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the first so many GPUs that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(number) for number in range(count)])[:count]


def _join(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.join()


def _main(gpu: str, work: Callable[..., None], arguments: tuple) -> None:
    # Not by a number that CUDA is told: whatever a thread does before it is told, a copy for
    # example, is done on the first GPU, and every process would take memory of that.
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_die_with_parent, daemon=True).start()
    run(lambda: work(*arguments))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
