"""shards.verify_shard: what is wrong inside a shard whose hashes are all as the manifest says."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.index import Component, format_index, index_tar
from shards.manifest import Manifest, ShardInfo, SplitCounts
from shards.sample import SampleMeta
from shards.verify_shard import ShardReport, report_shard

META = SampleMeta("toy", "1.png", "0" * 64, 4, 4).to_json()
Members = list[tuple[str, bytes]]


def sample(key: str, *, lab: bytes = b"\1\0\xff", image: bytes = b"image") -> Members:
    return [(f"{key}.png", image), (f"{key}.lab", lab), (f"{key}.json", META)]


GOOD = [*sample("a"), *sample("b", lab=b"\1\1\0")]


def write_tar(path: Path, members: Members) -> list[list[Component]]:
    """The tar; its index as it should be."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return index_tar(path)


def report(path: Path, index: list[list[Component]], samples: int = 2) -> ShardReport:
    """Of a tar and an index that the manifest names by their hashes."""
    text = format_index(index)
    path.with_suffix(".idx").write_text(text)
    data = path.read_bytes()
    sums = [hashlib.sha256(part).hexdigest() for part in (data, text.encode())]
    shard = ShardInfo(path.name, "train", samples, len(data), *sums)
    counts = {"train": SplitCounts(samples, {})}
    manifest = Manifest(
        *("toy", ("x", "y", "z"), False, "png;jpg", 1, None), counts, {}, {}, (shard,)
    )
    return report_shard(path, manifest, shard)


def problems(path: Path, members: Members) -> list[str]:
    """Without the path that each begins with."""
    found = report(path, write_tar(path, members)).problems
    assert all(text.startswith(f"{path}") for text in found)
    return [text.removeprefix(f"{path}").removeprefix(": sample ") for text in found]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toy-train-000000.tar"


def test_a_sound_shard_tells_its_keys_and_counts(path: Path):
    found = report(path, write_tar(path, GOOD))
    assert (found.problems, found.keys, found.yes.tolist()) == ([], ["a", "b"], [2, 1, 0])


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        (sample("b", image=b""), "b: its image is empty"),
        (sample("b~"), "b~: not a valid key"),
        (sample("b" * 81), f"{'b' * 81}: not a valid key"),
        (sample("b")[:2], "b: its members are ['png', 'lab'], expected image, lab, json"),
        (
            [*sample("b"), ("b.txt", b"")],
            "b: its members are ['png', 'lab', 'json', 'txt'], expected image, lab, json",
        ),
        (
            [("b.gif", b"image"), *sample("b")[1:]],
            "b: an image .gif, the manifest says png;jpg",
        ),
        (sample("b", lab=b"\0\0"), "b: 2 label bytes, expected 3"),
        (sample("b", lab=b"\2\0\2"), "b: label bytes [0, 2], allowed: 1, 0, -1"),
        (sample("b", lab=b"\0\0\xfe"), "b: label bytes [-2, 0], allowed: 1, 0, -1"),
    ],
)
def test_each_problem_of_a_sample_is_told(path: Path, members: Members, problem: str):
    assert problems(path, [*sample("a"), *members]) == [problem]


def test_an_image_of_any_of_the_manifests_kinds_is_right(path: Path):
    assert problems(path, [*sample("a"), ("b.jpg", b"image"), *sample("b")[1:]]) == []


@pytest.mark.parametrize("meta", [b"{", b"[]", b"null", b"{}", b"\xff"])
def test_metadata_that_is_none_is_told(path: Path, meta: bytes):
    (text,) = problems(path, [*sample("a"), *sample("b")[:2], ("b.json", meta)])
    assert text.startswith("b: its JSON does not parse (")


def test_a_field_too_few_or_too_many_in_the_metadata_is_told(path: Path):
    fields = json.loads(META)
    for changed in ({**fields, "name": "x"}, {k: v for k, v in fields.items() if k != "age"}):
        meta = json.dumps(changed).encode()
        assert problems(path, [*sample("a"), *sample("b")[:2], ("b.json", meta)]) == [
            "b: its JSON does not parse (it does not have the fields of a sample)"
        ]


def test_all_problems_of_all_samples_are_told_and_the_rest_is_counted(path: Path):
    broken = [*sample("a", image=b""), *sample("b", lab=b"\1"), *sample("c", lab=b"\1\1\1")]
    index = write_tar(path, broken)
    found = report(path, index)
    assert found.problems == [
        f"{path} has 3 samples, the manifest says 2",
        f"{path}: sample a: its image is empty",
        f"{path}: sample b: 1 label bytes, expected 3",
    ]
    assert (found.keys, found.yes.tolist()) == (["a", "b", "c"], [2, 1, 1])


@pytest.mark.parametrize("member", [0, 1, 2])
def test_an_index_that_is_the_manifests_but_not_the_tars_is_told(path: Path, member: int):
    index = write_tar(path, GOOD)
    one = index[1][member]
    index[1][member] = replace(one, offset=index[0][member].offset)
    found = report(path, index)
    place = index[0][member].offset
    assert found.problems == [f"{path}: no {one.name} at byte {place}; ingest again"]
    assert (found.keys, np.any(found.yes)) == ([], False)
