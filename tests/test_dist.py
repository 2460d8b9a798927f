"""train.dist and train.step: a world of one, and two processes that end as one does."""

import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import train.dist
from shards.console import RunFailed
from shards.order import rank_slice
from train.augment import EIGHT, Augment, Expansion
from train.dist import World, is_lost_peer, name_start, why_no_exchange
from train.expand import Expander
from train.precision import Precision
from train.step import Stepper
from train.store import Store

SIZE = 32
TOTAL = 11  # odd, so that ranks have unequal shares


def test_a_world_of_one_changes_nothing():
    world, model = World("cpu"), nn.BatchNorm2d(3)
    rows = torch.arange(12.0).reshape(4, 3)
    assert world.is_first
    assert world.sum([1.5, 2.0]) == [1.5, 2.0]
    assert world.max(3.0) == 3.0
    assert world.wrap(model) is model
    assert torch.equal(world.gather_rows(rows, 4), rows)
    model.running_mean = torch.tensor([1.0, 2.0, 3.0])
    world.average_buffers(model)
    assert model.running_mean.tolist() == [1, 2, 3]
    world.barrier()
    world.close()


def test_sync_norm_is_torchs_under_the_same_names():
    world, plain = World("cpu"), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    kept = {name: value.clone() for name, value in plain.state_dict().items()}
    assert world.sync_norm(plain, True) is plain  # of one process
    world.size = 2
    assert world.sync_norm(plain, False) is plain
    synced = world.sync_norm(plain, True)
    assert isinstance(synced[1], nn.SyncBatchNorm)
    assert synced.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in synced.state_dict().items())


@pytest.mark.parametrize(("device", "said"), [("cpu", None), ("cuda:1", [1])])
def test_a_rank_meets_the_others_on_its_own_gpu_and_waits_for_none_when_it_fails(
    monkeypatch, device, said
):
    met, left = [], []
    monkeypatch.setattr(dist, "barrier", lambda device_ids: met.append(device_ids))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(device))
    world = World("cpu")
    world.size, world.device = 2, torch.device(device)
    world.barrier()
    assert met == [said]
    world.close(failed=True)
    assert left == ([device] if device == "cpu" else [])  # gloo's waits for nobody
    left.clear()
    world.close()
    assert left == [device]


NCCL = "NCCL error in: /pytorch/NCCLUtils.cpp:94, {}, NCCL version 2.30.7\n{}: ...\nLast error:\n{}"
SEGMENT = "Error while creating shared memory segment /dev/shm/nccl-1YsMbG (size 9637888)"
TWICE = "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 86000"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            NCCL.format("unhandled system error", "ncclSystemError", SEGMENT),
            rf"NCCL cannot .*\({re.escape(SEGMENT)}\); give .*more shared memory.*--shm-size=1g",
        ),
        (
            NCCL.format("invalid usage", "ncclInvalidUsage", TWICE),
            rf"NCCL cannot .*\({TWICE}\); NCCL_DEBUG=INFO tells more",
        ),
        (
            NCCL.format("invalid usage", "ncclInvalidUsage", ""),
            r"NCCL cannot .*\(NCCL error in: .* ncclInvalidUsage: \.\.\. Last error:\); NCCL_DEBUG",
        ),
        (
            NCCL.format("remote process exited", "ncclRemoteError", "peer closed connection"),
            "another process of this run has ended",
        ),
        ("wait timeout after 600000ms, keys: /default_pg/0//cuda//nccl", "another process of this"),
    ],
    ids=["shared memory", "MIG", "nothing said", "remote", "store"],
)
def test_what_nccl_lacks_here_is_not_laid_on_another_process(said, line):
    error = dist.DistBackendError(said)
    assert is_lost_peer(error)
    assert re.match(line, why_no_exchange(error))


def toy_store() -> Store:
    """11 images with two labels, some of them unknown, so that ranks' counts of labels differ."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (TOTAL, SIZE, SIZE), np.uint8))
    labels = rng.integers(-1, 2, (TOTAL, 2)).astype(np.int8)
    return Store(tuple(f"k{i}" for i in range(TOTAL)), images, labels)


def train_toy(world: World) -> tuple[nn.Module, list[float]]:
    """Four steps of five source images, up to 8 copies each; no batch norm. Losses of all ranks."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2)]
    model = nn.Sequential(*layers)
    stepper = Stepper(
        model=world.wrap(model),
        optim=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
        store=toy_store(),
        expander=Expander({0: EIGHT, 1: Expansion(translations=3)}, Augment(mirror=0.5), 0, SIZE),
        precision=Precision("fp32", world.device),
        world=world,
        micro_batch=6,
    )
    losses = []
    for step in range(4):
        loss, known, _ = stepper.accumulate((np.arange(5) + 5 * step) % TOTAL, epoch=step)
        losses.append(world.sum([loss])[0] / known)
        stepper.update()
    return model, losses


def of_rank(rank: int) -> torch.Tensor:
    """This rank's share of the rows 0, 10, 20, ... (each a pair)."""
    share = rank_slice(np.arange(TOTAL), rank, 2)
    return torch.tensor([[10.0 * i, i] for i in share])


