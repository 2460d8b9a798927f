"""From the command to the end of a training's first step, where the store is warm.

Each start is a process of its own, `python -m train`, as a person types it; `bench train` asks.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ingest.config import IngestConfig
from ingest.run import ingest
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from ingest.synthetic import write_chestxray14
from shards.console import RunFailed, progress

_IMAGES = 64
_LIMIT_S = 300.0


def start_seconds(architecture: str, size: int, workers: int, repeats: int) -> list[float]:
    """Of each start of chestxray14-ARCHITECTURE, random weights, its first phase and batch. The
    first checkpoint, which this run writes after each step, shows that the step is done; writing it
    is included."""
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as work:
        shards = _shards(Path(work), workers)
        words = ["-m", "train", f"chestxray14-{architecture}", "--shards", str(shards)]
        words += ["--size", str(size), "--start.kind", "random", "--checkpoint-every-s", "0"]
        words += ["--input.cache", str(Path(work, "cache"))]
        with progress("start", repeats + 1) as advance:
            seconds = []
            for number in range(repeats + 1):  # the first one fills the store
                seconds.append(_start([sys.executable, *words], Path(work, f"run-{number}")))
                advance(1, f"{seconds[-1]:.1f} s")
    return seconds[1:]


def _shards(work: Path, workers: int) -> Path:
    write_chestxray14(work / "raw", images=_IMAGES, seed=0, size=512, archives=1)
    config = IngestConfig(work / "shards", workers=workers, progress=False)
    ingest(ChestXray14(ChestXray14Config(work / "raw")), config)
    return work / "shards"


def _start(command: Sequence[str], run: Path) -> float:
    """Seconds until the run's first checkpoint is there; then the run is stopped."""
    first, began = run / "checkpoints" / "000001", time.perf_counter()
    with (run.parent / f"{run.name}.log").open("w+") as log:
        process = subprocess.Popen([*command, "--run", str(run)], stdout=log, stderr=log)
        try:
            while not first.is_dir():
                seconds = time.perf_counter() - began
                if process.poll() is not None or seconds > _LIMIT_S:
                    log.seek(0)
                    raise RunFailed(f"no first step after {seconds:.0f} s: {log.read()[-500:]}")
                time.sleep(0.01)
            return time.perf_counter() - began
        finally:
            process.terminate()
            process.wait()
