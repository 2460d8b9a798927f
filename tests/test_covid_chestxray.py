"""ingest.sources.covid_chestxray: every header and finding its table ever had."""

from collections import Counter
from pathlib import Path

import pytest

from ingest.covid_findings import covid_label
from ingest.record import Missing
from ingest.sources.covid_chestxray import CovidChestxray, CovidChestxrayConfig
from shards.console import UserError

FIRST = (
    "Patientid,offset,sex,age,finding,survival,view,date,location,filename,doi, url,license,notes"
)
MARCH = (
    "Patientid,offset,sex,age,finding,survival,view,modality,date,location,filename,doi, url,"
    "license,clinical notes,other notes,"
)
LAST = (
    "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,"
    "went_icu,in_icu,needed_supplemental_O2,extubated,temperature,pO2_saturation,leukocyte_count,"
    "neutrophil_count,lymphocyte_count,view,modality,date,location,folder,filename,doi,url,license,"
    "clinical_notes,other_notes,"
)


def row(header: str, **cells: str) -> str:
    names = [name.strip().casefold() for name in header.split(",")]
    assert cells.keys() <= set(names)
    return ",".join(f'"{cells.get(name, "")}"' for name in names)


def make(src: Path, header: str, *rows: dict[str, str]) -> CovidChestxray:
    (src / "images").mkdir(parents=True, exist_ok=True)
    (src / "images/there.png").write_bytes(b"png")
    table = "\n".join([header, *(row(header, **cells) for cells in rows)])
    (src / "metadata.csv").write_text(table)
    return CovidChestxray(CovidChestxrayConfig(src))


def cells(**changes: str) -> dict[str, str]:
    usual = {"patientid": "2", "sex": "M", "age": "65", "finding": "COVID-19", "view": "PA"}
    return usual | {"filename": "there.png"} | changes


@pytest.mark.parametrize("header", [FIRST, MARCH, LAST])
def test_headers(tmp_path: Path, header: str):
    source = make(tmp_path, header, cells())
    (record,) = source.records()
    assert (record.location, record.labels) == ("there.png", ("COVID-19",))
    assert (record.patient, record.view) == ("covid-chestxray:2", "PA")
    assert (record.age, record.sex) == (65, "M")
    assert record.excluded is None
    assert [image.location for image in source.images()] == ["there.png"]
    assert source.surely_missing([record]) is None


@pytest.mark.parametrize(
    ("finding", "label"),
    [
        ("COVID-19", "COVID-19"),
        ("COVID-19, ARDS", "COVID-19"),
        ("COVID-19 and ARDS", "COVID-19"),
        ("Pneumonia/Viral/COVID-19", "COVID-19"),
        ("Pneumonia/Viral/Herpes ", "Not COVID-19"),
        ("Herpes pneumonia, ARDS", "Not COVID-19"),
        ("Pneumonia/Viral/Influenza/H1N1", "Not COVID-19"),
        ("Pneumonia/Bacterial/Staphylococcus/MRSA", "Not COVID-19"),
        ("Swine-Origin Influenza A (H1N1) Viral Pneumonia", "Not COVID-19"),
        ("Allergic bronchopulmonary aspergillosis ", "Not COVID-19"),
        ("Spinal Tuberculosis", "Not COVID-19"),
        ("Pneumonia", "Not COVID-19"),
        ("No Finding", "Not COVID-19"),
        ("todo", None),
        ("Unknown", None),
        ("", None),
    ],
)
def test_findings(finding: str, label: str | None):
    assert covid_label(finding) == label


@pytest.mark.parametrize("finding", ["Covid19", "COVID-19 pneumonia", "coronavirus", "Cat", "/"])
def test_strange_findings_never_pass_for_healthy(tmp_path: Path, finding: str):
    with pytest.raises(
        UserError, match=r"metadata.csv line 2: finding .* is not known.*No Finding"
    ):
        make(tmp_path, LAST, cells(finding=finding)).records()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"view": "L"}, "lateral view"),
        ({"view": "Axial", "modality": "CT"}, "CT slice"),
        ({"view": "Coronal"}, "CT slice"),
        ({"view": "Axial", "modality": "CT", "filename": "a.nii.gz"}, "CT volume"),
        ({"modality": "MRI"}, "modality 'MRI' is no radiograph"),
        ({"view": "Oblique"}, "view 'Oblique' is not known as frontal"),
        ({"finding": "todo"}, "finding is todo"),
        ({"finding": "Unknown"}, "finding is Unknown"),
        ({"finding": " "}, "finding is blank"),
        ({"view": "AP semi erect"}, None),
        ({"view": "AP Erect", "modality": "X-ray"}, None),
        ({"view": "AP Supine"}, None),
    ],
)
def test_exclusions(tmp_path: Path, changes: dict[str, str], reason: str | None):
    (record,) = make(tmp_path, LAST, cells(**changes)).records()
    assert record.excluded == reason


def test_the_first_version_tells_ct_by_the_view(tmp_path: Path):
    (record,) = make(tmp_path, FIRST, cells(view="CT")).records()
    assert record.excluded == "CT slice"


def test_missing_images_are_counted(tmp_path: Path):
    source = make(
        tmp_path, LAST, cells(), cells(filename="b.png"), cells(filename="c.png", view="L")
    )
    missing = Missing(1, "1 of the table's 2 images (such as b.png)")
    assert source.surely_missing(source.records()) == missing


def test_bad_downloads(tmp_path: Path):
    with pytest.raises(UserError, match="no folder"):
        CovidChestxray(CovidChestxrayConfig(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no metadata\.csv"):
        CovidChestxray(CovidChestxrayConfig(tmp_path))
    (tmp_path / "metadata.csv").write_text(LAST)
    with pytest.raises(UserError, match="no images in"):
        CovidChestxray(CovidChestxrayConfig(tmp_path))
    with pytest.raises(UserError, match=r"more than once, such as there\.png"):
        make(tmp_path, LAST, cells(), cells(patientid="3")).records()
    with pytest.raises(UserError, match=r"no column 'view'"):
        make(tmp_path, LAST.replace(",view", ",position")).records()
    with pytest.raises(UserError, match="line 2: no image is named"):
        make(tmp_path, LAST, cells(filename="")).records()
    with pytest.raises(UserError, match="names no image"):
        make(tmp_path, LAST).records()


def test_the_real_table(shared_data: Path):
    source = CovidChestxray(CovidChestxrayConfig(shared_data / "covid-chestxray-dataset"))
    records = source.records()
    assert len(records) == 146
    assert Counter(r.excluded for r in records) == {None: 112, "CT slice": 23, "lateral view": 11}
    missing = source.surely_missing(records)
    assert missing
    assert missing.images == 77
    assert missing.text.startswith("77 of the table's 112 images")
    there = [r for r in records if r.location in source.files and not r.excluded]
    assert Counter(label for r in there for label in r.labels) == {
        "COVID-19": 12,
        "Not COVID-19": 23,
    }
