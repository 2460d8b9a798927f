"""ingest.dicom_files: whatever fails over a file, its name stands in no message."""

import errno
import os
from pathlib import Path

import fsspec
import pytest
from dicom_maker import picture, table, write
from ingest_runs import config

from ingest import __main__ as command
from ingest.run import ingest
from ingest.sources.dicom import Dicom, DicomConfig
from shards import console
from shards.urls import path_of

NAME = "Doe^John"


def make(tmp_path: Path) -> tuple[Path, Path]:
    """Three images, the second under a patient's name, and their table."""
    for n, name in enumerate(("a/1", f"b/{NAME}", "c/3")):
        uid = {"SOPInstanceUID": f"1.2.{n}", "PatientID": f"p{n}"}
        write(tmp_path / f"src/{name}.dcm", picture(n), bits=12, **uid)
    return tmp_path / "src", table(tmp_path / "labels.csv", *(f"1.2.{n},a" for n in range(3)))


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """The exit status of the command, which ends by itself."""
    src, labels, key, out = (str(tmp_path / n) for n in ("src", "labels.csv", "key", "out"))
    given = ["dicom", "--src", src, "--table", labels, "--key-file", key, "--out", out]
    given += ["--workers", "1", "--no-progress", *options]
    monkeypatch.setattr("sys.argv", ["ingest", *given])
    with pytest.raises(SystemExit) as ended:
        console.run(command.main)
    return int(ended.value.code or 0)


def fail_on(monkeypatch: pytest.MonkeyPatch, method: str, number: int, after: int = 0) -> None:
    """Let a method of Path fail over the file of that name, after so many times."""
    whole, calls = getattr(Path, method), []

    def failing(self: Path, *arguments, **options):
        if self.name == f"{NAME}.dcm":
            calls.append(self)
            if len(calls) > after:
                raise OSError(number, os.strerror(number), str(self))
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, method, failing)


@pytest.mark.parametrize("method", ["is_file", "stat"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("after", [0, 1])
def test_a_file_that_cannot_be_looked_at_is_numbered(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
    number: int,
    after: int,
):
    make(tmp_path)
    fail_on(monkeypatch, method, number, after)
    assert run(tmp_path, monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: file 2 below --src (counted folder by folder, by name) cannot")
    assert os.strerror(number) in said
    assert "Doe" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("after", range(6))
def test_a_file_that_vanishes_is_missing_and_nameless(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
):
    """At any moment between the listing and the reading."""
    src, labels = make(tmp_path)
    fail_on(monkeypatch, "stat", errno.ENOENT, after)
    source = Dicom(DicomConfig(src, labels, tmp_path / "key"))
    said = ""
    try:
        ingest(source, config(tmp_path / "out", allow_missing=True))
    except (console.UserError, console.RunFailed) as error:
        said = str(error)
    assert "Doe" not in said + capsys.readouterr().err


def test_links_that_lead_nowhere_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    src, labels = make(tmp_path)
    (src / NAME).symlink_to(tmp_path / "nowhere")
    (src / "circle").symlink_to("circle")
    source = Dicom(DicomConfig(src, labels, tmp_path / "key"))
    records = source.records()
    assert len(records) == 3
    assert str(source.unlisted(records)).startswith("2 files or links are not DICOM")
    assert "Doe" not in capsys.readouterr().err


def test_a_store_that_fails_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    src, labels = make(tmp_path)
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "store", {})
    monkeypatch.setattr("shards.remote_errors.WAIT_S", 0.0)
    for path in src.rglob("*.dcm"):
        memory.pipe_file(f"/raw/{path.relative_to(src)}", path.read_bytes())
    for method in ("cat_file", "ls"):
        whole = getattr(type(memory), method)

        def failing(self, path, *arguments, whole=whole, **options):
            if "/b" in str(path):
                raise PermissionError(errno.EACCES, "denied", path)
            return whole(self, path, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(memory), method, failing)
            source = Dicom(DicomConfig(path_of("memory://raw"), labels, tmp_path / "key"))
            with pytest.raises(console.RunFailed, match="below --src") as caught:
                ingest(source, config(tmp_path / method))
            assert "Doe" not in str(caught.value)
