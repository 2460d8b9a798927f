"""shards.split_reader: every image as the manifest says, or an error that names the shard."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.console import RunFailed
from shards.manifest import load_manifest, shard_path
from shards.reader import read_split
from shards.split_reader import SplitReader
from shards.writer import write_shard


@pytest.fixture
def folder(tiny_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_shards / "covid-radiography", tmp_path / "covid-radiography"))


def reader_of(folder: Path, *, scanned: bool = True) -> SplitReader:
    reader = SplitReader(folder, load_manifest(folder), "train")
    for number in range(len(reader.shards)) if scanned else ():
        reader.scan(number)
    return reader


def first_shard(folder: Path) -> Path:
    return shard_path(folder, load_manifest(folder).of_split("train")[0])


def test_it_reads_what_a_stream_reads(folder):
    reader, samples = reader_of(folder), list(read_split(folder, load_manifest(folder), "train"))
    assert reader.keys == tuple(sample.key for sample in samples)
    assert np.array_equal(reader.labels, np.stack([sample.labels for sample in samples]))
    opened = os.listdir("/proc/self/fd")
    order = np.random.default_rng(0).permutation(len(reader)).tolist()
    assert [reader.read(i) for i in order] == [samples[i].image for i in order]
    assert set(os.listdir("/proc/self/fd")) - set(opened)
    reader.close()
    assert set(os.listdir("/proc/self/fd")) <= set(opened)


def test_without_open_files_it_reads_the_same(folder, monkeypatch):
    expected = [reader_of(folder).read(i) for i in range(3)]
    monkeypatch.setattr(SplitReader, "_MAX_OPEN", 0)
    assert [reader_of(folder).read(i) for i in range(3)] == expected


def test_the_shards_of_a_part(folder):
    reader = reader_of(folder)
    reader.starts = np.array([0, 10, 20, 30])
    reader.shards = reader.shards * 3
    assert reader.shards_of(0, 30) == [0, 1, 2]
    assert reader.shards_of(10, 20) == [1]
    assert reader.shards_of(9, 21) == [0, 1, 2]
    assert reader.shards_of(30, 30) == []


@pytest.mark.parametrize("change", ["flip", "cut", "missing"])
def test_a_shard_that_is_not_the_manifests(folder, change):
    path = first_shard(folder)
    data = bytearray(path.read_bytes())
    if change == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif change == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    message = "No such file" if change == "missing" else "does not match the manifest"
    with pytest.raises(RunFailed, match=f"{path}.*{message}.*shards verify {folder}"):
        reader_of(folder)


@pytest.mark.parametrize("change", ["flip", "cut"])
def test_a_shard_that_changes_under_the_run(folder, change):
    reader, path = reader_of(folder), first_shard(folder)
    last = len(reader) - 1
    data = path.read_bytes()
    image = reader.read(last)
    place = data.index(image) + len(image) // 2
    with path.open("r+b") as file:  # in place: the open file sees it
        if change == "flip":
            os.pwrite(file.fileno(), bytes([data[place] ^ 1]), place)
        else:
            file.truncate(place)
    assert reader.read(0)
    with pytest.raises(
        RunFailed, match=f"{path} has changed under the run .image {reader.keys[-1]}"
    ):
        reader.read(last)


def test_a_sample_without_its_labels_is_named(folder):
    """A set of another hand, whose hashes are right: no image gets labels that nobody gave it."""
    manifest, samples = (
        load_manifest(folder),
        list(read_split(folder, load_manifest(folder), "train")),
    )
    samples[1] = replace(samples[1], labels=samples[1].labels[:-1])
    path = folder / "train" / "other-train-000000.tar"
    manifest = replace(manifest, shards=(write_shard(path, "train", samples),))
    with pytest.raises(RunFailed, match=f"{path}: image {samples[1].key} lacks labels, or has not"):
        SplitReader(folder, manifest, "train").scan(0)


def test_a_shard_replaced_under_the_run_is_read_as_it_was(folder):
    reader, path = reader_of(folder), first_shard(folder)
    image = reader.read(0)
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)
    assert reader.read(0) == image


def test_a_stale_index_is_named(folder):
    index = first_shard(folder).with_suffix(".idx")
    index.write_text(index.read_text().replace("jph 512", "jph 1024", 1) + " ")
    with pytest.raises(RunFailed, match=f"{index} is not the index of"):
        reader_of(folder, scanned=False)
    index.unlink()
    with pytest.raises(RunFailed, match=f"{index}: No such file"):
        reader_of(folder, scanned=False)
