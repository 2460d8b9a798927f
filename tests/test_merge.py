"""ingest.merge, ingest.label_map: labels mapped, copies found across data sets, patients apart."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from ingest.config import IngestConfig
from ingest.label_map import check_label_map, read_label_map
from ingest.merge import MergeConfig, map_record, merge
from ingest.record import Record
from ingest.resplit import ResplitConfig, resplit
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.covid_chestxray import CovidChestxray, CovidChestxrayConfig
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from ingest.spool import lock
from shards.codec import decode_grey
from shards.console import UserError
from shards.labels import Vocabulary
from shards.manifest import Manifest, load_manifest
from shards.reader import read_split
from shards.verify import verify_dataset

MAP = """dataset,source_label,label
covid-radiography,Normal,healthy
covid-radiography,Viral Pneumonia,
covid-radiography,COVID-19,covid
second,Normal,healthy
second,Viral Pneumonia,pneumonia
second,COVID-19,covid
"""


@pytest.fixture(scope="module")
def sets(tiny_raw: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`covid-radiography/` and `second/`: its copy but for two classes' images turned over, with
    one image re-encoded and one under another class."""
    out = tmp_path_factory.mktemp("sets")
    raw = Path(shutil.copytree(tiny_raw / "covid-radiography", out / "raw"))
    for path in sorted(raw.rglob("*.png")):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if grey is not None and path.parent.name != "COVID-19":
            cv2.imwrite(str(path), 255 - grey)
    first = tiny_raw / "covid-radiography/NORMAL"
    small = cv2.resize(cv2.imread(str(first / "NORMAL (3).png"), 0), (150, 150))
    cv2.imwrite(str(raw / "NORMAL/small.jpg"), small)
    shutil.copy(first / "NORMAL (4).png", raw / "COVID-19/wrong.png")

    class Second(CovidRadiography):
        name = "second"

    config = IngestConfig(out, shorter_side=128, workers=1, progress=False)
    ingest(select(Second(CovidRadiographyConfig(raw)), SelectionConfig(test_per_class=3)), config)
    shutil.copytree(tiny_shards / "covid-radiography", out / "covid-radiography")
    shutil.rmtree(raw)
    (out / "map.csv").write_text(MAP)
    return out


def merged(sets: Path, out: Path, **options) -> Manifest:
    given = {"map": sets / "map.csv", "progress": False, "fractions": (0.6, 0.2, 0.2)}
    folders = options.pop("folders", (sets / "covid-radiography", sets / "second"))
    manifest = merge(MergeConfig(folders, out=out, **(given | options)))
    assert not verify_dataset(out / manifest.dataset, lambda _: None)
    return manifest


def test_labels_and_copies_across_data_sets(sets: Path, tmp_path: Path):
    manifest = merged(sets, tmp_path)
    assert manifest.labels == ("healthy", "covid", "pneumonia")
    assert manifest.exclusive
    assert manifest.synthetic
    counts = {
        label: sum(c.labels[label] for c in manifest.splits.values()) for label in manifest.labels
    }
    one, other = (load_manifest(sets / n) for n in ("covid-radiography", "second"))
    had = {
        label: sum(c.labels[label] for m in (one, other) for c in m.splits.values())
        for label in one.labels
    }
    assert manifest.excluded["a label that the mapping leaves out"] == 12
    assert counts["pneumonia"] == had["Viral Pneumonia"] - 12
    # Every COVID-19 image of the first set is in the second: 12 copies go, and the planted pair
    # of two labels goes altogether.
    assert manifest.excluded["duplicate: same bytes"] == 12
    assert manifest.excluded["duplicate with other labels"] == 2
    assert counts["covid"] == had["COVID-19"] - 12 - 1
    assert counts["healthy"] == had["Normal"] - 1
    assert any(note.startswith("1 pair of near duplicates") for note in manifest.notes)
    page = (tmp_path / "merged/audit.html").read_text()
    assert "second/NORMAL/small.jpg" in page
    rows = pq.read_table(tmp_path / "merged/samples.parquet").to_pylist()
    assert {row["source"] for row in rows} == {"covid-radiography", "second"}


def test_it_is_the_same_whatever_the_order_and_never_done_twice(sets: Path, tmp_path: Path):
    manifest = merged(sets, tmp_path / "a")
    turned = merged(sets, tmp_path / "b", folders=(sets / "second", sets / "covid-radiography"))
    assert manifest.shards == turned.shards
    assert merged(sets, tmp_path / "a") == manifest
    with pytest.raises(UserError, match="seed was 0, now 1"):
        merged(sets, tmp_path / "a", seed=1)
    whole = merged(sets, tmp_path / "c", folders=(sets,))
    assert whole.shards == manifest.shards


def test_its_own_result_beside_its_parts_is_no_part(sets: Path, tmp_path: Path):
    both = Path(shutil.copytree(sets, tmp_path / "sets"))
    first = merged(sets, both, folders=(both,))
    assert merged(sets, both, folders=(both,)) == first
    with pytest.raises(UserError, match="is one of the data sets to merge"):
        merged(sets, both, folders=(both, both / "merged"))


