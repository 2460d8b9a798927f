"""DICOM files that go to quarantine, and their retry."""

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from dicom_maker import picture, write
from test_dicom_source import _counts, config, samples, small_set, source

from ingest.record import Source
from ingest.retry import retry
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from shards.codec import BadImage
from shards.console import RunFailed, UserError
from shards.dicom_header import read_header
from shards.verify import verify_dataset


@pytest.mark.parametrize("row", [True, False])
def test_an_image_that_is_called_dicom_goes_to_quarantine(tmp_path: Path, row: bool):
    src, labels, key = small_set(tmp_path)
    png = cv2.imencode(".png", np.arange(4096, dtype=np.uint8).reshape(64, 64))[1].tobytes()
    for name in ("screen.dcm", "photo.DICOM"):
        (src / name).write_bytes(png)
    (src / "plain.png").write_bytes(png)
    if row:
        with labels.open("a") as file:
            file.write("screen.dcm,Mass\nphoto.DICOM,Mass\n")
    manifest = ingest(source(src, labels, key), config(tmp_path / "out"))
    assert _counts(manifest) == 6
    assert manifest.excluded == {"quarantined": 2}
    bad = pq.read_table(tmp_path / "out/dicom/quarantine.parquet").to_pylist()
    assert {(r["reason"], r["sha256"]) for r in bad} == {
        ("not a DICOM file (a PNG image)", hashlib.sha256(png).hexdigest())
    }


def test_a_header_that_is_unread_keeps_the_image_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its pixels decode; the disk failed when the header was read, in a run that goes on."""
    src, labels, key = small_set(tmp_path)

    def fail(*_, **__):
        raise RunFailed("the server is gone")

    monkeypatch.setattr("ingest.run.assemble", fail)
    with pytest.raises(RunFailed):
        ingest(source(src, labels, key), config(tmp_path / "out"))  # all are in the spool
    monkeypatch.undo()
    calls = []

    def failing(stream):
        calls.append(stream)
        if len(calls) == 2:
            raise BadImage("cannot be read: Input/output error")
        return read_header(stream)

    monkeypatch.setattr("ingest.sources.dicom.read_header", failing)
    manifest = ingest(source(src, labels, key), config(tmp_path / "out"))
    assert (_counts(manifest), manifest.excluded) == (5, {"quarantined": 1})
    (bad,) = pq.read_table(tmp_path / "out/dicom/quarantine.parquet").to_pylist()
    assert bad["reason"] == "unread header: cannot be read: Input/output error"
    plain = config(tmp_path / "out")
    assert _counts(retry(source(src, labels, key), plain)) == 6
    assert verify_dataset(tmp_path / "out/dicom", lambda n: None) == []
    rest = samples(tmp_path / "out")
    assert {r["patient"] is None for r in rest.values()} == {False}
    assert len(rest) == 6


@pytest.mark.parametrize("selected", [False, True])
def test_a_file_that_is_mended_is_found_by_retry(tmp_path: Path, selected: bool):
    """Cut in its header, no DICOM at all, burnt-in words: each has other metadata once mended."""
    src, labels, key = small_set(tmp_path)
    whole = tmp_path / "whole"
    shutil.copytree(src, whole)
    (src / "study0/image1.dcm").write_bytes(b"<html>not found</html>")
    for n in (3, 4):  # whose rows are by UID, so that theirs are without a file
        path = src / f"study{n // 2}/image{n}.dcm"
        path.write_bytes(path.read_bytes()[:150])
    write(
        src / "study2/image5.dcm",
        picture(5),
        bits=12,
        SOPInstanceUID="1.2.5",
        PatientID="patient3",
        PatientSex="F",
        PatientAge="058Y",
        BurnedInAnnotation="YES",
    )

    def dicom() -> Source:
        given = SelectionConfig(fractions=(0.5, 0.2, 0.3)) if selected else SelectionConfig()
        return select(source(src, labels, key), given)

    out = tmp_path / "out"
    manifest = ingest(dicom(), config(out, max_bad=1.0))
    assert (_counts(manifest), manifest.excluded) == (2, {"quarantined": 4})
    for path in ("study0/image1.dcm", "study2/image5.dcm", "study1/image3.dcm"):
        shutil.copy(whole / path, src / path)
    manifest = retry(dicom(), config(out))
    assert (_counts(manifest), manifest.excluded) == (5, {"quarantined": 1})
    assert manifest.notes[0].startswith("missing: 1 of the label table's 6 rows")
    shutil.copy(whole / "study2/image4.dcm", src / "study2/image4.dcm")
    manifest = retry(dicom(), config(out))
    assert (_counts(manifest), manifest.excluded) == (6, {})
    assert not any("missing" in note for note in manifest.notes)
    assert verify_dataset(out / "dicom", lambda n: None) == []
    assert ingest(dicom(), config(out)) == manifest
    fresh = tmp_path / "fresh"
    ingest(source(whole, labels, key), config(fresh))
    assert samples(out).keys() == samples(fresh).keys()


def test_what_else_changed_is_refused_by_retry(tmp_path: Path):
    src, labels, key = small_set(tmp_path)
    path = src / "study0/image1.dcm"
    data = path.read_bytes()
    path.write_bytes(data[:150])
    ingest(source(src, labels, key), config(tmp_path / "out"))
    path.write_bytes(data)
    text = labels.read_text()
    labels.write_text(text.replace("1.2.3,Mass", "1.2.3,Edema"))
    with pytest.raises(UserError, match="metadata_sha256"):
        retry(source(src, labels, key), config(tmp_path / "out"))
