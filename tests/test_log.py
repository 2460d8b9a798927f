"""RUN/settings.json: what may change on a folder, and what may not."""

import errno
import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shards.console import UserError
from train.log import MetricsLog, draw_curves, read_metrics
from train.recipes.bassi import demo
from train.settings import commit, held, write_settings
from train.store import InputConfig


def test_settings_may_be_mended_until_there_is_a_checkpoint(tmp_path: Path):
    run = tmp_path / "run"
    write_settings(run, demo(), tmp_path, synthetic=True)
    write_settings(run, replace(demo(), seed=7), tmp_path, synthetic=True)
    assert json.loads((run / "settings.json").read_bytes())["config"]["seed"] == 7
    (run / "covid").mkdir()
    (run / "covid" / "model.json").write_text("{}")  # finished, without its checkpoints
    with pytest.raises(UserError, match=r"differing: config\.seed"):
        write_settings(run, replace(demo(), seed=8), tmp_path, synthetic=True)
    (run / "covid" / "model.json").unlink()
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"differing: config\.seed"):
        write_settings(run, replace(demo(), seed=8), tmp_path, synthetic=True)
    start = replace(demo().start, weights_dir=tmp_path)
    elsewhere = replace(demo(), seed=7, input=InputConfig("torch", threads=1), start=start)
    elsewhere = replace(elsewhere, device="cpu")
    write_settings(run, elsewhere, tmp_path / "moved", synthetic=True)


def test_the_command_of_a_run_is_one_that_a_shell_reads(tmp_path, monkeypatch):
    words = ["demo", "--shards", "my shards", "--run", str(tmp_path / "a run; ls")]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    write_settings(tmp_path / "run", demo(), tmp_path, synthetic=True)
    told = json.loads((tmp_path / "run" / "settings.json").read_text())["command"]
    assert shlex.split(told) == ["python", "-m", "train", *words]


def test_settings_tell_the_commit_or_that_none_is_known(tmp_path: Path, monkeypatch):
    git = ["git", "-C", str(Path(__file__).parents[1]), "rev-parse", "--short=12", "HEAD"]
    try:
        head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        head = None
    for known in (head, None):
        write_settings(tmp_path / "run", demo(), tmp_path, synthetic=True)
        found = json.loads((tmp_path / "run" / "settings.json").read_bytes())["commit"]
        assert (found.removesuffix("-dirty") if found else None) == known
        monkeypatch.setenv("PATH", str(tmp_path))  # a machine without git
    assert commit() is None


def test_a_folder_with_other_things_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        write_settings(tmp_path, demo(), tmp_path, synthetic=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_training_at_a_time_works_in_a_folder(tmp_path: Path, monkeypatch, capsys):
    run = tmp_path / "run"
    with held(run), pytest.raises(UserError, match="another training is at work in"), held(run):
        pass
    (run / "settings.json.tmp").write_text('{"rec')
    with held(run):  # what one left that was killed before its settings were written
        write_settings(run, demo(), tmp_path, synthetic=True)

    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("shards.lock.fcntl.flock", unknown)
    with held(run):
        assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_lines_behind_the_checkpoint_are_cut_off(tmp_path: Path):
    log = MetricsLog(tmp_path, 0)
    for epoch in range(3):
        log.write({"stage": "covid", "epoch": epoch, "train_loss": 1.0})
    log.close()
    MetricsLog(tmp_path, 2).close()
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [0, 1]


def test_tensorboard_shows_each_epoch_that_counts_once(tmp_path: Path):
    for lines, epochs in ((0, range(3)), (2, range(2, 4))):  # killed in the third, gone on with it
        log = MetricsLog(tmp_path, lines)
        for epoch in epochs:
            log.write({"stage": "covid", "train_loss": float(10 * lines + epoch)})
        log.close()
        time.sleep(0.01)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    points = events.Scalars("covid/train_loss")
    assert [(point.step, point.value) for point in points] == [(1, 0), (2, 1), (3, 22), (4, 23)]


def test_half_a_line_is_none_and_a_damaged_one_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epo')
    assert read_metrics(tmp_path) == [{"epoch": 1}]
    path.write_text('{"epo\n{"epoch": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"shards": "x"}', '{"config": 3}'])
def test_damaged_settings_are_named(tmp_path: Path, content: str):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UserError, match=r"settings\.json is (damaged|not of a run)"):
        write_settings(tmp_path, demo(), tmp_path, synthetic=True)


def test_a_run_folder_that_cannot_be_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is no folder; take another"):
        write_settings(tmp_path / "file", demo(), tmp_path, synthetic=True)
    with pytest.raises(UserError, match=r"run cannot be made \(Not a directory\); take another"):
        write_settings(tmp_path / "file" / "run", demo(), tmp_path, synthetic=True)


def test_epochs_of_the_curves_are_whole(tmp_path, monkeypatch):
    values = {"train_loss": 0.5, "val_loss": 0.4, "val_accuracy": 0.9}
    lines = [{"stage": "s", "phase": 1, "epoch": epoch, **values} for epoch in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_curves(tmp_path)
    assert all(float(tick).is_integer() for tick in drawn[0].axes[0].get_xticks())