def test_what_another_run_finished_meanwhile_stays(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def late(*given):
        monkeypatch.undo()
        merged(sets, tmp_path)
        (tmp_path / "merged/.spool").mkdir()
        monkeypatch.setattr("ingest.merge.assemble", lambda *_: 1 / 0)
        return lock(*given)

    monkeypatch.setattr("ingest.merge.lock", late)
    assert merged(sets, tmp_path) == load_manifest(tmp_path / "merged")


def test_notes_of_its_parts_stay(sets: Path, tmp_path: Path):
    one = tmp_path / "second"
    shutil.copytree(sets / "second", one)
    notes = ("missing: 2 images", "parts of 5 images (all) are blacked out", "3 pairs stay")
    (one / "manifest.json").write_bytes(replace(load_manifest(one), notes=notes).to_json())
    folders = (sets / "covid-radiography", one)
    manifest = merged(sets, tmp_path / "out", folders=folders)
    kept = (
        "second: missing: 2 images",
        "second: parts of at most 5 images (all) are blacked out",
    )
    assert manifest.notes[:2] == kept
    assert "3 pairs stay" not in "".join(manifest.notes)
    config = ResplitConfig((tmp_path / "out/merged",), cap_per_class=3, progress=False)
    ((_, manifest),) = resplit(config)
    assert manifest.notes[:2] == kept


def test_a_set_without_a_manifest_is_not_passed_over(sets: Path, tmp_path: Path):
    both = Path(shutil.copytree(sets, tmp_path / "sets"))
    (both / "second/manifest.json").unlink()
    with pytest.raises(UserError, match=r"second has shards and no manifest\.json; ingest or"):
        merged(sets, tmp_path / "out", folders=(both,))


def test_test_per_class(sets: Path, tmp_path: Path):
    manifest = merged(sets, tmp_path, test_per_class=4, fractions=(0.8, 0.2, 0.0), name="all")
    assert manifest.splits["test"].labels == {"healthy": 4, "covid": 4, "pneumonia": 4}
    assert manifest.dataset == "all"


def test_images_come_over_unchanged(sets: Path, tmp_path: Path):
    manifest = merged(sets, tmp_path)
    first = load_manifest(sets / "covid-radiography")
    before = {
        s.meta.sha256: s.image
        for split in first.splits
        for s in read_split(sets / "covid-radiography", first, split)
    }
    samples = [s for n in manifest.splits for s in read_split(tmp_path / "merged", manifest, n)]
    own = [s for s in samples if s.meta.source == "covid-radiography"]
    assert own
    assert all(before[s.meta.sha256] == s.image for s in own)
    assert all(decode_grey(s.image).shape == (128, 128) for s in own)


def test_labels_that_a_set_never_gives_are_unknown(sets: Path, tmp_path: Path, tiny_shards: Path):
    nih = load_manifest(tiny_shards / "chestxray14")
    shutil.copytree(tiny_shards / "chestxray14", tmp_path / "sets/chestxray14")
    shutil.copytree(sets / "second", tmp_path / "sets/second")
    rows = [f"chestxray14,{label},{label}" for label in nih.labels]
    rows += ["second,Normal,No Finding", "second,Viral Pneumonia,Pneumonia", "second,COVID-19,C"]
    (tmp_path / "map.csv").write_text("\n".join(["dataset,source_label,label", *rows]))
    manifest = merged(sets, tmp_path, map=tmp_path / "map.csv", folders=(tmp_path / "sets",))
    assert not manifest.exclusive
    assert manifest.labels == (*nih.labels, "C")
    for split in manifest.splits:
        for sample in read_split(tmp_path / "merged", manifest, split):
            values = dict(zip(manifest.labels, sample.labels))
            if sample.meta.source == "chestxray14":
                assert values["C"] == -1
                assert values["Effusion"] in (0, 1)
            else:
                assert values["Effusion"] == -1
                assert values["Pneumonia"] in (0, 1)
    one = merged(
        sets, tmp_path / "x", map=tmp_path / "map.csv", folders=(tmp_path / "sets",), exclusive=True
    )
    assert one.exclusive
    assert one.excluded["not exactly one label"] > 0


def test_unknown_labels_stay_unknown():
    vocabulary = Vocabulary(("x", "y", "z"), exclusive=False)
    record = Record("f", "k", ("a",), unknown=("b", "c"))
    mapping = {"a": "x", "b": "y", "c": "x", "d": "y"}
    assert map_record(record, "set", mapping, vocabulary).unknown == ("y", "z")


def test_a_copy_of_a_known_patient_stays_with_the_patient(sets: Path, tmp_path: Path):
    """`wrong.png` and the COVID-19 copies link records of two data sets; none may leak."""
    manifest = merged(sets, tmp_path, near_duplicate="report")
    assert not any("in more than one split" in note for note in manifest.notes)
    assert all("0 of them across" in note for note in manifest.notes if "pairs" in note)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "expected: dataset,source_label,label"),
        ("dataset,source_label,label\n", "maps nothing"),
        (MAP + "second,Normal,other\n", "line 8: second, Normal is mapped twice"),
        (MAP.replace("second,Normal,healthy\n", ""), "lacks labels of second: Normal"),
        (MAP + "second,Norml,other\n", "invents labels of second: Norml"),
        (MAP + "second,Normal," + "x" * 140_000, "line 8 is not CSV: field larger than"),
        (MAP + 'second,"Normal,healthy\n', "line 8: the quote that opens here is not closed"),
        (MAP + "second,Normal,NaN\n", "line 8: 'NaN' is a word for missing"),
        (MAP.replace("second", "third"), "lacks labels of second"),
    ],
)
def test_bad_mappings(sets: Path, tmp_path: Path, text: str, message: str):
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        merged(sets, tmp_path, map=tmp_path / "map.csv")


