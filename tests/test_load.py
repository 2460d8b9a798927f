"""train.load: the same images from every place, one decoding per machine, faults said aloud."""

import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ingest_runs import ROOT

from shards.console import RunFailed
from shards.manifest import load_manifest, shard_path
from shards.order import epoch_order
from shards.split_reader import SplitReader
from train import ahead, cache
from train.augment import EIGHT, NONE
from train.batch import micro_batches
from train.expand import Expander
from train.load import load_store
from train.memory import resident_bytes
from train.store import InputConfig, Store

SIZE = 48
CPU = torch.device("cpu")
COVID = "covid-radiography"


@pytest.fixture
def folder(tiny_shards: Path) -> Path:
    return tiny_shards / COVID


def load(folder: Path, backend: str = "torch", **settings) -> Store:
    config = InputConfig(backend=backend, threads=2, **settings)  # type: ignore[arg-type]
    manifest = load_manifest(folder)
    return load_store(folder, manifest, "train", size=SIZE, config=config, device=CPU, shown=False)


def all_images(store: Store) -> torch.Tensor:
    return store.take(np.arange(len(store))).images


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_every_place_gives_the_same_batches(folder, tmp_path, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    resident = load(folder, backend, store="host")
    places = {
        "stream": load(folder, backend, store="stream"),
        "disk": load(folder, backend, store="disk", cache=tmp_path),
        "from the file": load(folder, backend, store="host", cache=tmp_path),
    }
    expander = Expander({0: EIGHT}, NONE, seed=3, size=SIZE)
    for name, store in places.items():
        assert store.keys == resident.keys, name
        assert np.array_equal(store.labels, resident.labels), name
        for epoch in range(2):
            order = epoch_order(len(store), seed=0, epoch=epoch)
            batches = [np.sort(order[at : at + 5]) for at in range(0, len(order), 5)]
            store.expect(np.concatenate(batches))
            for batch in batches:
                copies = expander.copies(resident, batch, epoch)
                ours = [(p.images.clone(), p.labels) for p in micro_batches(store, copies, 16)]
                theirs = micro_batches(resident, copies, 16)
                for (images, labels), part in zip(ours, theirs, strict=True):
                    assert torch.equal(images, part.images), name
                    assert torch.equal(labels, part.labels), name
        store.close()


def test_a_stream_gives_what_it_did_not_expect(folder):
    images, store = all_images(load(folder)), load(folder, store="stream")
    store.expect(np.arange(10))
    for positions in ([0, 1, 2], [7, 5], [5], [3, 4, 9]):
        assert torch.equal(store.take(np.array(positions)).images, images[positions])
    store.close()


def test_a_stream_holds_a_few_chunks_only(folder, monkeypatch):
    store, reads = load(folder, store="stream"), []
    read = SplitReader.read
    monkeypatch.setattr(SplitReader, "read", lambda self, i: reads.append(i) or read(self, i))
    monkeypatch.setattr("train.stream.CHUNK", 2)
    store.expect(np.tile(np.arange(len(store)), 20))
    store.take(np.arange(2))
    time.sleep(0.3)
    # 2 taken; ahead: 3 chunks in the queue, 1 in hand, 2 threads + 1 + 1 pending.
    assert len(reads) <= 2 + 2 * (3 + 1 + 4)
    store.close()
    wait_for_threads("ahead")


def test_a_stream_gives_its_shards_back(folder):
    def opened() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(os.path.realpath(link).endswith(".tar") for link in links)

    before, store = opened(), load(folder, store="stream")
    all_images(store)
    assert opened() > before
    store.close()
    assert opened() == before


def wait_for_threads(name: str) -> None:
    end = time.monotonic() + 10
    while any(thread.name == name for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_shard_that_changes_ends_the_stream(folder, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / COVID))
    store = load(own, store="stream")
    path = shard_path(own, load_manifest(own).of_split("train")[0])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(RunFailed, match="has changed under the run"):
        all_images(store)


@pytest.mark.parametrize("store", ["host", "stream"])
def test_a_decoder_that_hangs_is_given_up(folder, monkeypatch, store):
    monkeypatch.setattr(ahead, "LIMIT_S", 0.3)
    release = threading.Event()
    monkeypatch.setattr("train.input_torch.decode_grey", lambda data: release.wait(20))
    with pytest.raises(RunFailed, match=r"decoding images of .* took over 0 s, which looks like"):
        all_images(load(folder, store=store))
    release.set()


def test_a_disk_that_hangs_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(ahead, "LIMIT_S", 0.3)
    release = threading.Event()
    monkeypatch.setattr(SplitReader, "scan", lambda self, number: release.wait(20))
    with pytest.raises(RunFailed, match=r"reading .* took over"):
        load(folder, store="stream")
    release.set()


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


# What each process of a run does: loads, says what it saw, and waits to be ended.
PROCESS = """
import hashlib, os, sys, time
from pathlib import Path
import numpy as np, torch
from shards.manifest import load_manifest
from shards.split_reader import SplitReader
from train.dist import World
from train.load import load_stores
from train.store import InputConfig
torch.set_num_threads(1)
folder, store, cache, wait = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
read, reads = SplitReader.read, []
SplitReader.read = lambda self, i: reads.append(i) or read(self, i)
world = World("cpu")
config = InputConfig("torch", 1, store, Path(cache) if cache else None)
stores = load_stores(
    folder, load_manifest(folder), ("train", "val"), size=48, config=config, world=world
)
count = len(reads)
digest = hashlib.sha256()
for split in stores.values():
    digest.update(split.take(np.arange(len(split))).images.numpy().tobytes())
    digest.update(split.labels.tobytes() + "".join(split.keys).encode())
print(count, digest.hexdigest(), flush=True)
if wait:
    time.sleep(100)
world.barrier()
world.close()
"""


def start_two(folder: Path, store: str, cache: str = "", wait: str = "") -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(folder), store, cache, wait],
            cwd=ROOT,
            env=os.environ
            | {k: str(v) for k, v in common.items()}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def results_of(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """(images decoded while loading, hash of all images, labels and keys) of each."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        count, digest = out.split()
        found.append((int(count), digest))
    return found


def expected_digest(folder: Path) -> str:
    digest, manifest = hashlib.sha256(), load_manifest(folder)
    for split in ("train", "val"):
        config = InputConfig("torch", 2)
        store = load_store(
            folder, manifest, split, size=SIZE, config=config, device=CPU, shown=False
        )
        digest.update(store.images.numpy().tobytes())
        digest.update(store.labels.tobytes() + "".join(store.keys).encode())
    return digest.hexdigest()


def test_two_processes_share_the_decoding(folder):
    splits = load_manifest(folder).splits
    (first, one), (second, other) = results_of(start_two(folder, "auto"))
    assert first + second == splits["train"].samples + splits["val"].samples
    assert abs(first - second) <= 2  # the half of each of two splits
    assert one == other == expected_digest(folder)


@pytest.mark.soak
def test_two_processes_write_one_store(folder, tmp_path):
    for store in ("disk", "auto"):
        (first, one), (second, other) = results_of(start_two(folder, store, str(tmp_path)))
        assert (first > 0) == (second > 0) == (store == "disk")  # then it is there
        assert one == other == expected_digest(folder)
    assert len(list(tmp_path.iterdir())) == 2
    results = results_of(start_two(folder, "stream"))
    assert {digest for _, digest in results} == {expected_digest(folder)}
    assert {count for count, _ in results} == {0}


@pytest.mark.soak
def test_killed_processes_leave_nothing_behind(folder):
    before = sorted(os.listdir("/dev/shm"))
    for _ in range(2):  # the second is the restart
        processes = start_two(folder, "auto", wait="1")
        for process in processes:
            assert process.stdout
            assert process.stdout.readline().split()
        maps = Path(f"/proc/{processes[1].pid}/maps").read_text()
        assert "memfd:cxrstack" in maps
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate(timeout=30)
        assert sorted(os.listdir("/dev/shm")) == before


@pytest.mark.soak
@pytest.mark.parametrize("place", ["host", "stream", "disk"])
def test_memory_is_constant_over_20_epochs(folder, tmp_path, place):
    settings = {"cache": tmp_path} if place == "disk" else {}
    store = load(folder, store=place, **settings)
    expander = Expander({0: EIGHT}, NONE, seed=3, size=SIZE)
    used = []
    for epoch in range(20):
        order = epoch_order(len(store), seed=0, epoch=epoch)
        batches = [np.sort(order[at : at + 4]) for at in range(0, len(order), 4)]
        store.expect(np.concatenate(batches))
        for batch in batches:
            for _ in micro_batches(store, expander.copies(store, batch, epoch), 16):
                pass
        used.append(resident_bytes())
    assert used[-1] - used[4] < 5_000_000
    store.close()
