"""shards.manifest: finished or not, damaged or not, and says so in one line."""

import json
import shutil
from pathlib import Path

import pytest

from shards.console import UserError
from shards.manifest import check_shards, load_manifest, manifest_hash, shard_path


@pytest.fixture
def folder(tiny_shards: Path, tmp_path: Path) -> Path:
    """A data set to damage."""
    return Path(shutil.copytree(tiny_shards / "covid-radiography", tmp_path / "covid"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(folder: Path):
    manifest = load_manifest(folder)
    before = manifest_hash(folder)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    assert load_manifest(folder) == manifest
    assert manifest_hash(folder) == before
    assert manifest.vocabulary.exclusive


def test_missing_folder_and_manifest(folder: Path, tiny_shards: Path):
    with pytest.raises(UserError, match="no folder"):
        load_manifest(folder / "nowhere")
    with pytest.raises(UserError, match="chestxray14, covid-radiography"):
        load_manifest(tiny_shards)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        load_manifest(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 99},
        {"surprise": 1},
        {"labels": None},
        {"shards": [{"name": "a.tar"}]},
        {"splits": {"train": {}}},
    ],
)
def test_damaged_manifests(folder: Path, changes: dict):
    edit(folder, **changes)
    with pytest.raises(UserError, match="is not a manifest"):
        load_manifest(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\x00"])
def test_no_manifest_at_all(folder: Path, text: str):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="is not a manifest"):
        load_manifest(folder)


def test_a_shard_name_cannot_leave_the_folder(folder: Path):
    raw = json.loads((folder / "manifest.json").read_text())
    raw["shards"][0]["name"] = "../../etc/passwd"
    edit(folder, shards=raw["shards"])
    with pytest.raises(UserError, match="leaves the folder"):
        load_manifest(folder)


def test_unknown_split_lists_the_known(folder: Path):
    with pytest.raises(UserError, match="test, train, val"):
        load_manifest(folder).of_split("dev")


def test_check_shards(folder: Path):
    manifest = load_manifest(folder)
    splits = tuple(manifest.splits)
    check_shards(folder, manifest, splits)
    path = shard_path(folder, manifest.of_split("train")[0])
    index = path.with_suffix(".idx")
    text = index.read_text()
    index.write_text(text.replace("lab", "bal"))
    with pytest.raises(UserError, match="hash differs"):
        check_shards(folder, manifest, splits)
    index.unlink()
    with pytest.raises(UserError, match=r"\.idx is missing"):
        check_shards(folder, manifest, splits)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="expected"):
        check_shards(folder, manifest, splits)
    path.unlink()
    with pytest.raises(UserError, match=r"\.tar is missing"):
        check_shards(folder, manifest, splits)


def test_of_a_wrong_folder_the_right_one_is_named(tiny_shards, tmp_path):
    dataset = tiny_shards / "covid-radiography"
    (tmp_path / "file").touch()
    for folder, way in (
        (dataset / "test", f"it is a part of the data set {dataset}: name that"),
        (dataset / "chestxray14", f"{dataset} is a data set itself: name that, or for"),
        (tiny_shards, "it holds the data sets chestxray14, covid-radiography: name one of them"),
        (tmp_path / "file", "file is a file; name the folder of a data set's shards"),
        (tmp_path / "lacks", f"make it with: python -m ingest ... --out {tmp_path}"),
        (tmp_path, "it is no data set, or its ingest is not finished"),
    ):
        with pytest.raises(UserError) as caught:
            load_manifest(folder)
        assert way in str(caught.value), folder
