"""Running a function over a stream of images on the machines of a Ray cluster.

The same outcomes in the same order as LocalEngine's. Ray brings batches of images to its workers
and tries those again whose worker or machine died; within a worker a LocalEngine decodes, so that
a decoder's crash costs its image alone, and is never taken for a machine's.
"""

import hashlib
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ingest.engines import (
    IMAGE_SECONDS,
    Encode,
    Job,
    LocalEngine,
    Outcome,
    batches,
    content,
    fork_server,
)
from shards.console import UserError
from shards.ray_cluster import (
    IN_FLIGHT_BYTES,
    NOT_INSTALLED,
    PER_CPU,
    TRIES,
    connect,
    prepare,
    refuse,
    wait_for,
)

_LOOK_AROUND_S = 5.0  # between two looks at how large the cluster is
# What decides an encoded image's bytes beside our own code.
_PACKAGES = ("imagecodecs", "imagehash", "kornia-rs", "numpy", "opencv-python-headless")
Versions = dict[str, str]


@dataclass(frozen=True, slots=True)
class _Batch:
    jobs: list[Job]
    ref: Any
    size: int


class RayEngine:
    """Connects to the cluster at `address` (host:port of its head), else to the one that
    RAY_ADDRESS or a `ray start` on this machine names, else starts one of `workers` processes.

    encode, seconds: as for LocalEngine.
    """

    def __init__(
        self, workers: int, encode: Encode, address: str | None, seconds: float = IMAGE_SECONDS
    ) -> None:
        """UserError when Ray is not installed, or no such cluster answers."""
        self._ray = check_ray(address)
        self._own = not self._ray.is_initialized()
        if self._own:
            connect(self._ray, workers, address)
        remote = self._ray.remote(num_cpus=1, max_retries=TRIES - 1)
        self._encode_batch = remote(encode_batch)
        self._arguments = (uuid.uuid4().hex, encode, seconds)
        self._versions = versions()
        self._cpus, self._looked = 0, -_LOOK_AROUND_S
        self._under_way: deque[_Batch] = deque()

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        for batch in self._under_way:
            with suppress(Exception):
                self._ray.cancel(batch.ref, force=True)
        if self._own:
            self._ray.shutdown()

    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Each job with its outcome, in the order of the jobs."""
        size = 0
        for batch in batches(jobs):
            data = [content(job.data) for job in batch]
            size += sum(map(len, data))
            ref = self._encode_batch.remote(*self._arguments, data)
            self._under_way.append(_Batch(batch, ref, sum(map(len, data))))
            while len(self._under_way) >= self._most() or size > IN_FLIGHT_BYTES:
                size -= self._under_way[0].size
                yield from self._collect()
        while self._under_way:
            yield from self._collect()

    def _most(self) -> int:
        """Batches that may be under way, as machines come and go."""
        if time.monotonic() - self._looked > _LOOK_AROUND_S:
            self._cpus = int(self._ray.cluster_resources().get("CPU", 0))
            self._looked = time.monotonic()
        return max(1, self._cpus) * PER_CPU

    def _collect(self) -> Iterator[tuple[Job, Outcome]]:
        batch = self._under_way[0]
        wait_for(self._ray, batch.ref)
        try:
            found, outcomes = self._ray.get(batch.ref)
        except self._ray.exceptions.RayError as error:
            refuse(error)
        _check_versions(found, self._versions)
        self._under_way.popleft()
        yield from zip(batch.jobs, outcomes)


def check_ray(address: str | None) -> Any:
    """The module ray. UserError when it is not installed, or for another kind of address."""
    prepare(address)
    try:
        import ray
    except ImportError:
        raise UserError(NOT_INSTALLED) from None
    return ray


def encode_batch(
    engine: str, encode: Encode, seconds: float, batch: list[bytes]
) -> tuple[Versions, list[Outcome]]:
    """In a Ray worker: the outcomes of some images, and what they were made with. engine: names
    the RayEngine that asks, which always gives the same `encode` and `seconds`."""
    jobs = (Job("", "", data) for data in batch)
    return versions(), [outcome for _, outcome in _local(engine, encode, seconds).map(jobs)]


_engines: dict[str, LocalEngine] = {}  # of this worker process: the one of its last task


def _local(engine: str, encode: Encode, seconds: float) -> LocalEngine:
    if engine not in _engines:
        for old in _engines.values():
            old.__exit__()
        _engines.clear()
        fork_server()
        _engines[engine] = LocalEngine(1, encode, seconds)
    return _engines[engine]


@cache
def versions() -> Versions:
    """Of what decides the bytes: this program's files, and packages."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.rglob("*.py"), *(here.parent / "shards").glob("*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    found = {"cxrstack": digest.hexdigest()[:12]}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _check_versions(there: Versions, here: Versions) -> None:
    names = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
    if names:
        differ = ", ".join(f"{n} {there.get(n)} (here {here.get(n)})" for n in names)
        raise UserError(
            f"a machine of the Ray cluster has other versions: {differ}; the same bytes need the "
            "same: give it this checkout, and run make setup there"
        )
