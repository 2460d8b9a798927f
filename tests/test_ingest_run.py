"""ingest.run end to end: the same bytes whatever the workers and the interruptions."""

import shutil
from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest
from ingest_runs import config, covid, nih, run_cli, tree

from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from shards.codec import decode_grey
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest
from shards.reader import read_split
from shards.verify import verify_dataset


@pytest.fixture
def small_raw(tiny_raw: Path, tmp_path: Path) -> Path:
    """A copy of the raw data sets, to damage."""
    return Path(shutil.copytree(tiny_raw, tmp_path / "raw"))


def test_one_worker_gives_the_same_bytes_as_two(tiny_raw: Path, tiny_shards: Path, tmp_path: Path):
    ingest(nih(tiny_raw), config(tmp_path))
    ingest(covid(tiny_raw), config(tmp_path))
    assert tree(tmp_path) == tree(tiny_shards)
    assert not any(".spool" in name or ".tmp" in name for name in tree(tmp_path))


def test_finished_sets_are_left_alone(tiny_raw: Path, tiny_shards: Path, tmp_path: Path):
    before = tree(tiny_shards / "chestxray14")
    manifest = ingest(nih(tiny_raw), config(tiny_shards, workers=2))
    assert manifest == load_manifest(tiny_shards / "chestxray14")
    with pytest.raises(UserError, match="seed was 0, now 1"):
        ingest(nih(tiny_raw), config(tiny_shards, seed=1))
    assert tree(tiny_shards / "chestxray14") == before


def test_more_images_under_a_finished_set_are_noticed(small_raw: Path, tmp_path: Path):
    ingest(covid(small_raw), config(tmp_path / "out"))
    first = small_raw / "covid-radiography/NORMAL/NORMAL (1).png"
    shutil.copy(first, first.with_name("new.png"))
    with pytest.raises(UserError, match="with other settings: files_sha256"):
        ingest(covid(small_raw), config(tmp_path / "out"))


def test_planted_flaws_end_where_they_belong(tiny_shards: Path):
    folder = tiny_shards / "covid-radiography"
    manifest = load_manifest(folder)
    assert manifest.excluded == {
        "duplicate: same bytes": 1,
        "in the exclusion list": 1,
        "quarantined": 1,
    }
    (bad,) = pq.read_table(folder / "quarantine.parquet").to_pylist()
    assert bad["member"] == "NORMAL/NORMAL (13).png"
    assert len(bad["sha256"]) == 64
    excluded = {row["file"]: row for row in pq.read_table(folder / "excluded.parquet").to_pylist()}
    assert "COVID-19/COVID-19 (lateral 1).png" in excluded
    (repeat,) = (row for row in excluded.values() if row["duplicate_of"])
    kept = pq.read_table(folder / "samples.parquet").to_pylist()
    assert repeat["duplicate_of"] in {row["key"] for row in kept}


def test_splits_tables_and_lists_agree(tiny_shards: Path):
    for name in ("chestxray14", "covid-radiography"):
        folder = tiny_shards / name
        manifest = load_manifest(folder)
        rows = pq.read_table(folder / "samples.parquet").to_pylist()
        patients: dict[str, set[str]] = {}
        for split in manifest.splits:
            samples = list(read_split(folder, manifest, split))
            assert [s.key for s in samples] == [r["key"] for r in rows if r["split"] == split]
            listed = (folder / "lists" / f"{split}.txt").read_text().splitlines()
            assert listed == sorted(s.meta.file for s in samples)
            patients[split] = {s.meta.patient for s in samples if s.meta.patient}
        assert not patients["train"] & patients["val"] | patients["train"] & patients["test"]
        assert not patients["val"] & patients["test"]


def test_lists_give_the_same_split_again(tiny_raw: Path, tiny_shards: Path, tmp_path: Path):
    lists = tiny_shards / "chestxray14/lists"
    given = {f"{split}_list": lists / f"{split}.txt" for split in ("train", "val", "test")}
    source = select(nih(tiny_raw), SelectionConfig(**given))
    # The quarantined image is in no list now.
    manifest = ingest(source, config(tmp_path))
    assert manifest.splits == load_manifest(tiny_shards / "chestxray14").splits


