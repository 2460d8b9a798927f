"""Scoring from an S3 server over HTTP: the rows of the same local files, whatever the line does."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from ingest_runs import ROOT
from s3_server import Cutter, run, s3_server
from test_archives import WRITERS, write_tar
from test_score import config, picture, rows
from test_score_inputs import dicom
from tiny_model import write_model

from serve.score import score
from serve.score_folder import UNIT_INPUTS
from shards.codec import encode

pytestmark = pytest.mark.soak
COUNT = 2 * UNIT_INPUTS + 40
BUCKET = "bucket-b/score"


@pytest.fixture(scope="module")
def s3() -> Iterator[Cutter]:
    with s3_server("bucket-b") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def there(s3: Cutter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The local copy of what lies in the bucket: PNGs of noise, so that an archive has many blocks,
    one of them damaged, and two DICOM files."""
    drawn = [encode(picture(i, (120, 128)), "png") for i in range(40)]
    members = {f"{i:05d}.png": drawn[i % len(drawn)] for i in range(COUNT)}
    members |= {"00700.png": b"damaged", "DOE^JANE.dcm": dicom(0), "DOE^JOHN": dicom(1)}
    folder = tmp_path_factory.mktemp("score")
    for name in ("a.tar", "a.tar.gz", "a.zip"):
        WRITERS[name](folder / name, members)
    WRITERS["a"](folder / "tree", dict(list(members.items())[-60:]))
    fs = fsspec.filesystem("s3")
    for path in folder.rglob("*"):
        if path.is_file():
            fs.put_file(str(path), f"{BUCKET}/{path.relative_to(folder)}")
    write_model(folder / "m.onnx")
    return folder


def words(there: Path, out: Path, *archives: str) -> list[object]:
    given = ["--model", there / "m.onnx", "--out", out, "--provider", "cpu", "--workers", 1]
    return ["score", *given, *(f"s3://{BUCKET}/{name}" for name in archives)]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "tree"])
def test_the_rows_are_those_of_the_local_files(s3, there, tmp_path, name):
    done = run("serve", *words(there, tmp_path / "out", name), cache=tmp_path)
    assert done.returncode == 0, done.stderr
    score(config(there, there / name, out=str(tmp_path / "local")))
    assert rows(tmp_path / "out") == rows(tmp_path / "local")
    written = b"".join(f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file())
    for secret in (b"DOE", b"planted-secret"):
        assert secret not in written + (done.stdout + done.stderr).encode()


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_line_that_is_cut_and_a_kill_cost_nothing(s3, there, tmp_path, name):
    command = words(there, tmp_path / "out", name)
    s3.cut = b"bytes=13893632-"  # the fourth block: 0.25 + 1 + 4 + 8 MiB are before it
    cut = run("serve", *command, cache=tmp_path)
    s3.cut = b""
    assert cut.returncode == 1, cut.stderr
    assert cut.stderr.count("\n") == 1
    assert "the same command goes on" in cut.stderr
    assert "planted-secret" not in cut.stderr
    assert len(list((tmp_path / "out/parts").glob("*.parquet"))) == 1
    process = subprocess.Popen([sys.executable, "-m", "serve", *map(str, command)], cwd=ROOT)
    while process.poll() is None and len(list((tmp_path / "out/parts").glob("*.parquet"))) < 2:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/parts").glob("*.parquet")}
    assert len(before) == 2
    assert run("serve", *command, cache=tmp_path).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    score(config(there, there / name, out=str(tmp_path / "local")))
    assert rows(tmp_path / "out") == rows(tmp_path / "local")


def test_an_object_that_was_replaced_is_refused(s3, there, tmp_path):
    fs = fsspec.filesystem("s3")
    command = words(there, tmp_path / "out", "b.tar")
    fs.put_file(str(write_tar(tmp_path / "b.tar", {"x.png": b"1"})), f"{BUCKET}/b.tar")
    assert run("serve", *command, cache=tmp_path).returncode == 0
    fs.put_file(str(write_tar(tmp_path / "b.tar", {"x.png": b"2"})), f"{BUCKET}/b.tar")
    again = run("serve", *command, cache=tmp_path)
    assert again.returncode == 2
    assert "archives[0].sha256 was" in again.stderr
    assert again.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "environment", "message"),
    [
        ("s3://bucket-none/a.tar", {}, "no archive at|bucket does not exist"),
        (f"s3://{BUCKET}/none.tar", {}, "no archive at"),
        (f"s3://{BUCKET}/none-*.tar", {}, "nothing matches"),
        (f"s3://{BUCKET}/a.tar", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "2 tries"),
        (f"s3://{BUCKET}/a.tar", {"AWS_SECRET_ACCESS_KEY": ""}, "credentials"),
    ],
)
def test_bad_urls_are_one_line(s3, there, tmp_path, monkeypatch, url, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = run("serve", *words(there, tmp_path / "out"), url, cache=tmp_path)
    assert done.returncode in (1, 2), done.stderr
    assert done.stderr.count("\n") == 1
    assert any(one in done.stderr for one in message.split("|")), done.stderr
    assert not (tmp_path / "out/scores.json").exists()
