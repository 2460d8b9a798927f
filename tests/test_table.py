"""ingest.sources.table: columns by option, paths that stay inside, labels exclusive or not; and
the way of a small data set into shards."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.config import IngestConfig
from ingest.record import Missing
from ingest.run import ingest
from ingest.sources.folders import Folders, FoldersConfig
from ingest.sources.table import Table, TableConfig
from shards.console import UserError
from shards.verify import verify_dataset


def make(src: Path, table: str, **options) -> Table:
    for name in ("1.png", "deep/2.png"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(b"image")
    (src / "own.csv").write_text(table)
    return Table(TableConfig(src, src / "own.csv", **options))


def test_columns_by_option(tmp_path: Path):
    table = "who,file,what,set,view\n7,./1.png,b,train,PA\n,deep//2.png,a|b| ,test,\n"
    columns = {"path": "file", "labels": "what", "patient": "who", "split": "set", "view": "view"}
    options = {f"{name}_column": column for name, column in columns.items()}
    source = make(tmp_path, table, name="ours", **options)
    assert [(r.location, r.labels, r.patient, r.split, r.view) for r in source.records()] == [
        ("1.png", ("b",), "ours:7", "train_val", "PA"),
        ("deep/2.png", ("a", "b"), None, "test", None),
    ]
    assert source.vocabulary.names == ("a", "b")
    assert not source.vocabulary.exclusive
    assert [image.location for image in source.images()] == ["1.png", "deep/2.png"]


def test_a_patient_of_two_splits_stays_in_test(tmp_path: Path):
    table = "path,labels,who,set\n1.png,a,7,train\ndeep/2.png,b,7,test\n3.png,b,8,train\n"
    source = make(tmp_path, table, patient_column="who", split_column="set")
    assert [r.excluded for r in source.records()] == ["patient also in test", None, None]


def test_exclusive_when_every_row_has_one_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert make(tmp_path, "path,labels\n1.png,a\ndeep/2.png,b\n").vocabulary.exclusive
    assert capsys.readouterr().err == ""
    assert not make(tmp_path, "path,labels\n1.png,a\ndeep/2.png,\n").vocabulary.exclusive
    assert "1 rows of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "second", "splits"),
    [
        ("Training", "Testing", ("train_val", "test")),
        ("training", "Eval", ("train_val", "test")),
        ("TRAIN", "dev", ("train", "val")),
    ],
)
def test_splits_in_other_words(tmp_path: Path, first: str, second: str, splits: tuple[str, str]):
    table = f"path,labels,set\n1.png,a,{first}\ndeep/2.png,b,{second}\n"
    source = make(tmp_path, table, split_column="set")
    assert tuple(r.split for r in source.records()) == splits
    assert source.notes[0].startswith(f"names of splits: '{first}' as train, '{second}' as ")


def test_given_labels_keep_their_order(tmp_path: Path):
    table = "path,labels\n1.png,a\ndeep/2.png,b\n"
    assert make(tmp_path, table, labels=("b", "a", "c")).vocabulary.names == ("b", "a", "c")
    with pytest.raises(UserError, match="--labels b c lacks 'a'"):
        make(tmp_path, table, labels=("b", "c"))
    with pytest.raises(UserError, match="names a label twice"):
        make(tmp_path, table, labels=("a", "b", "b"))


def test_missing_images_are_counted(tmp_path: Path):
    long = "x" * 300
    source = make(tmp_path, f"path,labels\n1.png,a\n2.png,b\n{long},b\n")
    missing = Missing(2, "2 of the table's 3 images (such as 2.png)")
    assert source.surely_missing(source.records()) == missing
    with pytest.raises(UserError, match="none of the 2 images of"):
        make(tmp_path, "path,labels\n3.png,a\n4.png,b\n")


@pytest.mark.parametrize("path", ["/etc/passwd", "../1.png", "deep/../../1.png", ""])
def test_paths_stay_inside(tmp_path: Path, path: str):
    with pytest.raises(UserError, match=r"line 2 has the path .*; allowed: paths inside --src"):
        make(tmp_path, f"path,labels\n{path},a\n1.png,b\n")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,label\n1.png,a\n", "no column 'labels'; it has: path, label"),
        ("path,labels\n1.png,a\n./1.png,b\n", "more than once, such as 1.png"),
        ("path,labels\n1.png,a\n", "no two labels in 'labels'; found: a"),
        ("path,labels\n1.png,\n", "no two labels in 'labels'; found: none"),
        ("path,labels\n", "names no image"),
    ],
)
def test_wrong_tables(tmp_path: Path, table: str, message: str):
    with pytest.raises(UserError, match=message):
        make(tmp_path, table)


def test_wrong_options(tmp_path: Path):
    table = "path,labels,set\n1.png,a,fold 1\ndeep/2.png,b,test\n"
    with pytest.raises(UserError, match="2 has the split 'fold 1'; allowed: train, val, test, tra"):
        make(tmp_path, table, split_column="set")
    with pytest.raises(UserError, match=r"own\.csv: 'dev' and 'val' both mean the split val"):
        make(tmp_path, table.replace("fold 1", "dev").replace("test", "val"), split_column="set")
    with pytest.raises(UserError, match="--name"):
        make(tmp_path, table, name="a/b")
    with pytest.raises(UserError, match="cannot read the table"):
        Table(TableConfig(tmp_path, tmp_path / "none.csv"))
    with pytest.raises(UserError, match="no folder"):
        Table(TableConfig(tmp_path / "nowhere", tmp_path / "own.csv"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images in folders `a` and `b`, and `own.csv` that names them and one more."""
    src = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    rows = ["path,labels,patient", "b/none.png,b,99"]
    for number in range(24):
        path = src / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = rng.integers(0, 256, (12, 12), np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (96, 96), interpolation=cv2.INTER_CUBIC))
        rows.append(f"{path.relative_to(src)},{path.parent.name},{number // 2}")
    (src / "own.csv").write_text("\n".join(rows))
    return src


def test_a_table_becomes_shards(drawn: Path, tmp_path: Path):
    source = Table(
        TableConfig(drawn, drawn / "own.csv", "ours", ("b", "a"), patient_column="patient")
    )
    with pytest.raises(UserError, match=r"missing: 1 of the table's 25 images.*--allow-missing"):
        ingest(source, IngestConfig(tmp_path, workers=1, progress=False))
    config = IngestConfig(tmp_path, workers=1, progress=False, allow_missing=True)
    manifest = ingest(source, config)
    assert (manifest.dataset, manifest.labels, manifest.exclusive) == ("ours", ("b", "a"), True)
    assert sum(counts.samples for counts in manifest.splits.values()) == 24
    assert manifest.excluded == {"image missing": 1}
    assert not verify_dataset(tmp_path / "ours", lambda _: None)


def test_folders_become_shards(drawn: Path, tmp_path: Path):
    manifest = ingest(
        Folders(FoldersConfig(drawn)), IngestConfig(tmp_path, workers=1, progress=False)
    )
    assert (manifest.dataset, manifest.labels, manifest.exclusive) == ("folders", ("a", "b"), True)
    assert sum(counts.samples for counts in manifest.splits.values()) == 24
    assert not verify_dataset(tmp_path / "folders", lambda _: None)
