"""shards.writer and shards.reader: what is written comes back, byte for byte and every time."""

import errno
import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.console import RunFailed
from shards.index import format_index, index_tar
from shards.manifest import load_manifest
from shards.reader import (
    member,
    read_index,
    read_labels,
    read_meta,
    read_shard,
    read_split,
)
from shards.sample import Sample, SampleMeta
from shards.writer import write_atomic, write_shard


def sample(number: int) -> Sample:
    rng = np.random.default_rng(number)
    meta = SampleMeta("set", f"{number}.png", "0" * 64, 10, 20, patient=f"set:{number // 2}")
    return Sample(
        key=f"s{number:03d}",
        image=rng.bytes(int(rng.integers(1, 3000))),
        extension="png",
        labels=rng.integers(-1, 2, 5).astype(np.int8),
        meta=meta,
    )


def assert_same(one: Sample, other: Sample) -> None:
    assert (one.key, one.image, one.extension, one.meta) == (
        other.key,
        other.image,
        other.extension,
        other.meta,
    )
    assert np.array_equal(one.labels, other.labels)


def test_round_trip(tmp_path: Path):
    samples = [sample(i) for i in range(20)]
    info = write_shard(tmp_path / "a.tar", "train", samples)
    back = list(read_shard(tmp_path / "a.tar"))
    assert len(back) == 20
    for one, other in zip(samples, back):
        assert_same(one, other)
    data = (tmp_path / "a.tar").read_bytes()
    assert (info.samples, info.bytes, info.split) == (20, len(data), "train")
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    index = (tmp_path / "a.idx").read_bytes()
    assert info.index_sha256 == hashlib.sha256(index).hexdigest()


def test_two_writes_are_identical(tmp_path: Path):
    infos = [write_shard(tmp_path / f / "a.tar", "x", map(sample, range(9))) for f in ("1", "2")]
    assert infos[0] == infos[1]
    assert (tmp_path / "1/a.tar").read_bytes() == (tmp_path / "2/a.tar").read_bytes()


def test_the_index_says_what_the_tar_says(tmp_path: Path):
    write_shard(tmp_path / "a.tar", "train", map(sample, range(12)))
    assert read_index(tmp_path / "a.tar") == index_tar(tmp_path / "a.tar")


