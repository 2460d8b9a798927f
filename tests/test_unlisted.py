"""What lies in a data set's folder and has no row or no folder of its own is counted and said, on
the console and in the manifest; so is the other way round."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ingest_runs import config, covid, nih
from test_covid_radiography import FIRST, fill
from test_folders import make_image

from ingest.estimate import estimate
from ingest.run import ingest
from ingest.sources.covid_chestxray import CovidChestxray, CovidChestxrayConfig
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from ingest.sources.kermany import Kermany, KermanyConfig
from ingest.sources.table import Table, TableConfig
from shards.console import UserError

TABLE = "4 images are in no row of the table, such as extra.png"


def images(folder: Path, *names: str) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        make_image(folder / name, rng)


def own_table(src: Path) -> Table:
    """Four images with a row, four without, and what is no image of anybody's."""
    images(src, *(f"{n}.png" for n in range(4)))
    images(src, "extra.png", "new/1.png", "new/2.png", "new/deep/3.png", ".hidden/x.png", "._0.png")
    (src / "notes.txt").write_text("no image")
    (src / "t.csv").write_text(
        "path,labels\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(4))
    )
    return Table(TableConfig(src, src / "t.csv"))


def collection(src: Path) -> CovidChestxray:
    images(src / "images", *(f"f{n}.png" for n in range(4)))
    images(src / "images", "extra.png", "old/1.png", "old/2.png", "old/3.png")
    images(src, "docs/figure.png")  # of the clone, beside its images
    rows = (f"{n},PA,{('COVID-19', 'No Finding')[n % 2]},f{n}.png" for n in range(4))
    (src / "metadata.csv").write_text("patientid,view,finding,filename\n" + "\n".join(rows))
    return CovidChestxray(CovidChestxrayConfig(src))


@pytest.mark.parametrize("make", [own_table, collection])
def test_images_without_a_row_are_counted(tmp_path, capsys, make):
    source = make(tmp_path / "src")
    manifest = ingest(source, config(tmp_path / "out", shorter_side=16))
    assert f"warning: {TABLE}; passed over\n" in capsys.readouterr().err
    assert f"{TABLE}; passed over" in manifest.notes
    assert sum(split.samples for split in manifest.splits.values()) == 4
    assert estimate(source, config(tmp_path / "out", shorter_side=16)).unlisted == TABLE


def test_rows_without_an_image_are_counted(tmp_path):
    own_table(tmp_path / "src")
    (tmp_path / "src/3.png").unlink()
    source = Table(TableConfig(tmp_path / "src", tmp_path / "src/t.csv"))
    with pytest.raises(UserError, match="1 of the table's 4 images"):
        ingest(source, config(tmp_path / "out", shorter_side=16))
    manifest = ingest(source, config(tmp_path / "out", shorter_side=16, allow_missing=True))
    assert manifest.excluded == {"image missing": 1}
    assert f"{TABLE}; passed over" in manifest.notes


@pytest.mark.parametrize("around", ["", "COVID-19 Radiography Database/"])
def test_images_beside_the_folders_that_are_read(tmp_path, around):
    inside = ["COVID/images/1.png", "Normal/images/1.png", "Viral Pneumonia/images/1.png"]
    masks = ["COVID/masks/1.png", "Normal/masks/1.png"]
    beside = ["COVID/2.png", "COVID/images/more/3.png", "Normal/old/4.png", "Tuberculosis/5.png"]
    fill(tmp_path, [around + name for name in inside + masks])
    source = CovidRadiography(CovidRadiographyConfig(tmp_path))
    assert source.unlisted(source.records()) is None
    fill(tmp_path, [around + name for name in beside])
    said = f"4 images are in none of the folders that are read, such as {around}COVID/2.png"
    assert source.unlisted(source.records()) == said
    plain = CovidRadiography(CovidRadiographyConfig(fill(tmp_path / "first", FIRST)))
    assert plain.unlisted(plain.records()) is None


def test_a_copy_of_kermanys_folders_is_counted(tmp_path):
    names = [
        f"{split}/{folder}" for split in ("train", "test") for folder in ("NORMAL", "PNEUMONIA")
    ]
    fill(tmp_path, [f"chest_xray/{name}/person1_virus_{n}.jpeg" for n, name in enumerate(names)])
    source = Kermany(KermanyConfig(tmp_path))
    assert source.unlisted(source.records()) is None
    fill(tmp_path, ["chest_xray/chest_xray/train/NORMAL/IM-1.jpeg", "chest_xray/IM-2.jpeg"])
    assert source.unlisted(source.records()).startswith("2 images are in none of the folders")


def test_images_of_archives_without_a_row_are_counted(tiny_raw, tmp_path, capsys):
    shutil.copytree(tiny_raw / "chestxray14", tmp_path / "raw/chestxray14")
    src = tmp_path / "raw/chestxray14"
    images(src, "images_013/images/99999999_000.png", "loose.png")
    with tarfile.open(src / "images_003.tar.gz", "w:gz") as archive:
        for name in ("images/99999999_001.png", "images/99999999_002.png", "images/list.txt"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    source = nih(tmp_path / "raw")
    manifest = ingest(source, config(tmp_path / "out", format="png"))
    said = capsys.readouterr().err
    for text in (
        "2 images are in no row of the table, such as images_013/images/99999999_000.png",
        "2 images of images_003.tar.gz are in no row of the table",
    ):
        assert said.count(f"warning: {text}; passed over\n") == 1
        assert f"{text}; passed over" in manifest.notes


def test_the_usual_download_is_silent(tiny_raw):
    for source in (nih(tiny_raw), covid(tiny_raw)):
        assert source.unlisted(source.records()) is None
