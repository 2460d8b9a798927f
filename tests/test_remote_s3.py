"""Data sets from and to a real S3 server and a web server on loopback."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from ingest_runs import ROOT, config, tree
from s3_server import Cutter, run, s3_server
from test_remote import download, nih_at

from ingest import remote
from ingest.run import ingest
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from shards.console import UserError
from shards.remote_file import RemoteFile
from shards.urls import path_of

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def s3() -> Iterator[Cutter]:
    with s3_server("bucket-a") as proxy:
        yield proxy


def test_s3_to_s3_with_a_broken_upload(
    s3: Cutter, tiny_raw: Path, tiny_shards: Path, tmp_path: Path
):
    fs = fsspec.filesystem("s3")
    fs.put(str(tiny_raw / "chestxray14"), "bucket-a/raw/", recursive=True)
    source = ("ingest", "chestxray14", "--src", "s3://bucket-a/raw/chestxray14")
    ours = ("--out", "s3://bucket-a/sets", "--shorter-side", 128, "--workers", 1, "--no-progress")
    s3.cut = b"PUT /bucket-a/sets/chestxray14/train/chestxray14-train-000000.tar"
    cut = run(*source, *ours, cache=tmp_path)
    assert cut.returncode == 1, cut.stderr
    assert "goes on where it stopped" in cut.stderr
    assert cut.stderr.count("\n") == 1
    assert s3.cuts >= 2 * 5  # two tries, five of s3fs in each
    fs.invalidate_cache()
    assert [Path(p).name for p in fs.glob("bucket-a/sets/*/*/*.tar")] == [
        "chestxray14-test-000000.tar"  # which comes before train's
    ]
    assert not fs.exists("bucket-a/sets/chestxray14/train/chestxray14-train-000000.tar")
    assert not fs.exists("bucket-a/sets/chestxray14/manifest.json")
    verify = run("shards", "verify", "s3://bucket-a/sets", cache=tmp_path)
    assert verify.returncode == 2
    assert "planted-secret" not in cut.stderr + verify.stderr
    s3.cut = b""
    done = run(*source, *ours, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = download("s3://bucket-a/sets/chestxray14", tmp_path / "copy")
    assert found == tree(tiny_shards / "chestxray14")
    assert not [p for p in (tmp_path / "cxrstack").rglob("*") if p.is_file()]
    verify = run("shards", "verify", "s3://bucket-a/sets", cache=tmp_path)
    assert verify.returncode == 0, verify.stdout + verify.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--out", "s3://bucket-none/sets"), {}, "the bucket does not exist"),
        (("--out", "s3://bucket-a/x"), {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "tries"),
        (("--out", "s3://bucket-a/x"), {"AWS_SECRET_ACCESS_KEY": ""}, "credentials"),
    ],
)
def test_s3_errors_are_one_line(
    s3: Cutter, tiny_raw: Path, tmp_path: Path, monkeypatch: Any, arguments, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    raw = tiny_raw / "chestxray14"
    done = run("ingest", "chestxray14", "--src", raw, *arguments, "--no-progress", cache=tmp_path)
    assert done.returncode in (1, 2), done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_killed_in_an_upload_to_s3_it_goes_on(
    s3: Cutter, tiny_raw: Path, tiny_shards: Path, tmp_path: Path
):
    script = f"""
import os, signal
from pathlib import Path
from ingest.config import IngestConfig
from ingest.run import ingest
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from shards.remote import RemotePath
from shards.urls import path_of
put = RemotePath.put
def put_or_die(self, path):
    if path.name.endswith("val-000000.tar"):
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, path)
RemotePath.put = put_or_die
source = ChestXray14(ChestXray14Config(Path({str(tiny_raw / "chestxray14")!r})))
options = dict(shorter_side=128, workers=1, progress=False, work=Path({str(tmp_path / "work")!r}))
ingest(source, IngestConfig(path_of("s3://bucket-a/killed"), **options))
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    source = ChestXray14(ChestXray14Config(tiny_raw / "chestxray14"))
    out = path_of("s3://bucket-a/killed")
    assert not (out / "chestxray14/manifest.json").exists()
    ingest(source, config(out, work=tmp_path / "work"))
    copy = tmp_path / "copy"
    assert download("s3://bucket-a/killed/chestxray14", copy) == tree(tiny_shards / "chestxray14")
    shutil.rmtree(copy)
    assert not any((tmp_path / "work").iterdir())


def test_http_folders_and_ranges(tiny_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    process = subprocess.Popen(
        command, cwd=tiny_raw, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().split("port ")[1].split()[0]
        url = f"http://127.0.0.1:{port}"
        here = CovidRadiography(CovidRadiographyConfig(tiny_raw / "covid-radiography"))
        there = CovidRadiography(CovidRadiographyConfig(path_of(f"{url}/covid-radiography")))
        assert there.inventory() == here.inventory()
        read = remote.read_ahead(there.images())
        assert [get() for _, get in read] == [image.read() for image in here.images()]
        records = nih_at(url).records()
        assert {image.location for image in nih_at(url).images()} >= {r.location for r in records}
        monkeypatch.setattr(RemoteFile, "MAX_BYTES", 1000)  # that server knows no ranges
        with pytest.raises(UserError, match=r"no parts of files.*nginx"):
            list(nih_at(url).images())
        with pytest.raises(UserError, match="no folder"):
            nih_at(f"{url}/none")
    finally:
        process.terminate()
        process.wait()