def test_members_are_plain_ustar(tmp_path: Path):
    write_shard(tmp_path / "a.tar", "train", [sample(1)])
    data = (tmp_path / "a.tar").read_bytes()
    assert data[257:263] == b"ustar\0"
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["s001.png", "s001.lab", "s001.json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_nothing_appears_before_it_is_whole(tmp_path: Path):
    def failing():
        yield sample(1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "a.tar", "train", failing())
    assert not (tmp_path / "a.tar").exists()
    assert not (tmp_path / "a.idx").exists()


@pytest.mark.parametrize("key", ["a.b", "../a", "", "a b", "a" * 81])
def test_bad_keys_are_refused(tmp_path: Path, key: str):
    bad = Sample(key, b"x", "png", np.zeros(2, np.int8), SampleMeta("s", "f", "0", 1, 1))
    with pytest.raises(ValueError, match="not a key"):
        write_shard(tmp_path / "a.tar", "train", [bad])


def test_a_stale_index_is_found(tmp_path: Path):
    write_shard(tmp_path / "a.tar", "train", map(sample, range(5)))
    write_shard(tmp_path / "b.tar", "train", map(sample, range(3, 8)))
    (tmp_path / "a.idx").write_bytes((tmp_path / "b.idx").read_bytes())
    with pytest.raises(RunFailed, match="ingest again"):
        list(read_shard(tmp_path / "a.tar"))


def test_a_cut_tar_is_found(tmp_path: Path):
    write_shard(tmp_path / "a.tar", "train", map(sample, range(5)))
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(RunFailed):
        list(read_shard(tmp_path / "a.tar"))


def test_a_missing_index_is_named(tmp_path: Path):
    write_shard(tmp_path / "a.tar", "train", [sample(1)])
    (tmp_path / "a.idx").unlink()
    with pytest.raises(RunFailed, match=r"a\.idx"):
        list(read_shard(tmp_path / "a.tar"))


def test_labels_without_images(tiny_shards: Path):
    folder = tiny_shards / "chestxray14"
    manifest = load_manifest(folder)
    keys, labels = read_labels(folder, manifest, "train")
    samples = list(read_split(folder, manifest, "train"))
    assert keys == [s.key for s in samples]
    assert np.array_equal(labels, np.stack([s.labels for s in samples]))
    counted = dict(zip(manifest.labels, (labels == 1).sum(0).tolist()))
    assert counted == manifest.splits["train"].labels


def test_write_atomic(tmp_path: Path):
    write_atomic(tmp_path / "f", b"1")
    write_atomic(tmp_path / "f", b"22")
    assert (tmp_path / "f").read_bytes() == b"22"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_file_gets_its_name_when_all_of_it_is_on_the_disk(tmp_path: Path, monkeypatch):
    events: list[tuple[str, int]] = []

    def sync(fd: int) -> None:
        events.append(("on the disk", os.fstat(fd).st_size))

    def replace(path: Path, target: Path) -> None:
        events.append((target.name, path.stat().st_size))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    info = write_shard(tmp_path / "a.tar", "train", [sample(1)])
    (on_disk, size), *rest = events
    assert (on_disk, size) == ("on the disk", info.bytes)
    assert [name for name, _ in rest] == ["on the disk", "a.idx", "a.tar"]
    assert rest[0][1] == rest[1][1] > 0
    assert rest[2][1] == info.bytes


def test_what_ustar_cannot_hold_is_refused(tmp_path: Path):
    long = Sample("k" * 80, b"x", "e" * 20, np.zeros(2, np.int8), sample(1).meta)
    with pytest.raises(ValueError, match="USTAR does not hold"):
        write_shard(tmp_path / "a.tar", "train", [long])


class Full(io.FileIO):
    """A file on a full disk."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_a_full_disk_leaves_no_shard(tmp_path: Path, monkeypatch, at_once: int):
    """Though it is another thread that writes."""
    monkeypatch.setattr("shards.writer._AT_ONCE", at_once)
    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, mode))
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "a.tar", "train", map(sample, range(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.tmp"]


@pytest.mark.parametrize("at_once", [1, 4000, 1 << 22])
def test_the_tar_is_what_tarfile_writes(tmp_path: Path, monkeypatch, at_once: int):
    monkeypatch.setattr("shards.writer._AT_ONCE", at_once)
    samples = [sample(number) for number in range(7)]
    shard = write_shard(tmp_path / "a.tar", "train", samples)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for one in samples:
            parts = {
                one.extension: one.image,
                "lab": one.labels.tobytes(),
                "json": one.meta.to_json(),
            }
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{one.key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert (tmp_path / "a.tar").read_bytes() == plain.getvalue()
    assert shard.sha256 == hashlib.sha256(plain.getvalue()).hexdigest()


@pytest.mark.parametrize(
    ("extension", "change"), [("lab", None), ("json", None), ("json", b"{}"), ("json", b"[]")]
)
def test_a_sample_without_its_parts_is_named(tmp_path: Path, extension: str, change: bytes | None):
    """Left out of the tar, or not what was written; the index says what the tar says."""
    path, one = tmp_path / "a.tar", sample(1)
    parts = {"png": one.image, "lab": one.labels.tobytes(), "json": one.meta.to_json()}
    parts |= {extension: change} if change else {}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in parts.items():
            if name != extension or change:
                info = tarfile.TarInfo(f"{one.key}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (components,) = index = index_tar(path)
    path.with_suffix(".idx").write_text(format_index(index))
    with pytest.raises(RunFailed, match=f"a.tar: sample {one.key} is damaged"):
        list(read_shard(path))
    named = pytest.raises(RunFailed, match=f"{one.key}.{extension} is damaged")
    with path.open("rb") as file, named:
        if extension == "lab":
            member(components, extension, path)
        else:
            read_meta(file.fileno(), components, path)
