"""The most memory that a command and its processes hold at once, or that a function takes."""

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil

from shards.console import RunFailed

_EVERY_S = 0.02


def peak_mb(module: str, arguments: Sequence[str]) -> float:
    """Runs `python -m module arguments`; the largest sum of resident memory over its processes, in
    MB. Pages that processes share count once for each: the truth is lower. RunFailed when it
    fails."""
    command = [sys.executable, "-m", module, *arguments]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(_EVERY_S)
        output = process.stdout.read().decode(errors="replace") if process.stdout else ""
    if process.returncode:
        raise RunFailed(f"{module} ended with status {process.returncode}: {output[-300:]}")
    return peak / 1e6


def peak_above_start_mb(work: Callable[..., None], *arguments: Any) -> float:
    """work(*arguments) in a fresh process: by how much its resident memory grew at most, in MB,
    beyond what the imports had taken. RunFailed when it fails."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_grown_mb, work, arguments).result()
        except BrokenProcessPool as error:
            raise RunFailed("the process whose memory is measured died") from error


def _grown_mb(work: Callable[..., None], arguments: Sequence[Any]) -> float:
    before = _status_kb("VmRSS")
    work(*arguments)
    return (_status_kb("VmHWM") - before) * 1024 / 1e6


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _resident(pid: int) -> int:
    try:
        family = [psutil.Process(pid)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it ended between the two looks
    return total
