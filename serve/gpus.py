"""One process per GPU, each with a share of the units; they commit into the same folder."""

import multiprocessing
import os
import subprocess
import threading
from collections.abc import Callable, Sequence

from shards.console import RunFailed, UserError, run


def gpu_count() -> int:
    """GPUs that this process may use, by CUDA_VISIBLE_DEVICES or nvidia-smi; 1 where neither
    tells."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([name for name in visible.split(",") if name.strip()]))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 1
    return max(1, sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))


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
