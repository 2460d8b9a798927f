"""shards.verify and shards.stats: every kind of damage is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.console import UserError
from shards.manifest import load_manifest, shard_path
from shards.verify import count_samples, find_datasets, headless, unfinished, verify_dataset

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tiny_shards: Path, tmp_path: Path) -> Path:
    """A data set to damage."""
    return Path(shutil.copytree(tiny_shards / "covid-radiography", tmp_path / "covid-radiography"))


def problems(folder: Path) -> str:
    return "\n".join(verify_dataset(folder, lambda _: None))


def first_shard(folder: Path) -> Path:
    manifest = load_manifest(folder)
    return shard_path(folder, manifest.of_split("train")[0])


def test_a_sound_set_has_no_problems_and_each_shards_samples_are_told(folder: Path):
    advanced: list[int] = []
    assert verify_dataset(folder, advanced.append) == []
    assert advanced == [shard.samples for shard in load_manifest(folder).shards]
    assert sum(advanced) == count_samples(folder) > 0


def test_a_flipped_bit(folder: Path):
    path = first_shard(folder)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert "SHA-256" in problems(folder)


def test_a_cut_shard(folder: Path):
    path = first_shard(folder)
    path.write_bytes(path.read_bytes()[:5000])
    assert "bytes, expected" in problems(folder)


def test_a_missing_shard_and_index(folder: Path):
    path = first_shard(folder)
    path.with_suffix(".idx").unlink()
    assert ".idx is missing" in problems(folder)
    path.unlink()
    assert ".tar is missing" in problems(folder)
    assert "counted as" in problems(folder)


def test_an_index_of_another_shard(folder: Path):
    path = first_shard(folder)
    lines = path.with_suffix(".idx").read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    path.with_suffix(".idx").write_text("\n".join(lines) + "\n")
    found = problems(folder)
    assert "hash differs" in found
    assert "does not say where" in found


def test_wrong_labels_are_found_inside_a_sound_tar(folder: Path):
    raw = json.loads((folder / "manifest.json").read_text())
    raw["labels"] = raw["labels"][:2]
    (folder / "manifest.json").write_text(json.dumps(raw))
    assert "3 label bytes, expected 2" in problems(folder)


def test_wrong_counts(folder: Path):
    raw = json.loads((folder / "manifest.json").read_text())
    raw["splits"]["train"]["samples"] += 1
    raw["splits"]["val"]["labels"]["Normal"] += 1
    (folder / "manifest.json").write_text(json.dumps(raw))
    found = problems(folder)
    assert "train has" in found
    assert "val has 2 of 'Normal', counted as 3" in found


def test_another_image_format(folder: Path):
    raw = json.loads((folder / "manifest.json").read_text())
    raw["image_extension"] = "png"
    (folder / "manifest.json").write_text(json.dumps(raw))
    assert "an image .jph, the manifest says png" in problems(folder)


def test_a_sample_in_two_shards(folder: Path):
    raw = json.loads((folder / "manifest.json").read_text())
    raw["shards"].append(raw["shards"][0])
    split, count = raw["shards"][0]["split"], raw["shards"][0]["samples"]
    (folder / "manifest.json").write_text(json.dumps(raw))
    found = problems(folder)
    assert "the key occurs before" in found
    assert f"{split} has {2 * count} samples, counted as {count}" in found


FILES = ("*.tar", "*.idx", "manifest.json", "*.parquet", "audit.html", "lists/*.txt")


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_changed_byte_anywhere_is_found_and_named(folder: Path, data: st.DataObject):
    """Flipped, taken out, put in, cut off or zeroed: the file is named."""
    paths = [p for pattern in FILES for p in sorted(folder.rglob(pattern))]
    path = data.draw(st.sampled_from(paths))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "delete", "insert", "cut", "zero"]))
    changed = {
        "flip": whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :],
        "delete": whole[:place] + whole[place + 1 :],
        "insert": whole[:place] + b"7" + whole[place:],
        "cut": whole[:place],
        "zero": whole[:place] + bytes(len(whole) - place),
    }[kind]
    try:
        path.write_bytes(changed)
        found = problems(folder)
        assert (path.name in found) == (changed != whole), (path, place, kind)
    finally:
        path.write_bytes(whole)
    assert problems(folder) == ""


def test_every_file_of_a_data_set_is_covered(folder: Path):
    """A missing one is found too; what nobody wrote is no problem unless it is a shard."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        path.unlink()
        if path.name == "manifest.json":
            with pytest.raises(UserError, match=r"no manifest\.json"):
                find_datasets(folder)
        else:
            assert f"{path} is missing" in problems(folder)
        path.write_bytes(data)
    (folder / "notes.txt").write_text("ours")
    assert problems(folder) == ""


