"""ingest.sources.covid_radiography: three published layouts, patients, exclusions."""

from pathlib import Path

import pytest

from ingest.selection import SelectionConfig, select
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from shards.console import UserError


def fill(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")
    return root


FIRST = [
    "COVID-19/COVID-19 (1).png",
    "COVID-19.metadata.xlsx",
    "NORMAL/IM-0115-0001.jpeg",
    "NORMAL/NORMAL2-IM-1274-0001.jpeg",
    "NORMAL/NORMAL2-IM-0983-0001-0002.jpeg",
    "Viral Pneumonia/person1_virus_6 (1).jpeg",
    "Viral Pneumonia/.DS_Store",
]


def records(src: Path, **options):
    source = select(CovidRadiography(CovidRadiographyConfig(src)), SelectionConfig(**options))
    found = source.records()
    assert [image.location for image in source.images()] == [r.location for r in found]
    assert len({r.key for r in found}) == len(found)
    return {r.location: r for r in found}


def test_first_version(tmp_path: Path):
    found = records(fill(tmp_path, FIRST))
    assert {name: r.labels for name, r in found.items()} == {
        "COVID-19/COVID-19 (1).png": ("COVID-19",),
        "NORMAL/IM-0115-0001.jpeg": ("Normal",),
        "NORMAL/NORMAL2-IM-1274-0001.jpeg": ("Normal",),
        "NORMAL/NORMAL2-IM-0983-0001-0002.jpeg": ("Normal",),
        "Viral Pneumonia/person1_virus_6 (1).jpeg": ("Viral Pneumonia",),
    }
    patients = [r.patient for r in found.values()]
    assert patients == [
        None,
        "covid-radiography:IM-0115",
        "covid-radiography:NORMAL2-IM-0983",
        "covid-radiography:NORMAL2-IM-1274",
        "covid-radiography:person1",
    ]


def test_one_folder_around_it(tmp_path: Path):
    fill(tmp_path / "COVID-19 Radiography Database", FIRST)
    assert "COVID-19/COVID-19 (1).png" in records(tmp_path)


def test_version_of_2021(tmp_path: Path):
    names = [
        f"{folder}/{part}/{folder}-1.png"
        for folder in ("COVID", "Normal", "Viral Pneumonia", "Lung_Opacity")
        for part in ("images", "masks")
    ]
    found = records(fill(tmp_path / "COVID-19_Radiography_Dataset", names).parent)
    assert len(found) == 4
    assert found["COVID/images/COVID-1.png"].labels == ("COVID-19",)
    assert "not in the vocabulary" in (
        found["Lung_Opacity/images/Lung_Opacity-1.png"].excluded or ""
    )


def test_metadata_tables_are_passed_over(tmp_path: Path):
    """One of the first version's is misspelt."""
    tables = ("COVID-19.metadata.xlsx", "NORMAL.metadata.xlsx", "Viral Pneumonia.matadata.xlsx")
    fill(tmp_path, [*FIRST, *tables, "README.md.txt", "NORMAL/Thumbs.db"])
    assert len(records(tmp_path)) == 5


@pytest.mark.parametrize("normal", ["NORMAL", "Normal"])
def test_second_version_calls_it_covid(tmp_path: Path, normal: str):
    names = ["COVID/COVID (1).png", f"{normal}/{normal} (1).png", "Viral Pneumonia/V (1).png"]
    found = records(fill(tmp_path / "db", [*names, "COVID.metadata.xlsx"]).parent)
    assert {name: r.labels for name, r in found.items()} == {
        names[0]: ("COVID-19",),
        names[1]: ("Normal",),
        names[2]: ("Viral Pneumonia",),
    }


def test_flat_copies_of_2021(tmp_path: Path):
    """Without images/ and masks/; and one class flat beside others that are not."""
    names = [f"{folder}/{folder}-1.png" for folder in ("COVID", "Normal", "Lung_Opacity")]
    found = records(fill(tmp_path, [*names, "Viral Pneumonia/images/V-1.png"]))
    assert list(found) == [names[0], names[2], names[1], "Viral Pneumonia/images/V-1.png"]
    assert [name for name, r in found.items() if r.excluded] == [names[2]]
    assert all(r.patient is None for r in found.values())


def test_exclusions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fill(tmp_path / "db", FIRST)
    listed = tmp_path / "exclude.txt"
    listed.write_text("db/COVID-19/COVID-19 (1).png\n\nNORMAL/IM-0115-0001.jpeg\nNORMAL/typo.png\n")
    found = records(tmp_path, exclude=listed)
    assert [name for name, r in found.items() if r.excluded] == [
        "COVID-19/COVID-19 (1).png",
        "NORMAL/IM-0115-0001.jpeg",
    ]
    assert "1 names" in capsys.readouterr().err


def test_wrong_folders(tmp_path: Path):
    with pytest.raises(UserError, match="no folder"):
        records(tmp_path / "nowhere")
    fill(tmp_path, ["COVID/1.png", "Normal/1.png"])
    with pytest.raises(UserError, match=r"expected COVID-19 .* found: COVID, Normal"):
        records(tmp_path)


def test_real_names_carry_the_patient(shared_data: Path):
    found = records(shared_data / "covid-radiography")
    assert len(found) == 228
    known = [r for r in found.values() if r.labels != ("COVID-19",)]
    assert len(known) == 150
    assert all(r.patient for r in known)


def test_other_files_of_the_class_folders_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fill(tmp_path, [*FIRST, "NORMAL/1.dcm", "COVID-19/masks/1.txt", "COVID-19/2.jfif"])
    source = select(
        CovidRadiography(CovidRadiographyConfig(tmp_path)), SelectionConfig(test_per_class=1)
    )
    assert source.notes == ("1 files are no images by their names (1 .dcm); passed over",)
    assert capsys.readouterr().err.count("warning: 1 files are no images") == 1
    assert "COVID-19/2.jfif" in {r.location for r in source.records()}
