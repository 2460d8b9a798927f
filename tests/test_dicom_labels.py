"""ingest.dicom_labels: the table of labels, and lists by its ids."""

import os
from pathlib import Path

import pytest
from dicom_maker import picture, table, write
from test_dicom_source import config, samples, small_set, source

from ingest.dicom_labels import read_labels
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from shards.console import UserError
from shards.verify import verify_dataset


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_tables_are_utf_8_or_windows_1252(tmp_path: Path, encoding: str):
    src = tmp_path / "src"
    write(src / "Müller.dcm", picture(0), bits=12, SOPInstanceUID="1.2.0")
    old = Path(os.fsdecode(os.fsencode(src / "B") + b"\xf6hm.dcm"))  # of a file system in Latin-1
    write(old, picture(1), bits=12, SOPInstanceUID="1.2.1")
    write(src / "c.dcm", picture(2), bits=12, SOPInstanceUID="1.2.2")
    text = "id,labels\nMüller.dcm,Ödem\nBöhm.dcm,Ödem|Maß\n1.2.2,Maß\n"
    labels = tmp_path / "labels.csv"
    labels.write_bytes(text.encode(encoding))
    if encoding == "utf-8":
        labels.write_text(text.replace("Böhm.dcm", "1.2.1"))
    manifest = ingest(source(src, labels, tmp_path / "key"), config(tmp_path / "out"))
    assert manifest.labels == ("Maß", "Ödem")
    assert len(samples(tmp_path / "out")) == 3
    assert manifest.excluded == {}
    assert verify_dataset(tmp_path / "out/dicom", lambda _: None) == []
    labels.write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match="is UTF-16; save it as CSV in UTF-8"):
        source(src, labels, tmp_path / "key")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,labels", "x,a"], "no column 'id'"),
        (["id,labels", "x"], "line 2 has only 1 fields, the header 2"),
        (["id,labels", ",a"], "line 2 has no id"),
        (["id,labels", "x,a", "x,b"], "lines 2 and 3 are for the same id"),
        (["id,labels,split", "x,a,secret"], "line 2 has another split"),
        (["id,labels"], "no rows"),
        (["id,labels", "study0/image0.dcm,a", "1.2.0,b"], "lines 2 and 3 are for one file"),
    ],
)
def test_wrong_tables(tmp_path: Path, lines, message):
    src, _, key = small_set(tmp_path)
    labels = tmp_path / "wrong.csv"
    labels.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message) as caught:
        source(src, labels, key).records()
    assert "secret" not in str(caught.value)


def test_splits_in_other_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "labels.csv"
    path.write_text("id,labels,split\nx,a,Training\ny,b,Eval\nz,b,training_set\n")
    assert [row.split for row in read_labels(path)] == ["train", "test", "train"]
    assert "'Training' as train, 'training_set' as train, 'Eval' as test" in capsys.readouterr().err
    path.write_text("id,labels,split\nx,a,valid\ny,b,dev\n")
    with pytest.raises(UserError, match="'valid' and 'dev' both mean the split val"):
        read_labels(path)


def test_a_vocabulary_and_given_splits(tmp_path: Path):
    src, _, key = small_set(tmp_path)
    splits = ["test", "train", "train", "train", "test", "train"]
    rows = [f"1.2.{n},{'ab'[n % 2]},{split}" for n, split in enumerate(splits)]
    labels = table(tmp_path / "l.csv", *rows, header="id,labels,split")
    manifest = ingest(source(src, labels, key, labels=("b", "a")), config(tmp_path / "out"))
    assert (manifest.labels, manifest.exclusive) == (("b", "a"), True)
    assert manifest.excluded == {"patient also in test": 2}
    assert manifest.splits["test"].samples == 2
    with pytest.raises(UserError, match="line 2 has a label that --labels lacks"):
        source(src, labels, key, labels=("b", "c"))


def test_lists_by_path_by_uid_and_as_saved(tmp_path: Path):
    src, labels, key = small_set(tmp_path)
    (tmp_path / "no.txt").write_text("./study0/image0.dcm\n1.2.1\nplanted^name.dcm\n")
    half = SelectionConfig(exclude=tmp_path / "no.txt", fractions=(0.5, 0.0, 0.5))
    chosen = select(source(src, labels, key), half)
    manifest = ingest(chosen, config(tmp_path / "out"))
    assert manifest.excluded == {"in the exclusion list": 2}
    lists = tmp_path / "out/dicom/lists"
    given = {f"{p.stem}_list": p for p in lists.iterdir()}
    again = ingest(
        select(source(src, labels, key), SelectionConfig(**given)), config(tmp_path / "again")
    )
    assert again.splits == manifest.splits
    for path in lists.iterdir():
        assert (tmp_path / "again/dicom/lists" / path.name).read_bytes() == path.read_bytes()
