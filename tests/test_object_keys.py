"""Every object of an S3 store is an image or a row, whatever its key holds: `#`, `?`, `//`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import s3_server
from test_score import picture

from ingest.files import files_below
from serve.entries import BadMember
from serve.score_inputs import find_archives
from shards.codec import encode
from shards.remote import name_below
from shards.urls import path_of

BUCKET = "bucket-k"
KEYS = (
    *("a/plain.png", "a/x#1.png", "a/x?1.png", "a/x?1=2.png", "a/fold#er/y.png", "a/fold?er/y.png"),
    *(
        "a/fold#er/deep/z.png",
        "a//twice.png",
        "a///thrice.png",
        "a/deep//b//c.png",
        "a/ä b%20c+.png",
    ),
    *("a/deep", "a/deep/b.png", "a/odd/", "a/[x]*.png", "a/x?versionId=3.png"),
)
MARKERS = ("a/", "a/empty/")  # that consoles make for folders, without bytes


@pytest.fixture(scope="module")
def stored() -> Iterator[list[str]]:
    """The keys of all objects, as boto3 lists them."""
    import boto3

    with s3_server(BUCKET):
        client = boto3.client("s3")
        for number, key in enumerate(KEYS):
            data = encode(picture(number, (40, 48)), "png")
            client.put_object(Bucket=BUCKET, Key=key, Body=data)
        for key in MARKERS:
            client.put_object(Bucket=BUCKET, Key=key, Body=b"")
        listed = client.list_objects_v2(Bucket=BUCKET)["Contents"]
        assert {item["Key"] for item in listed} == {*KEYS, *MARKERS}
        yield [item["Key"] for item in listed if item["Size"]]


def scored(url: str) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for archive in find_archives([path_of(url)]):
        for entry in archive.entries():
            try:
                data: bytes | str = entry.read()
            except BadMember as error:
                data = str(error)
            assert entry.name not in found
            found[entry.name] = data
    return found


def test_all_objects_below_a_folder_are_inputs(stored):
    found = scored(f"s3://{BUCKET}/a")
    assert sorted(found) == sorted(key.removeprefix("a/") for key in stored)
    refused = found.pop("x?versionId=3.png")  # s3fs takes the end for a version of `a/x`
    assert refused == "its store lists it, and does not find it"
    for number, key in enumerate(KEYS):
        if key != "a/x?versionId=3.png":
            assert found[key.removeprefix("a/")] == encode(picture(number, (40, 48)), "png"), key


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("a/fold#er", {"y.png", "deep/z.png"}),
        ("a/fold?er", {"y.png"}),  # this folder itself, not what the glob would match
        ("a/x?1.png", {"x?1.png"}),
        ("a/[x]*.png", {"[x]*.png"}),
        ("a/x?1*.png", {"x?1.png", "x?1=2.png", "x#1.png"}),
        ("a/deep/*", {"b.png", "c.png"}),
    ],
)
def test_keys_are_named_as_they_are_and_by_globs(stored, url, names):
    assert {
        Path(name).name if "deep" in url else name for name in scored(f"s3://{BUCKET}/{url}")
    } == names


def test_ingest_finds_the_same_objects(stored, tmp_path):
    below = path_of(f"s3://{BUCKET}/a")
    found = [name_below(path, below) for path, _ in files_below(below)]
    assert sorted(found) == sorted(key.removeprefix("a/") for key in stored)
    assert found.index("deep") < found.index("deep/b.png") < found.index("deep//b//c.png")
