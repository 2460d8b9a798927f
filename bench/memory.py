"""The most memory that a command and its processes hold at once."""

import subprocess
import sys
import time
from collections.abc import Sequence

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
