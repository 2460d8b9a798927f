"""ingest.command: `retry OUT` repeats the command that made a data set, wherever it runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dicom_maker import picture, table, write
from ingest_runs import ROOT, run_cli

from ingest.__main__ import _parse, _retry
from ingest.command import RetryConfig, hand_on, recall, remember
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest
from shards.verify import verify_dataset


def test_it_comes_back(tmp_path: Path):
    folder = tmp_path / "out/set"
    folder.mkdir(parents=True)
    remember(folder, ["folders", "--src", "a b", "--exclude-view", "L"])
    assert recall(folder, {"folders"}) == (
        Path.cwd(),
        ["folders", "--src", "a b", "--exclude-view", "L"],
    )
    with pytest.raises(UserError, match=r"is not remembered in .*run it again with --retry"):
        recall(tmp_path / "out/other", {"folders"})


@pytest.mark.parametrize(
    "kept",
    ["", "{}", "[]", '{"folder": "/", "arguments": []}', '{"folder":"/","arguments":["rm"]}'],
)
def test_what_is_no_ingest_is_not_repeated(tmp_path: Path, kept: str):
    (tmp_path / ".ingest").mkdir()
    (tmp_path / ".ingest/set.json").write_text(kept)
    with pytest.raises(UserError, match=r"is not remembered in .*run it again with --retry"):
        recall(tmp_path / "set", {"folders"})


def test_every_data_set_is_retried_that_can_be(
    tiny_raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name in ("a", "b", "c", "d"):
        shutil.copytree(tiny_raw / "covid-radiography/NORMAL", raw / name / "NORMAL")
        shutil.copytree(tiny_raw / "covid-radiography/COVID-19", raw / name / "COVID-19")
        if name == "d":
            (raw / "d/NORMAL/NORMAL (13).png").unlink()  # so that nothing is to be tried again
        command = ["folders", "--src", str(raw / name), "--name", name, "--out", str(out)]
        _parse([*command, "--workers", "1", "--no-progress"])()
    whole = (raw / "a/NORMAL/NORMAL (1).png").read_bytes()
    (out / ".ingest/a.json").unlink()
    (out / ".ingest/b.json").write_text("{}")
    (out / ".ingest/d.json").unlink()
    (raw / "c/NORMAL/NORMAL (13).png").write_bytes(whole[:-1])  # still bad
    capsys.readouterr()
    with pytest.raises(RunFailed, match=r"^2 of 4 data sets could not be .*out/a, .*out/b; the w"):
        _retry(RetryConfig((out,)))
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("warning: ")] == [
        line for line in said if "could not be retried: the command that made" in line
    ]
    assert sum("could not be retried" in line for line in said) == 2
    assert any(line.startswith("again: folders --src") for line in said)
    assert f"{out / 'd'}: nothing in quarantine" in said
    with pytest.raises(UserError, match="is not remembered"):
        _retry(RetryConfig((out / "a",)))
    (out / "d/manifest.json").unlink()
    with pytest.raises(RunFailed, match=r"^3 of 4 data sets .*out/d has shards and no manifest"):
        _retry(RetryConfig((out,)))


def test_a_resplit_into_another_folder_takes_the_command_along(tmp_path: Path):
    folder, target = tmp_path / "out/set", tmp_path / "new/set"
    folder.mkdir(parents=True)
    target.mkdir(parents=True)
    hand_on(folder, target)  # not remembered
    assert not (target.parent / ".ingest").exists()
    remember(folder, ["folders", "--src", "a b"])
    hand_on(folder, target)
    assert recall(target, {"folders"}) == recall(folder, {"folders"})


def test_paths_that_cannot_be_end_in_one_line(tiny_raw: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    command = ("ingest", "chestxray14", "--src", tiny_raw / "chestxray14", "--no-progress")
    for out, message in (
        (tmp_path / "file/out", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("/proc/x", "No such file or directory (/proc/x)"),
    ):
        done = run_cli(*command, "--out", out)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    none = run_cli("ingest", "retry")
    assert (none.returncode, none.stderr.count("\n")) == (2, 1)


def test_no_progress_hides_the_bars_of_sources_too(tmp_path: Path):
    for n in range(3):
        tags = {"SOPInstanceUID": f"1.2.{n}", "PatientID": f"{n}", "ViewPosition": "PA"}
        write(tmp_path / f"src/{n}.dcm", picture(n), bits=12, **tags)
    labels = table(tmp_path / "labels.csv", "0.dcm,a", "1.dcm,a", "2.dcm,a")
    command = ("ingest", "dicom", "--src", tmp_path / "src", "--table", labels, "--dry-run")
    options = ("--key-file", tmp_path / "key", "--out", tmp_path / "out")
    assert "read headers" in run_cli(*command, *options).stderr
    assert run_cli(*command, *options, "--no-progress").stderr == ""


@pytest.mark.soak
def test_retry_out(tiny_raw: Path, tmp_path: Path):
    raw = Path(shutil.copytree(tiny_raw / "covid-radiography", tmp_path / "raw"))
    whole = (raw / "COVID-19/COVID-19 (1).png").read_bytes()
    (raw / "COVID-19/COVID-19 (1).png").write_bytes(b"cut short")
    command = [sys.executable, "-m", "ingest", "covid-radiography", "--src", "raw", "--out", "out"]
    command += ["--test-per-class", "3", "--exclude", "raw/exclude.txt", "--workers", "1"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    folder = Path(shutil.move(tmp_path / "out", tmp_path / "moved")) / "covid-radiography"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.tar")}
    assert load_manifest(folder).excluded["quarantined"] == 2
    (raw / "COVID-19/COVID-19 (1).png").write_bytes(whole)
    done = run_cli("ingest", "retry", tmp_path / "moved")
    assert done.returncode == 0, done.stderr
    assert load_manifest(folder).excluded["quarantined"] == 1
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    assert verify_dataset(folder, lambda _: None) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
def test_dicom_is_not_remembered(tmp_path: Path):
    for n in range(2):
        write(tmp_path / f"src/{n}.dcm", picture(n), bits=12, SOPInstanceUID=f"1.2.{n}")
    labels = table(tmp_path / "labels.csv", "0.dcm,a", "1.dcm,a")
    command = ("ingest", "dicom", "--src", tmp_path / "src", "--table", labels)
    options = ("--key-file", tmp_path / "key", "--out", tmp_path / "out", "--workers", 1)
    done = run_cli(*command, *options)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dicom"]
    refused = run_cli("ingest", "retry", tmp_path / "out")
    assert refused.returncode == 2
    assert "that of dicom never is" in refused.stderr
