"""ingest.retry: mended images join as new shards; what was there stays byte for byte."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest
from ingest_runs import run_cli

from ingest.choice import Found, Kept, Policy
from ingest.config import IngestConfig
from ingest.record import Record, Source
from ingest.resplit import ResplitConfig, resplit
from ingest.retry import _undivided, place, retry
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from ingest.sources.table import Table, TableConfig
from ingest.split import SplitConfig
from ingest.spool import Entry, Spool
from shards.console import UserError
from shards.manifest import Manifest, load_manifest
from shards.verify import verify_dataset

BAD = "NORMAL/NORMAL (13).png"  # what tiny_raw's covid-radiography has in quarantine


@pytest.fixture
def raw(tiny_raw: Path, tmp_path: Path) -> Path:
    """Raw images with three that do not decode."""
    raw = Path(shutil.copytree(tiny_raw / "covid-radiography", tmp_path / "raw"))
    for name in ("COVID-19/COVID-19 (1).png", "COVID-19/COVID-19 (2).png"):
        path = raw / name
        shutil.copy(path, tmp_path / path.name)
        path.write_bytes(b"cut short")
    return raw


def source(raw: Path) -> Source:
    selection = SelectionConfig(test_per_class=2, exclude=raw / "exclude.txt")
    return select(CovidRadiography(CovidRadiographyConfig(raw)), selection)


def config(raw: Path, **options) -> IngestConfig:
    given = {"shorter_side": 128, "workers": 1, "progress": False} | options
    return IngestConfig(raw.parent / "out", **given)


def tars(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*.tar")}


def mend(raw: Path, name: str) -> None:
    shutil.copy(raw.parent / name, raw / "COVID-19" / name)


def test_what_decodes_now_is_added(raw: Path):
    ingest(source(raw), config(raw))
    folder = raw.parent / "out/covid-radiography"
    before, old = tars(folder), load_manifest(folder)
    assert old.excluded["quarantined"] == 3
    mend(raw, "COVID-19 (1).png")
    # The second one comes back as a copy of an image that is there.
    shutil.copy(raw / "COVID-19/COVID-19 (3).png", raw / "COVID-19/COVID-19 (2).png")
    manifest = retry(source(raw), config(raw, retry=True))
    assert manifest == load_manifest(folder)
    assert not verify_dataset(folder, lambda _: None)
    after = tars(folder)
    assert before.items() < after.items()
    assert len(after) == len(before) + 1
    assert manifest.excluded["quarantined"] == 1
    assert manifest.excluded["duplicate: same bytes"] == old.excluded["duplicate: same bytes"] + 1
    assert manifest.splits["test"] == old.splits["test"]
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    assert sum(row["file"] == "COVID-19/COVID-19 (1).png" for row in rows) == 1
    assert len(rows) == sum(c.samples for c in manifest.splits.values())
    listed = [n for p in (folder / "lists").iterdir() for n in p.read_text().splitlines()]
    assert sorted(listed) == sorted(row["file"] for row in rows)
    assert [r["member"] for r in pq.read_table(folder / "quarantine.parquet").to_pylist()] == [BAD]
    assert ingest(source(raw), config(raw)) == manifest  # finished, with the settings of now


def test_a_retry_that_is_cut_short_is_done_again(raw: Path, monkeypatch: pytest.MonkeyPatch):
    ingest(source(raw), config(raw))
    shutil.copytree(raw.parent / "out", raw.parent / "whole/out")
    folder = raw.parent / "out/covid-radiography"
    mend(raw, "COVID-19 (1).png")
    shutil.copy(raw / "COVID-19/COVID-19 (3).png", raw / "COVID-19/COVID-19 (2).png")
    for step in ("write_samples", "write_atomic", "write_quarantine_rows", "remove_spool"):
        monkeypatch.setattr(f"ingest.retry.{step}", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retry(source(raw), config(raw))
        monkeypatch.undo()
    cut = retry(source(raw), config(raw))
    assert not verify_dataset(folder, lambda _: None)
    assert not (folder / ".spool").exists()
    assert cut.excluded["duplicate: same bytes"] == 2
    rows = pq.read_table(folder / "excluded.parquet").to_pylist()
    assert sum(row["reason"] == "duplicate: same bytes" for row in rows) == 2
    whole = retry(source(raw), replace(config(raw), out=raw.parent / "whole/out"))
    assert cut == whole
    other = raw.parent / "whole/out/covid-radiography"
    assert tars(folder) == tars(other)
    for name in ("samples.parquet", "excluded.parquet", "quarantine.parquet"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_what_a_cut_retry_left_is_told_from_damage(raw: Path, monkeypatch: pytest.MonkeyPatch):
    ingest(source(raw), config(raw))
    folder = raw.parent / "out/covid-radiography"
    mend(raw, "COVID-19 (1).png")
    monkeypatch.setattr("ingest.retry.write_atomic", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        retry(source(raw), config(raw))
    monkeypatch.undo()
    verified = run_cli("shards", "verify", folder)
    assert verified.returncode == 1
    assert f"was cut short (the same one again goes on) in {folder}: " in verified.stderr
    with pytest.raises(UserError, match=r"a retry is at work or was cut short .*; else ingest it"):
        again(folder, seed=1)
    retry(source(raw), config(raw))
    again(folder, seed=1)


def test_a_plain_ingest_leaves_a_running_retry_its_spool(raw: Path):
    ingest(source(raw), config(raw))
    folder = raw.parent / "out/covid-radiography"
    with Spool(folder, {}), pytest.raises(UserError, match=r"another ingest .*; wait for it"):
        ingest(source(raw), config(raw))
    assert (folder / ".spool/settings.json").is_file()
    ingest(source(raw), config(raw))  # what a kill left is removed
    assert not (folder / ".spool").exists()


def test_a_retry_that_another_one_overtook_takes_nothing_back(
    raw: Path, monkeypatch: pytest.MonkeyPatch
):
    ingest(source(raw), config(raw))
    mend(raw, "COVID-19 (1).png")

    def late(*given):
        monkeypatch.undo()
        retry(source(raw), config(raw))
        return Spool(*given)

    monkeypatch.setattr("ingest.retry.Spool", late)
    with pytest.raises(UserError, match="was changed by another run meanwhile"):
        retry(source(raw), config(raw))
    assert not verify_dataset(raw.parent / "out/covid-radiography", lambda _: None)


def test_an_ingest_that_another_one_overtook_writes_nothing_anew(
    raw: Path, monkeypatch: pytest.MonkeyPatch
):
    def late(*given):
        monkeypatch.undo()
        ingest(source(raw), config(raw))
        monkeypatch.setattr("ingest.run.encode_all", lambda *_: 1 / 0)
        return Spool(*given)

    monkeypatch.setattr("ingest.run.Spool", late)
    manifest = ingest(source(raw), config(raw))
    folder = raw.parent / "out/covid-radiography"
    assert manifest == load_manifest(folder)
    assert not verify_dataset(folder, lambda _: None)
    assert not (folder / ".spool").exists()


def test_notes_that_stay_true_stay(raw: Path):
    source = Table(TableConfig(raw, write_table(raw)))
    ingest(source, config(raw, allow_missing=True))
    mend(raw, "COVID-19 (1).png")
    manifest = retry(source, config(raw))
    assert any(note.startswith("missing: 1 of the table's ") for note in manifest.notes)
    assert sum(note.startswith("the patient is unknown") for note in manifest.notes) == 1
    assert again(raw.parent / "out/csv", seed=1).notes == manifest.notes


def again(folder: Path, **options) -> Manifest:
    ((_, manifest),) = resplit(ResplitConfig((folder,), **({"progress": False} | options)))
    return manifest


def test_after_a_resplit_its_split_is_gone_on_with(raw: Path):
    ingest(source(raw), config(raw))
    folder = raw.parent / "out/covid-radiography"
    before = again(folder, seed=7, fractions=(0.0001, 0.0001, 0.9998), shard_mb=1)
    files = tars(folder)
    mend(raw, "COVID-19 (1).png")
    manifest = retry(source(raw), config(raw, retry=True))
    assert not verify_dataset(folder, lambda _: None)
    assert files.items() < tars(folder).items()
    assert manifest.splits["test"].samples == before.splits["test"].samples + 1
    known = {**before.settings, "files_sha256": ""}
    assert {**manifest.settings, "files_sha256": ""} == known
    with pytest.raises(UserError, match="on_duplicate was drop, now keep; --retry needs"):
        retry(source(raw), config(raw, on_duplicate="keep"))


def test_after_a_resplit_that_kept_the_test_set_it_stays_closed(raw: Path):
    selection = SelectionConfig(fractions=(0.0001, 0.0001, 0.9998), exclude=raw / "exclude.txt")
    whole = select(CovidRadiography(CovidRadiographyConfig(raw)), selection)
    ingest(whole, config(raw))
    folder = raw.parent / "out/covid-radiography"
    before = again(folder, keep_test=True, seed=3)
    mend(raw, "COVID-19 (1).png")
    manifest = retry(whole, config(raw))
    assert manifest.excluded["quarantined"] == 2
    assert manifest.splits["test"] == before.splits["test"]


def test_a_given_split_holds_no_more_after_a_resplit(raw: Path):
    record = Record("a", "a", (), split="test")
    assert _undivided(record, {}).split == "test"
    assert _undivided(record, {"resplit_of": "x", "keep_test": False}).split is None
    assert _undivided(record, {"resplit_of": "x", "keep_test": True}).split == "test"
    train = replace(record, split="train")
    assert _undivided(train, {"resplit_of": "x", "keep_test": True}).split is None


def test_after_a_resplit_by_lists_the_way_out_is_told(raw: Path):
    ingest(source(raw), config(raw))
    folder = raw.parent / "out/covid-radiography"
    lists = {f"{split}_list": folder / f"lists/{split}.txt" for split in ("train", "test")}
    again(folder, **lists)
    with pytest.raises(UserError, match=r"was split anew by lists, .*; ingest it into another"):
        retry(source(raw), config(raw))


def write_table(raw: Path) -> Path:
    """A CSV of the images of one class, and of one that is not there."""
    names = [f"COVID-19/{path.name}" for path in sorted((raw / "COVID-19").glob("*.png"))]
    rows = [
        f"{name},{'ab'[number % 2]}" for number, name in enumerate([*names, "COVID-19/gone.png"])
    ]
    table = raw.parent / "table.csv"
    table.write_text("\n".join(["path,labels", *rows]))
    return table


def test_nothing_to_retry_and_other_settings(raw: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match="no folder"):
        retry(source(raw), config(raw))
    ingest(source(raw), config(raw))
    with pytest.raises(UserError, match="seed was 0, now 1; --retry needs the options"):
        retry(source(raw), config(raw, seed=1))
    (raw / BAD).unlink()
    for name in ("COVID-19 (1).png", "COVID-19 (2).png"):
        (raw / "COVID-19" / name).unlink()
    with pytest.raises(UserError, match="metadata_sha256"):
        retry(source(raw), config(raw))


def image(key: str, patient: str | None, bits: int, labels: tuple[str, ...] = ("a",)) -> Found:
    entry = Entry(key, "", key, 0, pixel_sha256=key, near_hash=f"{(1 << bits) - 1:064x}")
    return Found(Record(key, key, labels, patient), entry, "set")


def kept(found: Found, split: str) -> Kept:
    return Kept(found.record, found.entry, found.source, split)


def test_patients_and_copies_stay_together():
    there = [kept(image("a", "p", 0), "test"), kept(image("b", "q", 60), "val")]
    fresh = [image("c", "p", 120), image("d", None, 65), image("e", "r", 180)]
    choice = place(there, fresh, SplitConfig((0.8, 0.2, 0.0), 1), 0, Policy())
    assert choice.kept[:2] == there
    assert choice.splits == {"a": "test", "b": "val", "c": "test", "d": "val", "e": "train"}
    dropped = place(there, fresh, SplitConfig(), 0, Policy(near_duplicate="drop"))
    assert [(e.record.key, e.duplicate_of) for e in dropped.excluded] == [("d", "b")]


def test_a_cap_holds():
    there = [kept(image("a", None, 0), "train")]
    fresh = [image("b", None, 60), image("c", None, 120, ("x",)), image("d", None, 180, ("x",))]
    choice = place(there, fresh, SplitConfig(cap_per_class=1), 0, Policy())
    assert [e.record.key for e in choice.excluded] == ["b", "d"]


def test_a_cap_counts_no_kept_test_set():
    there = [kept(image("a", None, 0), "test"), kept(image("b", None, 60), "train")]
    fresh = [image("c", None, 120), image("d", None, 180)]
    split = SplitConfig((0.8, 0.2, 0.0), cap_per_class=2)
    choice = place(there, fresh, split, 0, Policy(), keep_test=True)
    assert [e.record.key for e in choice.excluded] == ["d"]
    choice = place(there, fresh, split, 0, Policy())
    assert [e.record.key for e in choice.excluded] == ["c", "d"]


def test_another_size_of_a_mended_file_is_no_other_setting(raw: Path):
    ingest(source(raw), config(raw))
    grey = cv2.imread(str(raw / "COVID-19/COVID-19 (3).png"), 0)
    cv2.imwrite(str(raw / "COVID-19/COVID-19 (2).png"), 255 - grey)
    manifest = retry(source(raw), config(raw))
    assert manifest.excluded["quarantined"] == 2


@pytest.mark.parametrize("name", ["quarantine.parquet", "samples.parquet", "excluded.parquet"])
def test_damaged_tables_end_in_one_line(raw: Path, name: str):
    ingest(source(raw), config(raw))
    mend(raw, "COVID-19 (1).png")
    table = raw.parent / "out/covid-radiography" / name
    table.write_bytes(table.read_bytes()[:50])
    with pytest.raises(UserError, match=f"{name} is damaged; ingest the data set again"):
        retry(source(raw), config(raw))
    table.unlink()
    with pytest.raises(UserError, match=f"{name} is missing; ingest the data set again"):
        retry(source(raw), config(raw))
