"""train.load: the same images from every place, one decoding per machine, faults said aloud."""

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
import psutil
import pytest
import torch
from ingest_runs import ROOT
from tiny_stores import CPU, SIZE, all_images, load, wait_for_threads

from shards.console import RunFailed
from shards.manifest import load_manifest, shard_path
from shards.order import epoch_order
from shards.split_reader import SplitReader
from train import ahead
from train.augment import EIGHT, NONE
from train.batch import micro_batches
from train.expand import Expander
from train.load import load_store
from train.store import InputConfig

COVID = "covid-radiography"


@pytest.fixture
def folder(tiny_shards: Path) -> Path:
    return tiny_shards / COVID


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


# Loads and streams where torch may use four threads; says how many it has before and behind.
THREADS = """
import os, sys, time
from pathlib import Path
import numpy as np
import torch
from tiny_stores import load

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(4)
before = threads()
for place in ("host", "stream"):
    store = load(Path(sys.argv[1]), store=place)
    if place == "stream":
        store.take(np.arange(len(store)))
    store.close()
    end = time.monotonic() + 10
    while threads() > before and time.monotonic() < end:  # OpenMP's would stay
        time.sleep(0.02)
    print(place, threads() - before)
"""


def test_openmp_has_no_part_in_it(folder):
    """Its threads would be in the way of those that decode, by a core where they wait in a loop."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "4", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.splitlines() == ["host 0", "stream 0"], done.stderr


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


def start(
    processes: int, folder: Path, store: str, cache: str = "", wait: str = ""
) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), processes)
    common = {**sizes, "MASTER_ADDR": "127.0.0.1"}
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
        for rank in range(processes)
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


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_processes_share_the_decoding(folder, processes):
    splits = load_manifest(folder).splits
    results = results_of(start(processes, folder, "auto"))
    counts = [count for count, _ in results]
    assert sum(counts) == splits["train"].samples + splits["val"].samples
    assert max(counts) - min(counts) <= 2  # its part of each of two splits
    assert {digest for _, digest in results} == {expected_digest(folder)}


@pytest.mark.soak
def test_two_processes_write_one_store(folder, tmp_path):
    for store in ("disk", "auto"):
        (first, one), (second, other) = results_of(start(2, folder, store, str(tmp_path)))
        assert (first > 0) == (second > 0) == (store == "disk")  # then it is there
        assert one == other == expected_digest(folder)
    assert len(list(tmp_path.iterdir())) == 2
    results = results_of(start(2, folder, "stream"))
    assert {digest for _, digest in results} == {expected_digest(folder)}
    assert {count for count, _ in results} == {0}


@pytest.mark.soak
def test_killed_processes_leave_nothing_behind(folder):
    for _ in range(2):  # the second is the restart
        processes = start(2, folder, "auto", wait="1")
        for process in processes:
            assert process.stdout
            assert process.stdout.readline().split()
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            files = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            assert "memfd:cxrstack" in maps  # memory without a name, which ends with the process
            assert "/dev/shm/" not in maps + " ".join(files)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate(timeout=30)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("place", "backend"),
    [("host", "torch"), ("stream", "torch"), ("disk", "torch"), ("stream", "dali")],
)
def test_memory_is_constant_over_20_epochs(folder, tmp_path, place, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    settings = {"cache": tmp_path} if place == "disk" else {}
    store = load(folder, backend, store=place, **settings)
    expander = Expander({0: EIGHT}, NONE, seed=3, size=SIZE)
    used = []
    for epoch in range(20):
        order = epoch_order(len(store), seed=0, epoch=epoch)
        batches = [np.sort(order[at : at + 4]) for at in range(0, len(order), 4)]
        store.expect(np.concatenate(batches))
        for batch in batches:
            for _ in micro_batches(store, expander.copies(store, batch, epoch), 16):
                pass
        used.append(psutil.Process().memory_info().rss)
    # DALI's threads are new in every epoch, and each keeps some memory of its own at first.
    assert used[-1] - used[9 if backend == "dali" else 4] < 5_000_000
    store.close()
