"""ingest.sources.figure1: Latin-1, files found by the patient, several images of one patient."""

from pathlib import Path

import pytest

from ingest.record import Missing
from ingest.sources.figure1 import Figure1, Figure1Config
from shards.console import UserError

TABLE = (
    "patientid,offset,sex,age,finding,survival,temperature,pO2 saturation,view,modality,"
    "artifacts/distortion,notes\n"
    "COVID-00001,13,M,33,COVID-19,,,58,AP erect,X-ray,,\n"
    "COVID-00007,,,50+,,,38+,,,X-ray,,Fever 38° + cough\n"
    "COVID-00015a,,,67+,COVID-19,,,,,X-ray,,\n"
    "COVID-00015b,,,67+,COVID-19,,,,,X-ray,,\n"
    "COVID-00023,,,,No finding,,,,,X-ray,,\n"
    "COVID-00031,,,,Pneumonia,,,,,X-ray,,\n"
)


def make(src: Path, table: str = TABLE) -> Figure1:
    (src / "images").mkdir(exist_ok=True)
    for name in ("COVID-00001.jpg", "COVID-00015a.png", "COVID-00015b.png", "COVID-00023.jpg"):
        (src / "images" / name).write_bytes(b"image")
    (src / "metadata.csv").write_bytes(table.encode("latin-1"))
    return Figure1(Figure1Config(src))


def test_table(tmp_path: Path):
    source = make(tmp_path)
    records = source.records()
    assert [(r.location, r.labels, r.patient, r.age, r.excluded) for r in records] == [
        ("COVID-00001.jpg", ("COVID-19",), "figure1:COVID-00001", 33, None),
        ("COVID-00007.jpg", (), "figure1:COVID-00007", None, "finding is blank"),
        ("COVID-00015a.png", ("COVID-19",), "figure1:COVID-00015", None, None),
        ("COVID-00015b.png", ("COVID-19",), "figure1:COVID-00015", None, None),
        ("COVID-00023.jpg", ("Not COVID-19",), "figure1:COVID-00023", None, None),
        ("COVID-00031.jpg", ("Not COVID-19",), "figure1:COVID-00031", None, None),
    ]
    missing = source.surely_missing(records)
    assert missing == Missing(1, "1 of the table's 5 images (such as COVID-00031.jpg)")


def test_flaws(tmp_path: Path):
    with pytest.raises(UserError, match=r"more than once, such as COVID-00001\.jpg"):
        make(tmp_path, TABLE + "COVID-00001,,,,COVID-19,,,,,X-ray,,\n").records()
    with pytest.raises(UserError, match="line 8: no image is named"):
        make(tmp_path, TABLE + ",,,,COVID-19,,,,,X-ray,,\n").records()
    with pytest.raises(UserError, match="line 2: finding 'Corona' is not known"):
        make(tmp_path, TABLE.replace("COVID-19", "Corona")).records()
    with pytest.raises(UserError, match="no column 'finding'"):
        make(tmp_path, TABLE.replace("finding,", "diagnosis,", 1)).records()
    (tmp_path / "images/COVID-00001.png").write_bytes(b"image")
    with pytest.raises(UserError, match=r"both COVID-00001\.jpg and COVID-00001\.png"):
        make(tmp_path)
