"""Ingests that were killed, or met a full disk, go on to the same bytes."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingest_runs import ROOT, config, covid, nih, run_cli, tree

from ingest.assemble import _finished
from ingest.run import ingest
from shards.console import UserError
from shards.verify import verify_dataset
from shards.writer import write_atomic, write_shard


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(
    tiny_raw: Path, tiny_shards: Path, tmp_path: Path
):
    script = f"""
import os, signal
from pathlib import Path
from ingest import spool
from ingest.config import IngestConfig
from ingest.assemble import _finished
from ingest.run import ingest
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
spool._CHUNK_IMAGES = 7
flush, times = spool.Spool.flush, []
def flush_then_die(self):
    flush(self)
    times.append(1)
    if len(times) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
spool.Spool.flush = flush_then_die
source = ChestXray14(ChestXray14Config(Path({str(tiny_raw / "chestxray14")!r})))
ingest(source, IngestConfig(Path({str(tmp_path)!r}), shorter_side=128, workers=2, progress=False))
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    spool = tmp_path / "chestxray14/.spool"
    assert len(list(spool.glob("*.jsonl"))) == 3
    assert not (tmp_path / "chestxray14/manifest.json").exists()
    ingest(nih(tiny_raw), config(tmp_path))
    assert tree(tmp_path / "chestxray14") == tree(tiny_shards / "chestxray14")