def test_empty_rows_are_passed_over_and_tables_of_other_sets_named(
    sets: Path, tmp_path: Path, capsys
):
    path = tmp_path / "map.csv"
    path.write_text(MAP.replace("second,Normal", ",,\nthird,x,y\nsecond,Normal"))
    assert read_label_map(path) == {**read_label_map(sets / "map.csv"), "third": {"x": "y"}}
    manifests = {name: load_manifest(sets / name) for name in ("covid-radiography", "second")}
    check_label_map(read_label_map(sets / "map.csv"), manifests, path)
    assert capsys.readouterr().err == ""
    check_label_map(read_label_map(path), manifests, path)
    assert f"{path} also maps third, which is not among the data sets" in capsys.readouterr().err


def test_toml(sets: Path, tmp_path: Path):
    path = tmp_path / "map.toml"
    path.write_text('[set]\n"Viral Pneumonia" = "p"\nNormal = ""\n')
    assert read_label_map(path) == {"set": {"Viral Pneumonia": "p", "Normal": ""}}
    for text, message in (("[set", "is not TOML"), ("set = 3", "no table"), ("", "maps nothing")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_label_map(path)
    path.write_bytes(b'[set]\nNormal = "\xff"\n')
    with pytest.raises(UserError, match=r"^cannot read the mapping \S+map.toml: .*utf-8"):
        read_label_map(path)
    with pytest.raises(UserError, match=r"^no file \S+none.csv; --map names"):
        read_label_map(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a.b"}, "--name 'a.b'"),
        ({"fractions": (0.0, 0.5, 0.5)}, "--fractions"),
        ({"cap_per_class": 0}, "--cap-per-class 0"),
        ({"test_per_class": 900}, "leave too few"),
    ],
)
def test_bad_options(sets: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        merged(sets, tmp_path, **options)


def test_sets_that_do_not_go_together(sets: Path, tmp_path: Path):
    with pytest.raises(UserError, match="each name must occur once"):
        merged(sets, tmp_path, folders=(sets / "second", sets / "second"))
    with pytest.raises(UserError, match="is one of the data sets"):
        merged(sets, sets, name="second")
    other = Path(shutil.copytree(sets / "second", tmp_path / "second"))
    path = other / "manifest.json"
    path.write_text(path.read_text().replace('"shorter_side": 128', '"shorter_side": 96'))
    with pytest.raises(UserError, match="differ in shorter_side"):
        merged(sets, tmp_path, folders=(sets / "covid-radiography", other))


def test_the_copies_that_two_real_sets_share_are_found(shared_data: Path, tmp_path: Path):
    """12 of covid-chestxray-dataset's COVID-19 images are in the Radiography Database too."""
    for folder, count in (("COVID-19", None), ("NORMAL", 6), ("Viral Pneumonia", 6)):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        paths = sorted((shared_data / "covid-radiography" / folder).iterdir())
        for path in paths[:count]:
            (tmp_path / "raw" / folder / path.name).symlink_to(path)
    config = IngestConfig(
        tmp_path / "sets", shorter_side=128, workers=2, progress=False, allow_missing=True
    )
    radiography = CovidRadiography(CovidRadiographyConfig(tmp_path / "raw"))
    ingest(select(radiography, SelectionConfig(test_per_class=1)), config)
    chestxray = CovidChestxrayConfig(shared_data / "covid-chestxray-dataset")
    ingest(CovidChestxray(chestxray), config)
    rows = ["covid-chestxray,Not COVID-19,", "covid-chestxray,COVID-19,COVID-19"]
    rows += [f"covid-radiography,{n},{n}" for n in ("COVID-19", "Normal", "Viral Pneumonia")]
    (tmp_path / "map.csv").write_text("\n".join(["dataset,source_label,label", *rows]))
    manifest = merge(
        MergeConfig((tmp_path / "sets",), tmp_path / "map.csv", tmp_path / "out", progress=False)
    )
    assert manifest.excluded["duplicate: same bytes"] == 12
    # One patient's film of two days is the same picture, stored twice.
    assert "1 pair of near duplicates (at most 20 of 256 bits) stay" in " ".join(manifest.notes)
    assert "patients in more than one split" not in " ".join(manifest.notes)


def test_turned_images_are_no_copies():
    from ingest.near import THRESHOLD, distance, near_hash
    from ingest.radiograph import draw

    grey = draw(0, frozenset(), size=160)
    assert distance(near_hash(grey), near_hash(np.subtract(255, grey))) > THRESHOLD
