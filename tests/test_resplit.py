"""ingest.resplit: the same shards as an ingest with those settings gives, without the images."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ingest.config import IngestConfig
from ingest.finished import Finished
from ingest.resplit import ResplitConfig, resplit
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from ingest.spool import Spool, lock
from shards.console import UserError
from shards.manifest import load_manifest
from shards.reader import read_split
from shards.verify import verify_dataset

LISTS = ("train_list", "test_list", "val_list")


@pytest.fixture
def folder(tiny_shards: Path, tmp_path: Path) -> Path:
    """A finished data set to split anew."""
    return Path(shutil.copytree(tiny_shards / "covid-radiography", tmp_path / "covid-radiography"))


def again(folder: Path, **options) -> Path:
    ((target, _),) = resplit(ResplitConfig((folder,), **({"progress": False} | options)))
    assert not verify_dataset(target, lambda _: None)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def shards(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith(".tar")}


def members(folder: Path) -> dict[str, tuple]:
    manifest = load_manifest(folder)
    return {
        s.key: (s.image, s.labels.tobytes(), s.meta)
        for split in manifest.splits
        for s in read_split(folder, manifest, split)
    }


def test_the_shards_are_those_of_an_ingest_with_these_settings(
    tiny_raw: Path, folder: Path, tmp_path: Path
):
    raw = tiny_raw / "covid-radiography"
    selection = SelectionConfig(test_per_class=2, exclude=raw / "exclude.txt")
    source = select(CovidRadiography(CovidRadiographyConfig(raw)), selection)
    config = IngestConfig(tmp_path / "new", shorter_side=128, workers=1, progress=False, seed=5)
    ingest(source, config)
    target = again(folder, out=tmp_path / "out", seed=5, test_per_class=2)
    fresh = tmp_path / "new/covid-radiography"
    assert shards(target) == shards(fresh)
    for name in ("samples.parquet", "excluded.parquet", "quarantine.parquet", "lists/val.txt"):
        assert (target / name).read_bytes() == (fresh / name).read_bytes()
    assert load_manifest(target).excluded == load_manifest(fresh).excluded


def test_several_labels_of_an_image_stand_in_the_same_order(tiny_shards: Path, tmp_path: Path):
    target = again(tiny_shards / "chestxray14", out=tmp_path)
    table = (tiny_shards / "chestxray14/samples.parquet").read_bytes()
    assert (target / "samples.parquet").read_bytes() == table


def test_in_place(folder: Path):
    before = members(folder)
    old = shards(folder)
    assert again(folder, seed=1) == folder
    assert members(folder) == before
    assert shards(folder) != old
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert not (folder / ".spool").exists()
    once = contents(folder)
    again(folder, seed=1)
    assert contents(folder) == once


def test_another_out_is_gone_on_with_and_refused_for_other_settings(folder: Path, tmp_path: Path):
    target = again(folder, out=tmp_path / "out", seed=1)
    first = contents(target)
    again(folder, out=tmp_path / "out", seed=1)
    assert contents(target) == first
    with pytest.raises(UserError, match="seed was 1, now 2"):
        again(folder, out=tmp_path / "out", seed=2)


def test_lists_are_taken_back(folder: Path, tmp_path: Path):
    lists = folder / "lists"
    target = again(
        folder,
        out=tmp_path / "out",
        train_list=lists / "test.txt",
        val_list=lists / "val.txt",
        test_list=lists / "train.txt",
    )
    assert (target / "lists/test.txt").read_bytes() == (lists / "train.txt").read_bytes()
    names = (lists / "train.txt").read_text().splitlines()
    (tmp_path / "few.txt").write_text("\n".join(names[:12]) + "\n")
    target = again(
        folder,
        out=tmp_path / "few",
        train_list=tmp_path / "few.txt",
        test_list=lists / "test.txt",
    )
    manifest = load_manifest(target)
    assert sum(c.samples for c in manifest.splits.values()) == 12 + 9
    assert manifest.splits["val"].samples > 0
    assert manifest.excluded["in none of the split lists"] == 36 - 12 - 9
    rows = pq.read_table(target / "excluded.parquet").to_pylist()
    assert len(rows) == sum(manifest.excluded.values()) - manifest.excluded["quarantined"]


def test_the_test_set_can_stay(folder: Path, tmp_path: Path):
    target = again(folder, out=tmp_path / "out", keep_test=True, seed=3)
    assert (target / "lists/test.txt").read_bytes() == (folder / "lists/test.txt").read_bytes()
    assert (target / "lists/val.txt").read_bytes() != (folder / "lists/val.txt").read_bytes()


def test_a_note_of_covered_images_stays(folder: Path, tmp_path: Path):
    redacted = replace(
        load_manifest(folder),
        settings=load_manifest(folder).settings | {"redact": {"sha256": "x", "split": "all"}},
        notes=("parts of 5 images (all) are blacked out",),
    )
    (folder / "manifest.json").write_bytes(redacted.to_json())
    again(folder, seed=1)
    assert load_manifest(folder).notes[0] == "parts of 5 images (all) are blacked out"
    for cap in (6, 5):
        again(folder, cap_per_class=cap)
        assert load_manifest(folder).notes[0] == "parts of at most 5 images (all) are blacked out"


def test_a_cap(folder: Path, tmp_path: Path):
    target = again(folder, out=tmp_path / "out", cap_per_class=6)
    assert load_manifest(target).excluded["over the cap per class"] == 18
    with pytest.raises(UserError, match="was capped at 6 and holds no more"):
        again(target, cap_per_class=7)


def test_a_cap_takes_nothing_of_a_kept_test_set(folder: Path, tmp_path: Path):
    before = load_manifest(folder).splits["test"]
    target = again(folder, out=tmp_path / "out", keep_test=True, cap_per_class=4)
    manifest = load_manifest(target)
    assert (target / "lists/test.txt").read_bytes() == (folder / "lists/test.txt").read_bytes()
    assert manifest.splits["test"] == before
    for label in manifest.labels:
        assert sum(manifest.splits[s].labels[label] for s in ("train", "val")) == 4
    once_more = again(target, out=tmp_path / "more", seed=8)  # the cap of before takes no more
    assert len(members(once_more)) == len(members(target))


@pytest.mark.parametrize("moment", ["between", "after"])
def test_a_swap_that_was_cut_is_completed(folder: Path, tmp_path: Path, moment: str):
    whole = again(Path(shutil.copytree(folder, tmp_path / "b" / folder.name)), seed=1)
    work = folder.parent / f".resplit-{folder.name}"
    work.mkdir()
    folder.rename(work / "old")
    shutil.copytree(whole, work / folder.name if moment == "between" else folder)
    again(folder, seed=1)
    assert contents(folder) == contents(whole)
    assert not work.exists()


def test_an_ingest_does_not_begin_beside_a_swap_that_was_cut(tiny_raw: Path, folder: Path):
    work = folder.parent / f".resplit-{folder.name}"
    work.mkdir()
    folder.rename(work / "old")
    source = CovidRadiography(CovidRadiographyConfig(tiny_raw / "covid-radiography"))
    source = select(source, SelectionConfig(test_per_class=2))
    with pytest.raises(UserError, match=r"cut short, and .*; the same resplit again puts it back"):
        ingest(source, IngestConfig(folder.parent, workers=1, progress=False))
    assert not folder.exists()


def test_an_unfinished_set_in_place_of_a_cut_swap_costs_no_finished_one(folder: Path):
    work = folder.parent / ".resplit-covid-radiography"
    shutil.copytree(folder, work / "old")
    shutil.copytree(folder, work / folder.name)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"is not finished, and .* has the finished set"):
        resplit(ResplitConfig((folder,), seed=1, progress=False))
    assert not verify_dataset(work / folder.name, lambda _: None)
    shutil.rmtree(folder)
    again(folder, seed=1)
    assert not work.exists()


def test_a_set_that_another_run_writes_to_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    before = contents(folder)
    with Spool(folder, {}), pytest.raises(UserError, match="another ingest is writing to"):
        again(folder, seed=1)
    shutil.rmtree(folder / ".spool")
    assert contents(folder) == before

    def late(*given):  # another run ends between the first look and the lock
        monkeypatch.undo()
        manifest = load_manifest(folder)
        (folder / "manifest.json").write_bytes(replace(manifest, notes=("new",)).to_json())
        return lock(*given)

    monkeypatch.setattr("ingest.resplit.lock", late)
    with pytest.raises(UserError, match="was changed by another run meanwhile"):
        again(folder, seed=1)
    assert load_manifest(folder).notes == ("new",)


def test_what_another_run_finished_meanwhile_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def late(*given):
        monkeypatch.undo()
        again(folder, out=tmp_path / "out", seed=1)
        (tmp_path / "out/covid-radiography/.spool").mkdir()
        monkeypatch.setattr("ingest.resplit.assemble", lambda *_: 1 / 0)
        return lock(*given)

    monkeypatch.setattr("ingest.resplit.lock", late)
    again(folder, out=tmp_path / "out", seed=1)


def test_what_a_kill_behind_the_manifest_left_is_removed(folder: Path, tmp_path: Path):
    target = again(folder, out=tmp_path / "out", seed=1)
    (target / ".spool").mkdir()
    again(folder, out=tmp_path / "out", seed=1)
    assert not (target / ".spool").exists()


def test_a_set_without_a_manifest_is_not_passed_over(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "second")
    (tmp_path / "second/manifest.json").unlink()
    with pytest.raises(UserError, match=r"second has shards and no manifest\.json; ingest or"):
        resplit(ResplitConfig((tmp_path,), seed=1, progress=False))
    assert again(folder, seed=1) == folder


def test_unknown_labels_survive(folder: Path):
    finished = Finished([folder])
    ((first, *_),) = finished.load(lambda *_: None)
    assert first.record.unknown == ()
    assert finished.read(first.entry) == members(folder)[first.record.key][0]


def test_damage_is_refused(folder: Path):
    path = next(folder.rglob("*.tar"))
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    before = contents(folder)
    with pytest.raises(UserError, match=r"is damaged.*SHA-256"):
        again(folder, seed=1)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": (0.5, 0.1, 0.2)}, "--fractions 0.5 0.1 0.2; allowed"),
        ({"test_per_class": 0}, "--test-per-class 0"),
        ({"shard_mb": 0}, "--shard-mb 0"),
        ({"test_per_class": 500}, "leave too few"),
        ({"train_list": Path("none.txt")}, "belong together"),
        ({"keep_test": True, "test_per_class": 2}, "changes nothing: --keep-test says"),
        (dict.fromkeys(LISTS[:2], Path("x")) | {"test_per_class": 2}, "nothing: lists say"),
        (dict.fromkeys(LISTS, Path("x")) | {"fractions": (0.8, 0.1, 0.1)}, "lists divide all"),
        ({"train_list": Path("none.txt"), "test_list": Path("none.txt")}, "cannot read the list"),
    ],
)
def test_bad_options(folder: Path, options: dict, message: str):
    before = contents(folder)
    with pytest.raises(UserError, match=message):
        again(folder, **options)
    assert contents(folder) == before
    assert not [*folder.parent.glob(".resplit-*")]


def test_no_data_set(tmp_path: Path):
    with pytest.raises(UserError, match="no manifest"):
        again(tmp_path)
