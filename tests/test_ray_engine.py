"""ingest.ray_engine: the same outcomes as LocalEngine's, whatever dies, and the lines for users."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ingest_runs import config, nih, run_cli, tree

from ingest import ray_engine
from ingest.encode import EncodeConfig, Encoded, Rejected, encode_image
from ingest.engines import CRASHED, Job, LocalEngine
from ingest.ray_engine import RayEngine, versions
from ingest.run import ingest
from ingest.spool import Spool
from shards import ray_cluster
from shards.console import RunFailed, UserError


def fake_encode(data: bytes) -> Encoded | Rejected:
    """Stands for the decoder: crashes on `crash`, never ends on `hang`, rejects `bad`."""
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hang":
        time.sleep(3600)
    if data == b"bad":
        return Rejected("bad", "")
    return Encoded(data[::-1], "png", 1, 1, "", "")


def slow_encode(data: bytes, config: EncodeConfig) -> Encoded | Rejected:
    time.sleep(0.1)
    return encode_image(data, config)


def jobs(contents: list[bytes]) -> list[Job]:
    return [Job(str(i), "", data) for i, data in enumerate(contents)]


def test_without_ray_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install '\.\[ray\]'"):
        RayEngine(1, fake_encode, None)


def test_ray_reports_nothing_about_its_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    ray_engine.check_ray(None)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


class OfRay(Exception):
    """Stands for ray.exceptions.RayError."""


@pytest.mark.parametrize("failure", [ConnectionError, RuntimeError, OfRay])
def test_a_cluster_that_wants_a_token_is_one_line(monkeypatch: pytest.MonkeyPatch, failure):
    """Ray joins one by its address without, and says InvalidAuthToken in its log alone."""

    def init(address: str, **options: Any) -> None:
        raise failure("no token")

    monkeypatch.setattr(ray_cluster, "_knock", lambda address: None)
    ray = SimpleNamespace(init=init, exceptions=SimpleNamespace(RayError=OfRay))
    with pytest.raises(UserError, match=r"no Ray cluster at head:6379 .*RAY_AUTH_MODE=token"):
        ray_cluster.connect(ray, 1, "head:6379")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ray-address", "head:6379"), "--ray-address head:6379 needs --engine ray"),
        (("--engine", "ray", "--ray-address", "ray://head:10001"), "allowed: host:port"),
        (("--engine", "ray", "--ray-address", "127.0.0.1:9"), "no Ray cluster at 127.0.0.1:9"),
    ],
)
def test_addresses_that_cannot_be(tiny_raw: Path, tmp_path: Path, options: tuple, message: str):
    source = ("ingest", "chestxray14", "--src", tiny_raw / "chestxray14", "--out", tmp_path / "o")
    done = run_cli(*source, "--no-progress", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_another_version_on_a_machine_is_refused():
    here = versions()
    assert {"numpy", "imagecodecs"} <= here.keys()
    ray_engine._check_versions(dict(here), here)
    with pytest.raises(UserError, match=r"other versions: numpy 1\.0 \(here .*make setup"):
        ray_engine._check_versions({**here, "numpy": "1.0"}, here)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster on this machine: a head that runs nothing, and a machine with two CPUs. The
    last test kills that one."""
    ray_engine.check_ray(None)
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where its workers find fake_encode
    head = {"num_cpus": 0, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, object_store_memory=2**27)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
    os.environ.pop("PYTHONPATH")
    os.environ.update({} if path is None else {"PYTHONPATH": path})


@pytest.mark.soak
def test_only_the_images_that_crash_or_hang_are_rejected(cluster: Any):
    contents = [f"image {i}".encode() for i in range(20)]
    contents[3] = contents[18] = b"crash"
    contents[11], contents[17] = b"hang", b"bad"
    with LocalEngine(1, fake_encode, seconds=1) as local:
        expected = list(local.map(jobs(contents)))
    with RayEngine(1, fake_encode, cluster.address, seconds=1) as engine:
        found = list(engine.map(jobs(contents)))
    assert found == expected
    crashed = [job.location for job, out in found if out == Rejected(CRASHED, out.sha256)]
    assert crashed == ["3", "11", "18"]


@pytest.mark.soak
def test_few_images_are_under_way_at_a_time(cluster: Any):
    taken = 0

    def endless() -> Iterator[Job]:
        nonlocal taken
        for i in range(10_000):
            taken += 1
            yield Job(str(i), "", b"x")

    with RayEngine(1, fake_encode, cluster.address) as engine:
        results = engine.map(endless())
        for _ in range(10):
            next(results)
        assert taken <= 16 * 2 * 2 + 16  # batches of 16, two of them for each of 2 CPUs
        results.close()


@pytest.mark.soak
def test_a_cluster_that_is_gone_stops_the_run_in_one_line(cluster: Any):
    with RayEngine(1, fake_encode, cluster.address) as engine:
        engine._encode_batch = engine._encode_batch.options(resources={"none": 1})
        engine._ray = _Gone(engine._ray)
        with pytest.raises(RunFailed, match="no machine of the Ray cluster is left"):
            list(engine.map(jobs([b"x"])))


class _Gone:
    """Ray after the last machine but the head went."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ray, name)

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return self.ray.wait(refs, timeout=0.1)

    def cluster_resources(self) -> dict[str, float]:
        return {}


@pytest.mark.soak
def test_a_machine_dies_in_the_middle_and_the_bytes_are_the_same(
    cluster: Any, tiny_raw: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (victim,) = cluster.worker_nodes
    (raylet,) = victim.all_processes["raylet"]
    add, added = Spool.add, []

    def add_and_kill(self: Spool, location: str, *rest: Any) -> None:
        add(self, location, *rest)
        added.append(location)
        if len(added) == 8:
            workers = psutil.Process(raylet.process.pid).children(recursive=True)
            for pid in (raylet.process.pid, *(worker.pid for worker in workers)):
                os.kill(pid, signal.SIGKILL)  # as a power cut: all that is under way is lost
            cluster.add_node(num_cpus=2, object_store_memory=2**27)

    monkeypatch.setattr("ingest.engines._BATCH_IMAGES", 2)
    monkeypatch.setattr("ingest.passes.encode_image", slow_encode)
    monkeypatch.setattr(Spool, "add", add_and_kill)
    options = {"engine": "ray", "ray_address": cluster.address}
    ingest(nih(tiny_raw), config(tmp_path, **options))
    assert len(added) == 48
    assert raylet.process.poll() is not None
    assert tree(tmp_path / "chestxray14") == tree(tiny_shards / "chestxray14")