def test_a_manifest_that_is_no_json_is_a_problem_like_any_other(folder: Path):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-9])
    broken = run_cli("verify", folder)
    assert broken.returncode == 1
    assert "manifest.json is not a manifest" in broken.stdout


def test_threads_find_the_same_problems_in_the_same_order(folder: Path):
    for path in sorted(folder.rglob("*.tar")):
        path.write_bytes(path.read_bytes()[:-1] + b"1")
    found = verify_dataset(folder, lambda _: None)
    assert len(found) == 3
    assert found == verify_dataset(folder, lambda _: None)


def test_shards_that_the_manifest_does_not_know(folder: Path):
    shutil.copy(first_shard(folder), folder / "train/old.tar")
    assert "old.tar is not in the manifest" in problems(folder)


def test_finding_data_sets(tiny_shards: Path, tmp_path: Path):
    assert [p.name for p in find_datasets(tiny_shards)] == ["chestxray14", "covid-radiography"]
    assert find_datasets(tiny_shards / "chestxray14") == [tiny_shards / "chestxray14"]
    with pytest.raises(UserError, match=r"manifest\.json"):
        find_datasets(tmp_path)
    (tmp_path / "begun/.spool").mkdir(parents=True)
    assert unfinished(tmp_path) == [f"{tmp_path / 'begun'} is not finished"]


def test_shards_without_a_manifest_are_a_problem(tiny_shards: Path, folder: Path):
    shutil.copytree(tiny_shards / "chestxray14", folder.parent / "chestxray14")
    (folder.parent / "raw/images").mkdir(parents=True)  # no shards, no data set
    (folder / "manifest.json").unlink()
    for place in (folder.parent, folder):
        broken = run_cli("verify", place)
        assert broken.returncode == 1
        assert broken.stdout == f"{folder} has shards and no manifest.json\n"
        assert broken.stderr.endswith(f"error: 1 problems in {place}; ingest again\n")
    stats = run_cli("stats", folder.parent)
    assert stats.returncode == 1
    assert "chestxray14" in stats.stdout
    assert (
        stats.stderr
        == f"error: {folder} has shards and no manifest.json; ingest or resplit again\n"
    )
    shutil.rmtree(folder.parent / "chestxray14")
    assert run_cli("verify", folder.parent).returncode == 1
    (folder / ".spool").mkdir()
    assert headless(folder.parent) == []
    assert unfinished(folder.parent) == [f"{folder} is not finished"]


def test_a_set_that_a_cut_resplit_left_beside_its_place_is_named(folder: Path):
    work = folder.parent / ".resplit-covid-radiography"
    assert headless(folder.parent) == []
    work.mkdir()
    folder.rename(work / "old")
    (problem,) = headless(folder.parent)
    assert problem == f"{folder} lies in {work}, as its resplit was cut short"
    assert run_cli("verify", folder.parent).stdout == f"{problem}\n"


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shards", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_command_line(folder: Path):
    assert run_cli("verify", folder.parent).returncode == 0
    stats = run_cli("stats", folder)
    assert stats.returncode == 0
    assert stats.stdout.splitlines()[0] == f"covid-radiography ({folder})"  # however narrow
    assert "Viral Pneumonia" in stats.stdout
    assert "of unknown patients" in stats.stdout
    first_shard(folder).unlink()
    broken = run_cli("verify", folder)
    assert broken.returncode == 1
    assert "is missing" in broken.stdout
    assert run_cli("stats", folder).returncode == 2
    assert run_cli("verify", folder / "nowhere").returncode == 2
