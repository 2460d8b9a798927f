"""ingest.engines: order, constant memory, and the crash of a decoder."""

import hashlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.encode import Encoded, Rejected
from ingest.engines import CRASHED, Job, LocalEngine, batches

MB = 2**20


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
    contents = [f"image {i}".encode() for i in range(80)]
    contents[3] = contents[70] = b"crash"
    with LocalEngine(2, fake_encode) as engine:
        results = list(engine.map(jobs(contents)))
    assert len(results) == 80
    crashed = [job.location for job, out in results if isinstance(out, Rejected)]
    assert crashed == ["3", "70"]
    reasons = {out.reason for _, out in results if isinstance(out, Rejected)}
    assert reasons == {CRASHED}


@given(st.lists(st.tuples(st.integers(1, 6 * MB), st.booleans()), max_size=60))
def test_a_batch_has_few_images_and_few_bytes(contents):
    # A file that is only named counts as its bytes do; zeros take no memory, nor any disk.
    with tempfile.TemporaryDirectory() as folder:
        given = [Job(str(i), "", _data(Path(folder, str(i)), *c)) for i, c in enumerate(contents)]
        found = list(batches(given))
        sizes = [[contents[int(job.location)][0] for job in batch] for batch in found]
    assert [job for batch in found for job in batch] == given
    for batch in sizes:
        assert 1 <= len(batch) <= 16
        assert sum(batch[:-1]) < 8 * MB
    for batch in sizes[:-1]:
        assert len(batch) == 16 or sum(batch) >= 8 * MB


def _data(path: Path, size: int, named: bool) -> bytes | Path:
    if not named:
        return bytes(size)
    path.touch()
    os.truncate(path, size)
    return path


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