def test_small_shards(tiny_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ingest.assemble.MEMBERS_BYTES", 200_000)
    manifest = ingest(covid(tiny_raw), config(tmp_path, shard_mb=1))
    assert len(manifest.of_split("train")) > 3
    assert sum(s.samples for s in manifest.shards) == sum(
        c.samples for c in manifest.splits.values()
    )
    assert not verify_dataset(tmp_path / "covid-radiography", lambda _: None)


@pytest.mark.parametrize("encoding", ["jpeg", "png", "keep"])
def test_encodings(tiny_raw: Path, tmp_path: Path, encoding: str):
    side = None if encoding == "keep" else 96
    manifest = ingest(covid(tiny_raw), config(tmp_path, format=encoding, shorter_side=side))
    assert manifest.shorter_side == side
    assert manifest.image_extension == {"jpeg": "jpg", "png": "png", "keep": "png"}[encoding]
    folder = tmp_path / "covid-radiography"
    assert not verify_dataset(folder, lambda _: None)
    for sample in read_split(folder, manifest, "train"):
        assert min(decode_grey(sample.image).shape) == (side or 160)


def test_the_mark_of_synthetic_images_goes_into_the_manifest(small_raw: Path, tmp_path: Path):
    assert ingest(covid(small_raw), config(tmp_path / "a")).synthetic
    (small_raw / "covid-radiography/SYNTHETIC").unlink()
    assert not ingest(covid(small_raw), config(tmp_path / "b")).synthetic


def test_duplicates_can_be_kept_or_fail_the_run(tiny_raw: Path, tmp_path: Path):
    with pytest.raises(RunFailed, match="1 duplicates, such as"):
        ingest(covid(tiny_raw), config(tmp_path, on_duplicate="fail"))
    manifest = ingest(covid(tiny_raw), config(tmp_path, on_duplicate="keep"))
    assert "duplicate: same bytes" not in manifest.excluded
    assert "1 pair of duplicates stay, 0 of them across splits" in manifest.notes


def test_near_duplicates_end_as_asked(small_raw: Path, tmp_path: Path):
    folder = small_raw / "covid-radiography/NORMAL"
    grey = decode_grey((folder / "NORMAL (2).png").read_bytes())
    cv2.imwrite(str(folder / "copy.jpg"), cv2.resize(grey, (140, 140)))
    manifest = ingest(covid(small_raw), config(tmp_path / "report"))
    (note,) = (note for note in manifest.notes if "pair of near duplicates" in note)
    assert note.startswith("1 pair of near duplicates")
    assert note.endswith("stay, 0 of them across splits")
    page = (tmp_path / "report/covid-radiography/audit.html").read_text()
    assert "NORMAL/copy.jpg" in page
    assert "NORMAL/NORMAL (2).png" in page
    assert "both stay, in one split" in page
    dropped = ingest(covid(small_raw), config(tmp_path / "drop", near_duplicate="drop"))
    assert dropped.excluded["near duplicate"] == 1
    kept = ingest(covid(small_raw), config(tmp_path / "keep", near_duplicate="keep"))
    assert not any("near duplicates (" in note for note in kept.notes)


def test_cap(tiny_raw: Path, tmp_path: Path):
    manifest = ingest(covid(tiny_raw, cap_per_class=8), config(tmp_path))
    for label in manifest.labels:
        assert sum(counts.labels[label] for counts in manifest.splits.values()) == 8
    assert manifest.excluded["over the cap per class"] == 12


def test_missing_images(small_raw: Path, tmp_path: Path):
    (small_raw / "chestxray14/images_002.tar.gz").unlink()
    with pytest.raises(UserError, match=r"24 of 48 images are missing.*--allow-missing"):
        ingest(nih(small_raw), config(tmp_path / "out"))
    manifest = ingest(nih(small_raw), config(tmp_path / "out", allow_missing=True))
    assert manifest.excluded["image missing"] == 24


def test_too_many_bad_images(small_raw: Path, tmp_path: Path):
    for path in list((small_raw / "covid-radiography/NORMAL").iterdir())[:5]:
        path.write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(RunFailed, match=r"of 38 images cannot be used: not an image.*--max-bad"):
        ingest(covid(small_raw), config(tmp_path / "out"))
    manifest = ingest(covid(small_raw), config(tmp_path / "out", max_bad=0.5))
    assert manifest.excluded["quarantined"] >= 5


def test_a_limit_of_megapixels(small_raw: Path, tmp_path: Path):
    large = small_raw / "covid-radiography/NORMAL/NORMAL (2).png"
    grey = cv2.resize(decode_grey(large.read_bytes()), (1600, 1250))  # 2 megapixels
    cv2.imwrite(str(large), grey)
    ingest(covid(small_raw), config(tmp_path / "all"))
    assert "max_megapixels" not in load_manifest(tmp_path / "all/covid-radiography").settings
    manifest = ingest(covid(small_raw), config(tmp_path / "few", max_megapixels=1))
    assert manifest.settings["max_megapixels"] == 1
    rows = pq.read_table(tmp_path / "few/covid-radiography/quarantine.parquet").to_pylist()
    (row,) = (row for row in rows if row["member"] == "NORMAL/NORMAL (2).png")
    assert row["reason"] == "1600 x 1250 pixels, over the limit of 1000000"
    with pytest.raises(UserError, match="max_megapixels was None, now 1"):
        ingest(covid(small_raw), config(tmp_path / "all", max_megapixels=1))


def test_a_damaged_archive_can_be_replaced(tiny_raw: Path, small_raw: Path, tmp_path: Path):
    archive = small_raw / "chestxray14/images_002.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"images_002\.tar\.gz is damaged"):
        ingest(nih(small_raw), config(tmp_path / "out"))
    archive.write_bytes(whole)
    manifest = ingest(nih(small_raw), config(tmp_path / "out"))
    assert sum(counts.samples for counts in manifest.splits.values()) == 47


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers 0; allowed: 1"),
        ({"shard_mb": 0}, "--shard-mb 0"),
        ({"max_bad": 2.0}, "--max-bad"),
        ({"dry_run": True, "retry": True}, "--dry-run tells of a whole ingest, not of --retry"),
        ({"max_megapixels": 0}, "--max-megapixels 0; allowed: above 0, to 1000"),
        ({"max_megapixels": float("nan")}, "--max-megapixels nan; allowed"),
        ({"shorter_side": -1}, "--shorter-side -1"),
        ({"format": "keep"}, "drop --shorter-side 128"),
    ],
)
def test_bad_options(tiny_raw: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        ingest(covid(tiny_raw), config(tmp_path, **options))


def test_too_large_a_test_set_fails_before_any_work(tiny_raw: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--test-per-class"):
        ingest(covid(tiny_raw, test_per_class=60), config(tmp_path))
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path):
    drawn = run_cli(
        "ingest",
        "synthetic",
        "--out",
        tmp_path / "raw",
        "--images",
        12,
        "--per-class",
        5,
        "--size",
        96,
    )
    assert drawn.returncode == 0, drawn.stderr
    source = tmp_path / "raw/covid-radiography"
    command = ("ingest", "covid-radiography", "--src", source, "--out", tmp_path / "out")
    done = run_cli(*command, "--test-per-class", 1, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "duplicate: same bytes" in done.stdout
    assert load_manifest(tmp_path / "out/covid-radiography").synthetic
    wrong = run_cli("ingest", "chestxray14", "--src", tmp_path / "none", "--out", tmp_path / "out")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: no folder")
    assert "Traceback" not in wrong.stderr


def test_the_commands_for_finished_sets(tiny_raw: Path, tmp_path: Path):
    raw, out = tiny_raw / "covid-radiography", tmp_path / "out"
    command = ("ingest", "covid-radiography", "--src", raw, "--out", out, "--test-per-class", 2)
    dry = run_cli(*command, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "expected: " in dry.stdout
    assert not out.exists()
    assert run_cli(*command, "--workers", 1).returncode == 0
    again = run_cli(*command, "--retry", "--workers", 1)
    assert again.returncode == 0, again.stderr
    assert "left out: 1 quarantined" in again.stdout
    split = run_cli("ingest", "resplit", out, "--seed", 4, "--no-progress")
    assert split.returncode == 0, split.stderr
    (tmp_path / "map.csv").write_text(
        "dataset,source_label,label\n"
        "covid-radiography,Normal,a\ncovid-radiography,Viral Pneumonia,b\n"
        "covid-radiography,COVID-19,b\n"
    )
    merged = ("ingest", "merge", "--map", tmp_path / "map.csv", "--out", tmp_path / "m")
    done = run_cli(*merged, out, "--no-progress")
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "m/merged").labels == ("a", "b")
    for wrong in ((*merged, tmp_path / "none"), ("ingest", "resplit"), (*command, "--seed", "x")):
        failed = run_cli(*wrong)
        assert failed.returncode == 2
        assert failed.stderr.startswith("error: ")
        assert failed.stderr.count("\n") == 1
