"""kill -9 at any moment: of one process, and of one rank under torchrun, which revives it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = str(ROOT / "tests" / "tiny_training.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def hashes(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for stage in ("chestxray14", "covid")
        for path in sorted((run / stage).glob("*.safetensors"))
    }


def lasting(run: Path) -> list[dict]:
    """The metrics that do not tell of time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("seconds", "step_s", "img_s", "time")
    return [{k: v for k, v in line.items() if k not in names} for line in lines]


@pytest.mark.soak
def test_killed_at_ten_random_moments_it_ends_as_the_undisturbed(tiny_shards, tmp_path):
    command = [sys.executable, TINY, "kills", str(tiny_shards), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    print(done.stderr[:200])  # the seed, shown when the test fails
    assert done.returncode == 0, done.stderr[-3000:]
    whole = hashes(tmp_path / "whole")
    assert len(whole) == 5  # three phases, two models
    assert hashes(tmp_path / "cut") == whole
    assert lasting(tmp_path / "cut") == lasting(tmp_path / "whole")


def torchrun(shards: Path, run: Path) -> "subprocess.Popen[bytes]":
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--max-restarts", "2", "--monitor-interval", "0.2"]
    words = [*options, TINY, str(shards), str(run), "0.05"]
    with (run.parent / f"{run.name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *launcher, *words],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )


@pytest.mark.soak
def test_a_killed_rank_is_revived_and_the_run_ends_as_the_undisturbed(tiny_shards, tmp_path):
    whole, cut = torchrun(tiny_shards, tmp_path / "whole"), None
    try:
        assert whole.wait(200) == 0, (tmp_path / "whole.log").read_text()[-3000:]
        cut = torchrun(tiny_shards, tmp_path / "cut")
        metrics = tmp_path / "cut" / "metrics.jsonl"
        while not metrics.is_file() or metrics.read_text().count("\n") < 2:
            assert cut.poll() is None, (tmp_path / "cut.log").read_text()[-3000:]
            time.sleep(0.05)
        rank = max(psutil.Process(cut.pid).children(), key=lambda child: child.pid)
        rank.send_signal(signal.SIGKILL)
        assert cut.wait(200) == 0, (tmp_path / "cut.log").read_text()[-3000:]
    finally:
        for process in (whole, cut):
            if process and process.poll() is None:
                process.terminate()
                process.wait(60)
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    assert lasting(tmp_path / "cut") == lasting(tmp_path / "whole")
    assert len(hashes(tmp_path / "whole")) == 5
