"""DICOM files that cannot be read are counted once, with the true reason, and their owner can find
them; what is missing is something else."""

import csv
import gzip
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dicom_maker import picture, table, write
from test_dicom_source import _counts, config, samples, source

from ingest.estimate import estimate
from ingest.retry import retry
from ingest.run import ingest
from shards.console import UserError
from shards.verify import verify_dataset

NAME = "Doe^Jane"


def make(tmp_path: Path, *extra_rows: str) -> tuple[Path, Path, Path]:
    """Six images, whose rows are by UID."""
    src = tmp_path / "src"
    for n in range(6):
        ids = {"SOPInstanceUID": f"1.2.{n}", "PatientID": f"patient{n}"}
        write(src / f"{NAME} {n}.dcm", picture(n), bits=12, **ids)
    rows = [f"1.2.{n},{'Mass' if n % 2 else 'Edema'}" for n in range(6)]
    return src, table(tmp_path / "labels.csv", *rows, *extra_rows), tmp_path / "key"


def rows_of(path: Path) -> dict[str, tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["hash"]: (row["path"], row["problem"]) for row in csv.DictReader(file)}


def cut(path: Path, size: int) -> bytes:
    data = path.read_bytes()
    path.write_bytes(data[:size])
    return data


def test_unread_files_are_no_missing_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One cut behind its UID, one called by its UID, one whose row nobody can tell, in 6 rows."""
    src, labels, key = make(tmp_path)
    whole = tmp_path / "whole"
    shutil.copytree(src, whole)
    cut(src / f"{NAME} 0.dcm", 400)
    (src / "1.2.1.dcm").write_bytes(gzip.compress((src / f"{NAME} 1.dcm").read_bytes()))
    (src / f"{NAME} 1.dcm").unlink()
    cut(src / f"{NAME} 2.dcm", 0)
    for name in ("DICOMDIR", "__MACOSX/._x.dcm", ".DS_Store", "notes.txt"):
        (src / name).parent.mkdir(exist_ok=True)
        (src / name).write_bytes(b"no image")
    out = config(tmp_path / "out", max_bad=1.0, allow_missing=False)
    manifest = ingest(source(src, labels, key), out)
    assert (_counts(manifest), manifest.excluded) == (3, {"quarantined": 3})
    said = capsys.readouterr().err.replace("\n", " ")
    assert "3 files cannot be read (" in said
    for reason in (
        "1 unread header: it is cut short",
        "1 not a DICOM file (a gzip file)",
        "1 not a DICOM file (no DICOM preamble)",
    ):
        assert reason in said
    assert f"they go to quarantine, and {tmp_path}/key.dicom.csv names them" in said
    assert "complete the download" not in said
    rest = "1 of the label table's 6 rows are for no file in --src that can be read; 1 files there"
    assert f"missing: {rest} cannot be, and may be theirs" in manifest.notes
    passed = "4 files or links are not DICOM or are a system's own; passed over"
    assert passed in manifest.notes
    assert f"warning: {passed}" in said
    assert "Doe" not in said
    bad = pq.read_table(tmp_path / "out/dicom/quarantine.parquet").to_pylist()
    found = rows_of(tmp_path / "key.dicom.csv")
    assert (tmp_path / "key.dicom.csv").stat().st_mode & 0o777 == 0o600
    assert {found[row["member"].removesuffix(".dcm")] for row in bad} == {
        (f"{NAME} 0.dcm", "unread header: it is cut short; its row is known by its SOPInstanceUID"),
        ("1.2.1.dcm", "not a DICOM file (a gzip file)"),
        (f"{NAME} 2.dcm", "not a DICOM file (no DICOM preamble)"),
    }
    assert len(found) == 6
    assert {row["reason"] for row in bad} == {problem for _, problem in found.values() if problem}
    in_shards = {row["file"].removesuffix(".dcm") for row in samples(tmp_path / "out").values()}
    assert {found[one][0] for one in in_shards} == {f"{NAME} {n}.dcm" for n in (3, 4, 5)}
    for path in whole.iterdir():
        shutil.copy(path, src / path.name)
    shutil.copy(whole / f"{NAME} 1.dcm", src / "1.2.1.dcm")
    (src / f"{NAME} 1.dcm").unlink()
    manifest = retry(source(src, labels, key), out)
    assert (_counts(manifest), manifest.excluded) == (6, {})
    assert not any("missing" in note for note in manifest.notes)
    assert verify_dataset(tmp_path / "out/dicom", lambda n: None) == []


def test_missing_files_beside_unread_ones_stop_the_run(tmp_path: Path):
    src, labels, key = make(tmp_path, "1.2.98,Mass", "1.2.99,Edema")
    cut(src / f"{NAME} 0.dcm", 0)
    told = (
        "missing: 3 of the label table's 8 rows are for no file in --src that can be read; 1 files "
        f"there cannot be, and may be theirs; fetch again the files that {tmp_path}/key.dicom.csv"
    )
    with pytest.raises(UserError) as caught:
        ingest(source(src, labels, key), config(tmp_path / "out", allow_missing=False, max_bad=1.0))
    assert str(caught.value).startswith(told)
    found = estimate(source(src, labels, key), config(tmp_path / "out"))
    assert str(found.missing).startswith("3 of the label table's 8 rows")
    manifest = ingest(source(src, labels, key), config(tmp_path / "out", max_bad=1.0))
    assert manifest.excluded == {"quarantined": 1, "image missing": 3}


def test_a_map_below_the_source_changes_nothing(tmp_path: Path):
    src, labels, _ = make(tmp_path)
    key = src / "key"
    source(src, labels, key).records()
    first = ingest(source(src, labels, key), config(tmp_path / "out"))
    assert (src / "key.dicom.csv").is_file()
    assert ingest(source(src, labels, key), config(tmp_path / "out")) == first


def test_a_map_that_cannot_be_written_is_a_warning(tmp_path: Path, capsys):
    src, labels, key = make(tmp_path)
    (tmp_path / "key.dicom.csv").mkdir()
    assert len(source(src, labels, key).records()) == 6
    assert "cannot write" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
