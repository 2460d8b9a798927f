"""Two ranks that signals meet at different moments leave what they are in together, and the run
goes on to the weights of one that nothing disturbed."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_training import play

from shards.manifest import load_manifest
from train.log import read_metrics


def test_ranks_leave_a_step_or_a_validation_together(tiny_shards: Path, tmp_path: Path):
    done = play("moments", tiny_shards, tmp_path)
    # The third step is left twice; both validations' steps are kept, though one rank was killed.
    stops = [line for line in done.stdout.splitlines() if line.startswith("at ")]
    assert stops == ["at 0 2", "at 0 2", "at 0 4", "at 1 4"], done.stderr
    assert done.stderr.count("stopped; the same command goes on") == 3
    one, other = (load_file(tmp_path / n / "covid" / "model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    losses = [[line["val_loss"] for line in read_metrics(tmp_path / n)] for n in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_ranks_leave_the_decoding_together_and_soon(tiny_shards: Path, tmp_path: Path):
    done = play("loads", tiny_shards, tmp_path)
    assert "stopped; the same command goes on" in done.stderr
    assert "another process" not in done.stderr
    reads = [line for line in done.stdout.splitlines() if line.startswith("read ")]
    part = load_manifest(tiny_shards / "covid-radiography").splits["train"].samples // 2
    assert 0 < len(reads) < part
