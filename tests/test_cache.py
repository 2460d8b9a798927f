"""train.cache: the on-disk store gives what was written to it, or says that it does not."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_stores import CPU, SIZE, all_images, load, wait_for_threads

from shards.console import RunFailed
from shards.manifest import FILE_NAME, load_manifest
from shards.split_reader import SplitReader
from train import ahead, cache
from train.load import Loader, load_store
from train.memory import Memory
from train.store import InputConfig


@pytest.fixture
def folder(tiny_shards: Path) -> Path:
    return tiny_shards / "covid-radiography"


def stores_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.store"))


def test_the_second_run_reads_no_shard(folder, tmp_path, monkeypatch):
    first = load(folder, cache=tmp_path)
    (path,) = stores_in(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(SplitReader, "__init__", lambda *_: pytest.fail("a shard is opened"))
    again = load(folder, cache=tmp_path)
    assert torch.equal(again.images, first.images)
    assert torch.equal(all_images(load(folder, store="disk", cache=tmp_path)), first.images)


HEADER = (b'"bytes"', b'"labels"', b'"labels": 3', b'"tail_sha256"', b'"count"', b'"key"')


@pytest.mark.parametrize("word", HEADER)
def test_any_bit_of_the_header_counts(folder, tmp_path, capsys, word):
    first = load(folder, cache=tmp_path)
    (path,) = stores_in(tmp_path)
    whole = path.read_bytes()
    at = whole.index(word) + len(word) - 2 + word.endswith(b"3")  # a letter, or the number: 3 -> 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    again = load(folder, cache=tmp_path)
    assert "its header is damaged; it is written again" in capsys.readouterr().err
    assert np.array_equal(again.labels, first.labels)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", ["cut", "image", "labels", "header", "empty"])
def test_a_store_that_changed_is_written_again(folder, tmp_path, capsys, change):
    first = load(folder, cache=tmp_path)
    (path,) = stores_in(tmp_path)
    whole = path.read_bytes()
    place = {"image": 4096 + 20_000, "labels": len(whole) - 2, "header": 3}.get(change, 0)
    if change in ("cut", "empty"):
        path.write_bytes(whole[:-1] if change == "cut" else b"")
    else:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    again = load(folder, cache=tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: ")
    assert line.endswith("; it is written again")
    assert torch.equal(again.images, first.images)
    assert again.keys == first.keys
    assert np.array_equal(again.labels, first.labels)
    assert path.read_bytes() == whole


def test_a_store_that_changes_under_the_run_ends_it(folder, tmp_path):
    store = load(folder, store="disk", cache=tmp_path)
    (path,) = stores_in(tmp_path)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"\x55" * 99, 4096)
    with pytest.raises(RunFailed, match=f"{path}: image {store.keys[0]} has changed"):
        all_images(store)
    with path.open("r+b") as file:
        file.truncate(4096 + SIZE * SIZE)
    with pytest.raises(RunFailed, match=f"{path}: image {store.keys[1]} has changed"):
        store.take(np.array([1]))


def test_another_size_split_or_manifest_is_another_store(folder, tmp_path, tiny_shards):
    load(folder, cache=tmp_path)
    load(tiny_shards / "chestxray14", cache=tmp_path)
    config, manifest = InputConfig("torch", 2, cache=tmp_path), load_manifest(folder)
    for split, size in (("train", 32), ("val", SIZE)):
        load_store(folder, manifest, split, size=size, config=config, device=CPU, shown=False)
    assert len(stores_in(tmp_path)) == 4


def test_all_that_decides_a_pixel_names_the_store(folder, tmp_path, monkeypatch):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    own = Path(shutil.copytree(folder, tmp_path / folder.name))
    memory = Memory(host=1 << 40, device=1 << 40)
    monkeypatch.setattr("train.load.free_memory", lambda device: memory)

    def name(backend: str = "torch", device: str = "cpu") -> str:
        config, manifest = InputConfig(backend), load_manifest(own)  # type: ignore[arg-type]
        where = torch.device(device)
        return Loader(own, manifest, ("train",), SIZE, config, where, None)._key("train").file_name

    names = [name(), name("dali"), name("dali", "cuda")]
    assert name("torch", "cuda") == names[0]  # its threads decode on the CPU
    path = own / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b'"settings"', b' "settings"', 1))
    names.append(name())
    monkeypatch.setattr(cache.StoreKey.__init__, "__defaults__", (cache.VERSION + 1, 1))
    names.append(name())
    assert len(set(names)) == 5


def test_a_disk_that_hangs_is_given_up(folder, tmp_path, monkeypatch):
    store, release = load(folder, store="disk", cache=tmp_path), threading.Event()
    monkeypatch.setattr(ahead, "LIMIT_S", 0.3)
    monkeypatch.setattr(cache.os, "preadv", lambda *_: release.wait(20))
    with pytest.raises(
        RunFailed, match=r"reading .*\.store took over 0 s, which looks like a hang"
    ):
        all_images(store)
    release.set()


@pytest.mark.parametrize("when", ["before", "while writing"])
@pytest.mark.parametrize("store", ["auto", "disk"])
def test_a_full_disk_is_said_aloud(folder, tmp_path, monkeypatch, capsys, when, store):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, "posix_fallocate" if when == "before" else "pwrite", full)
    monkeypatch.setattr("train.decoding.CHUNK", 1)  # more chunks than are made ahead
    loaded = load(folder, store=store, cache=tmp_path)
    assert torch.equal(all_images(loaded), load(folder).images)
    err = capsys.readouterr().err
    assert "cannot be written (No space left on device); going on without it" in err
    assert list(tmp_path.iterdir()) == []
    loaded.close()
    wait_for_threads("ahead")
    wait_for_threads("decode")


def test_two_runs_do_not_write_the_same_store(folder, tmp_path, capsys):
    manifest = load_manifest(folder)
    load(folder, cache=tmp_path)
    (path,) = stores_in(tmp_path)
    path.unlink()
    code = "import fcntl, sys, time\nfile = open(sys.argv[1], 'w')\n"
    code += "fcntl.flock(file, fcntl.LOCK_EX)\nprint('locked', flush=True)\ntime.sleep(60)"
    draft = f"{path}.tmp"
    with subprocess.Popen([sys.executable, "-c", code, draft], stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        assert len(load(folder, cache=tmp_path)) == manifest.splits["train"].samples
        assert "another run is writing it" in capsys.readouterr().err
        other.kill()
    load(folder, cache=tmp_path)  # what the killed one left is no obstacle
    assert stores_in(tmp_path) == [path]
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_that_another_run_finishes_meanwhile_is_left_alone(
    folder, tmp_path, monkeypatch, capsys
):
    first = load(folder, cache=tmp_path)
    (path,) = stores_in(tmp_path)
    whole, draft = path.read_bytes(), path.with_name(path.name + ".tmp")
    path.replace(draft)  # as the other run has it before its last act
    flock = cache.fcntl.flock

    def finish_then_lock(file, how):
        draft.replace(path)
        flock(file, how)

    monkeypatch.setattr(cache.fcntl, "flock", finish_then_lock)
    assert torch.equal(load(folder, cache=tmp_path).images, first.images)
    assert "another run is writing it" in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_what_it_says(folder, tmp_path):
    store = load(folder, cache=tmp_path)
    (path,) = stores_in(tmp_path)
    images, tail = np.split(np.fromfile(path, np.uint8)[4096:], [store.images.numel()])
    assert images.tobytes() == store.images.numpy().tobytes()
    assert tail[:32].tobytes() == hashlib.sha256(images[: SIZE * SIZE]).digest()
    assert tail.tobytes().endswith("\n".join(store.keys).encode())
