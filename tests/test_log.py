"""RUN/settings.json: what may change on a folder, and what may not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shards.console import UserError
from train.log import MetricsLog, read_metrics
from train.recipes.bassi import demo
from train.settings import write_settings
from train.store import InputConfig


def test_settings_may_be_mended_until_there_is_a_checkpoint(tmp_path: Path):
    run = tmp_path / "run"
    write_settings(run, demo(), tmp_path, synthetic=True)
    write_settings(run, replace(demo(), seed=7), tmp_path, synthetic=True)
    assert json.loads((run / "settings.json").read_bytes())["config"]["seed"] == 7
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"differing: config\.seed"):
        write_settings(run, replace(demo(), seed=8), tmp_path, synthetic=True)
    elsewhere = replace(demo(), seed=7, input=InputConfig("torch", threads=1), device="cpu")
    write_settings(run, elsewhere, tmp_path / "moved", synthetic=True)


def test_a_folder_with_other_things_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        write_settings(tmp_path, demo(), tmp_path, synthetic=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_lines_behind_the_checkpoint_are_cut_off(tmp_path: Path):
    log = MetricsLog(tmp_path, 0)
    for epoch in range(3):
        log.write({"stage": "covid", "epoch": epoch, "train_loss": 1.0})
    log.close()
    MetricsLog(tmp_path, 2).close()
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [0, 1]
