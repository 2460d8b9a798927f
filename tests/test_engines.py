"""ingest.engines: order, constant memory, and the crash of a decoder."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.encode import Encoded, Rejected
from ingest.engines import CRASHED, Job, LocalEngine


def fake_encode(data: bytes) -> Encoded | Rejected:
    """Stands for the decoder: crashes on `crash`, rejects `bad`."""
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"bad":
        return Rejected("bad", "")
    return Encoded(data[::-1], "png", 1, 1, "", "")


def jobs(contents: list[bytes]) -> list[Job]:
    return [Job(str(i), "", data) for i, data in enumerate(contents)]


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_come_in_the_order_of_the_jobs(workers):
    contents = [f"image {i}".encode() for i in range(50)]
    contents[7] = b"bad"
    with LocalEngine(workers, fake_encode) as engine:
        results = list(engine.map(jobs(contents)))
    assert [job.data for job, _ in results] == contents
    for job, outcome in results:
        expected = Rejected("bad", "") if job.data == b"bad" else fake_encode(job.data)
        assert outcome == expected


def test_only_the_crashing_image_is_rejected():
    contents = [f"image {i}".encode() for i in range(40)]
    contents[3] = contents[30] = b"crash"
    with LocalEngine(2, fake_encode) as engine:
        results = list(engine.map(jobs(contents)))
    assert len(results) == 40
    crashed = [job.location for job, out in results if isinstance(out, Rejected)]
    assert crashed == ["3", "30"]
    reasons = {out.reason for _, out in results if isinstance(out, Rejected)}
    assert reasons == {CRASHED}


def test_few_images_are_under_way_at_a_time():
    taken = 0

    def endless() -> Iterator[Job]:
        nonlocal taken
        for i in range(10_000):
            taken += 1
            yield Job(str(i), "", b"x")

    with LocalEngine(1, fake_encode) as engine:
        results = engine.map(endless())
        for _ in range(10):
            next(results)
        assert taken < 60
        results.close()


def test_no_jobs():
    with LocalEngine(1, fake_encode) as engine:
        assert list(engine.map([])) == []


def test_files_are_read_by_the_workers(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "crash").write_bytes(b"crash")
    paths = [tmp_path / "a", tmp_path / "none", tmp_path / "crash", tmp_path]
    given = [Job("0", "", b"xyz"), *(Job(path.name, "", path) for path in paths)]
    with LocalEngine(1, fake_encode) as engine:
        results = list(engine.map(given))
    assert [job for job, _ in results] == given
    found = [out.image if isinstance(out, Encoded) else out.reason for _, out in results]
    none, folder = "cannot be read: No such file or directory", "cannot be read: Is a directory"
    assert found == [b"zyx", b"cba", none, CRASHED, folder]
    crashed = results[3][1]
    assert isinstance(crashed, Rejected)
    assert crashed.sha256 == hashlib.sha256(b"crash").hexdigest()