def statistics_kept(world: World, rank: int) -> list[float]:
    """This rank's batch norm statistics after they were gathered, lost and loaded; then what a
    checkpoint of another number of ranks leaves."""
    norm = nn.BatchNorm2d(1)
    assert norm.running_mean is not None
    norm.running_mean += rank + 1
    saved = world.gather_buffers(norm)
    norm.running_mean.zero_()
    world.load_buffers(norm, saved)
    found = norm.running_mean.item()
    three = {f"{n}.running_mean": torch.full((1,), n + 6.0) for n in range(3)}
    world.load_buffers(norm, three | {f"{n}.running_var": torch.ones(1) for n in range(3)})
    return [found, norm.running_mean.item(), float(len(saved))]


def on_each_rank(rank: int, port: int, folder: str) -> None:
    """What each of two processes does; what it saw is saved for the test."""
    torch.set_num_threads(1)
    environment = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in environment.items()})
    world, norm = World("cpu"), nn.BatchNorm2d(1)
    assert norm.running_mean is not None
    norm.running_mean += rank + 1
    world.average_buffers(norm)
    model, losses = train_toy(world)
    world.check_same(model)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    if rank == 1:  # one bit of one weight
        with torch.no_grad():
            next(model.parameters()).view(torch.int32)[0, 0, 0, 0] ^= 1
    with pytest.raises(RunFailed) as diverged:
        world.check_same(model)
    seen = {
        "diverged": str(diverged.value),
        "statistics": statistics_kept(world, rank),
        "is_first": world.is_first,
        "sum": world.sum([rank + 1.0, 0.5]),
        "max": world.max(float(rank)),
        "rows": world.gather_rows(of_rank(rank), TOTAL),
        "one_row": world.gather_rows(torch.ones(1 - rank, 2), 1),
        "mean": norm.running_mean,
        "counter": norm.num_batches_tracked,
        "losses": losses,
        "weights": trained,
    }
    torch.save(seen, Path(folder) / f"{rank}.pt")
    world.barrier()
    world.close()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(on_each_rank, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_exchange(two_ranks):
    assert [seen["is_first"] for seen in two_ranks] == [True, False]
    for seen in two_ranks:
        assert seen["sum"] == [3.0, 1.0]
        assert seen["max"] == 1.0
        assert seen["rows"].tolist() == [[10.0 * i, i] for i in range(TOTAL)]
        assert seen["one_row"].tolist() == [[1.0, 1.0]]
        assert seen["mean"].tolist() == [1.5]
        assert seen["counter"].item() == 0


def test_ranks_that_differ_in_one_bit_are_named_on_each(two_ranks):
    for seen in two_ranks:
        assert seen["diverged"].startswith("the processes have diverged: the weights of rank 1 are")


def test_each_rank_gets_its_own_statistics_again(two_ranks):
    assert [seen["statistics"] for seen in two_ranks] == [[1.0, 7.0, 4.0], [2.0, 7.0, 4.0]]


def test_two_ranks_end_in_the_weights_of_one(two_ranks):
    model, losses = train_toy(World("cpu"))
    for seen in two_ranks:
        np.testing.assert_allclose(seen["losses"], losses, rtol=1e-5)
        for name, value in model.state_dict().items():
            assert (seen["weights"][name] - value).abs().max() <= 1e-6, name
    for name, value in two_ranks[0]["weights"].items():
        assert torch.equal(value, two_ranks[1]["weights"][name])


def start(rank: int, port: int, restart: int, late_s: float) -> None:
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(restart)}
    os.environ |= agent | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    if rank == 0:
        time.sleep(late_s)  # longer than gloo tries the addresses that it finds (about 2 s)
    world = World("cpu")
    assert world.sum([1.0]) == [2.0]
    world.close()


def start_counted(rank: int, port: int) -> None:
    train.dist.TIMEOUT = timedelta(seconds=30)
    start(rank, port, 1 - rank, 0.0)


def test_nodes_that_count_their_restarts_differently_meet():
    """A revived rank's node has counted a restart, the other has not."""
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(start_counted, args=(agent.port,), nprocs=2)


def client(port: int) -> dist.Store:
    return dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=5))


def test_what_a_dead_start_has_left_names_no_other(monkeypatch):
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr("train.dist.TIMEOUT", timedelta(seconds=0.3))
    with pytest.raises(RuntimeError):  # this rank dies without an answer
        name_start(client(agent.port), 1, 3)
    with pytest.raises(RuntimeError, match="rank 1, 2 did not come"):
        name_start(client(agent.port), 0, 3)
    monkeypatch.setattr("train.dist.TIMEOUT", timedelta(seconds=5))
    names = []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(2):
            ranks = [pool.submit(name_start, client(agent.port), rank, 3) for rank in (2, 1, 0)]
            names.append({future.result() for future in ranks})
    assert [len(name) for name in names] == [1, 1]
    assert names[0] != names[1]


@pytest.mark.soak
def test_revived_ranks_do_not_meet_the_addresses_of_the_dead():
    """torchrun's agent keeps one store: the second start must not read the first one's keys."""
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for restart, late_s in enumerate((0.0, 6.0)):
        mp.spawn(start, args=(agent.port, restart, late_s), nprocs=2)
    assert agent.num_keys() > 2


def test_processes_that_do_not_come_are_one_line(monkeypatch):
    free = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in free.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("train.dist.TIMEOUT", timedelta(seconds=1))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunFailed, match="the processes of this run did not find one another"):
        World("cpu")
    assert signal.getsignal(signal.SIGTERM) == before
