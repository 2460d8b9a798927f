"""ingest.sources.actualmed: its column for the file, and inconclusive rows."""

from pathlib import Path

import pytest

from ingest.sources.actualmed import Actualmed, ActualmedConfig
from shards.console import UserError

HEADER = (
    "patientid,offset,sex,age,finding,survival,temperature,pO2 saturation,view,modality,imagename,"
    "artifacts/distortion,notes\n"
)
ROWS = (
    'ANON196,,,,,,,,PA,X-ray,CR.1.2.1.png,,"Inconclusive, date taken (YYYYMMDD): 20200313"\n'
    "ANON56,,,,No finding,,,,PA,X-ray,CR.1.2.2.png,,Negative\n"
    "ANON196,,,,COVID-19,,,,AP,X-ray,CR.1.2.3.png,,\n"
)


def make(src: Path, table: str) -> Actualmed:
    (src / "images").mkdir(exist_ok=True)
    for name in ("CR.1.2.2.png", "CR.1.2.3.png"):
        (src / "images" / name).write_bytes(b"png")
    (src / "metadata.csv").write_text(table)
    return Actualmed(ActualmedConfig(src))


def test_table(tmp_path: Path):
    source = make(tmp_path, HEADER + ROWS)
    records = source.records()
    assert [(r.location, r.labels, r.patient, r.view, r.excluded) for r in records] == [
        ("CR.1.2.1.png", (), "actualmed:ANON196", "PA", "finding is blank"),
        ("CR.1.2.2.png", ("Not COVID-19",), "actualmed:ANON56", "PA", None),
        ("CR.1.2.3.png", ("COVID-19",), "actualmed:ANON196", "AP", None),
    ]
    assert source.surely_missing(records) is None
    assert source.vocabulary.names == ("Not COVID-19", "COVID-19")


def test_flaws(tmp_path: Path):
    with pytest.raises(UserError, match="no column 'imagename'"):
        make(tmp_path, HEADER.replace("imagename", "filename") + ROWS).records()
    with pytest.raises(UserError, match="more than once"):
        make(tmp_path, HEADER + ROWS + ROWS).records()
    with pytest.raises(UserError, match="line 3: finding 'Covid' is not known"):
        make(tmp_path, HEADER + ROWS.replace("No finding", "Covid")).records()
    with pytest.raises(UserError, match="no folder"):
        Actualmed(ActualmedConfig(tmp_path / "nowhere"))