def test_a_run_that_goes_on_encodes_nothing_twice(
    tiny_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ingest.assemble.plan_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest(nih(tiny_raw), config(tmp_path))
    monkeypatch.undo()
    added = []
    monkeypatch.setattr("ingest.spool.Spool.add", lambda self, *job: added.append(job[0]))
    ingest(nih(tiny_raw), config(tmp_path))
    assert len(added) == 1  # the quarantined one is tried again


def test_an_unfinished_set_is_gone_on_with_as_it_was_begun(
    tiny_raw: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ingest.assemble.plan_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest(covid(tiny_raw), config(tmp_path))
    monkeypatch.undo()
    for source, options, message in (
        (covid(tiny_raw), {"seed": 7}, "seed was 0, now 7; use the same settings"),
        (covid(tiny_raw), {"on_duplicate": "keep"}, "on_duplicate was drop, now keep"),
        (covid(tiny_raw, cap_per_class=5), {}, "split: cap_per_class was None, now 5; use the"),
        (covid(tiny_raw, exclude=None), {}, "metadata_sha256 .*what lists and --exclude make"),
    ):
        with pytest.raises(UserError, match=f"was begun with other settings: {message}"):
            ingest(source, config(tmp_path, **options))
    ingest(covid(tiny_raw), config(tmp_path))
    name = "covid-radiography"
    assert tree(tmp_path / name) == tree(tiny_shards / name)


def test_killed_in_assembly_it_goes_on_to_the_same_bytes(tiny_raw: Path, tmp_path: Path):
    script = f"""
import os, signal, sys
from pathlib import Path
from ingest import assemble
from ingest.config import IngestConfig
from ingest.assemble import _finished
from ingest.run import ingest
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
assemble.MEMBERS_BYTES = 200_000
write, times = assemble.write_shard, []
def write_then_die(*rest):
    times.append(1)
    if len(times) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*rest)
if sys.argv[1] == "die":
    assemble.write_shard = write_then_die
source = ChestXray14(ChestXray14Config(Path({str(tiny_raw / "chestxray14")!r})))
config = dict(shorter_side=128, workers=1, shard_mb=1, progress=False)
ingest(source, IngestConfig(Path({str(tmp_path / "cut")!r}), **config))
"""
    command = [sys.executable, "-c", script]
    killed = subprocess.run([*command, "die"], cwd=ROOT, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "cut/chestxray14"
    done = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    assert len(done) == 3
    again = subprocess.run([*command, "live"], cwd=ROOT, timeout=120)
    assert again.returncode == 0
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert not verify_dataset(folder, lambda _: None)


SLOWED = """
import sys, time
from pathlib import Path
from ingest import assemble, spool
from ingest.config import IngestConfig
from ingest.assemble import _finished
from ingest.run import ingest
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
spool._CHUNK_IMAGES, assemble.MEMBERS_BYTES = 5, 200_000
def slowed(act, seconds):
    def slow(*arguments, **options):
        time.sleep(seconds)
        return act(*arguments, **options)
    return slow
spool.Spool.add = slowed(spool.Spool.add, 0.02)
spool.write_atomic = slowed(spool.write_atomic, 0.02)
assemble.write_shard = slowed(assemble.write_shard, 0.05)
assemble.write_atomic = slowed(assemble.write_atomic, 0.02)
assemble.write_samples = slowed(assemble.write_samples, 0.05)
assemble.write_page = slowed(assemble.write_page, 0.1)
source = ChestXray14(ChestXray14Config(Path(sys.argv[1])))
config = IngestConfig(Path(sys.argv[2]), shorter_side=128, workers=1, shard_mb=1, progress=False)
print("ready", flush=True)
ingest(source, config)
"""


@pytest.mark.soak
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tiny_raw: Path, tmp_path: Path):
    def start(out: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", SLOWED, str(tiny_raw / "chestxray14"), str(out)]
        running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert running.stdout is not None
        running.stdout.readline()
        return running

    running, begin = start(tmp_path / "whole"), time.monotonic()
    assert running.wait(60) == 0
    took = time.monotonic() - begin
    rng = random.Random(0)
    kills = 0
    while kills < 5:
        running = start(tmp_path / "cut")
        try:
            running.wait(rng.uniform(0.05, 0.5) * took)
        except subprocess.TimeoutExpired:
            running.kill()
            kills += 1
        if running.wait(60) == 0:  # finished: begin again
            assert tree(tmp_path / "cut") == tree(tmp_path / "whole")
            shutil.rmtree(tmp_path / "cut")
    assert start(tmp_path / "cut").wait(60) == 0
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_a_full_disk_in_assembly_is_gone_on_from_behind_the_last_shard(
    tiny_raw: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ingest.assemble.MEMBERS_BYTES", 250_000)
    whole = ingest(covid(tiny_raw), config(tmp_path / "whole", shard_mb=1))
    assert len(whole.shards) > 5
    written = []

    def write_three(path: Path, *rest):
        written.append(path.name)
        if len(written) == 4:
            path.with_name(path.name + ".tmp").write_bytes(b"half a shard")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_shard(path, *rest)

    monkeypatch.setattr("ingest.assemble.write_shard", write_three)
    with pytest.raises(OSError, match="No space left"):
        ingest(covid(tiny_raw), config(tmp_path / "cut", shard_mb=1))
    damaged = next((tmp_path / "cut").rglob(f"*{written[1]}"))
    damaged.write_bytes(damaged.read_bytes()[:-512])
    first, written[:] = written[:3], ["", "", "", ""]
    ingest(covid(tiny_raw), config(tmp_path / "cut", shard_mb=1))
    assert not {first[0], first[2]} & set(written)
    assert first[1] in written
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_a_full_disk_while_encoding_is_gone_on_from(
    tiny_raw: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ingest.spool._CHUNK_IMAGES", 7)
    flushed = []

    def fill_up(path: Path, data: bytes) -> None:
        flushed.append(path)
        if len(flushed) == 5:  # both files of settings and two chunks are written
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomic(path, data)

    monkeypatch.setattr("ingest.spool.write_atomic", fill_up)
    with pytest.raises(OSError, match="No space left"):
        ingest(nih(tiny_raw), config(tmp_path))
    assert len(list(tmp_path.rglob("chunk-*.jsonl"))) == 2
    monkeypatch.undo()
    ingest(nih(tiny_raw), config(tmp_path))
    assert tree(tmp_path / "chestxray14") == tree(tiny_shards / "chestxray14")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB; the test skips where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("a small file system can be mounted by root only")
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_small_disk_ends_cleanly_and_a_larger_one_goes_on(
    tiny_raw: Path, tiny_shards: Path, small_disk: Path
):
    raw = tiny_raw / "covid-radiography"
    command = ("ingest", "covid-radiography", "--src", raw, "--out", small_disk)
    options = ("--test-per-class", 3, "--exclude", raw / "exclude.txt", "--shorter-side", 128)
    for _ in range(2):
        full = run_cli(*command, *options, "--workers", 1, "--no-progress")
        assert full.returncode == 1
        assert full.stderr.startswith("error: No space left on device")
        assert full.stderr.count("\n") == 1
    assert not list(small_disk.rglob("manifest.json"))
    remount = ["mount", "-o", "remount,size=20m", str(small_disk)]
    subprocess.run(remount, check=True)
    done = run_cli(*command, *options, "--workers", 1, "--no-progress")
    assert done.returncode == 0, done.stderr
    name = "covid-radiography"
    assert tree(small_disk / name) == tree(tiny_shards / name)


def test_a_damaged_journal_costs_the_shards_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    journal = tmp_path / "assembled.jsonl"
    for text in ("{", "[]", '{"plan": 1}', '{"name": "x"}'):
        journal.write_text(f"{text}\n")
        assert _finished(tmp_path, journal) == {}
        assert "all shards are written again" in capsys.readouterr().err
