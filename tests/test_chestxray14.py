"""ingest.sources.chestxray14: the published layouts, and what is wrong with real downloads."""

import io
import tarfile
from pathlib import Path

import pytest

from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from shards.console import UserError
from shards.sample import Box

HEADER_2020 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
)
HEADER_2017 = HEADER_2020.rstrip("\n") + ",\n"
ROW_A = "00000001_000.png,Cardiomegaly|Emphysema,0,1,{age},M,PA,2682,2749,0.143,0.143"
ROW_B = "00000002_000.png,No Finding,0,2,40,F,AP,2500,2048,0.168,0.168"


def make(src: Path, table: str, name: str = "Data_Entry_2017_v2020.csv") -> ChestXray14:
    (src / "images").mkdir(parents=True, exist_ok=True)
    for image in ("00000001_000.png", "00000002_000.png"):
        (src / "images" / image).write_bytes(b"png")
    (src / name).write_text(table)
    return ChestXray14(ChestXray14Config(src))


def test_table_of_2020(tmp_path: Path):
    table = HEADER_2020 + ROW_A.format(age=58) + "\n" + ROW_B + "\n"
    first, second = make(tmp_path, table).records()
    assert (first.location, first.key) == ("00000001_000.png", "00000001_000")
    assert first.labels == ("Cardiomegaly", "Emphysema")
    assert (first.patient, first.view, first.age, first.sex) == ("chestxray14:1", "PA", 58, "M")
    assert second.labels == ("No Finding",)
    assert first.split is None


def test_table_of_2017_with_its_trailing_comma(tmp_path: Path):
    table = "\ufeff" + HEADER_2017 + ROW_A.format(age="058Y") + ",\n"
    (record,) = make(tmp_path, table, "Data_Entry_2017.csv").records()
    assert (record.age, record.view) == (58, "PA")


@pytest.mark.parametrize(
    ("text", "age"),
    [("058Y", 58), ("58", 58), ("009M", 0), ("014M", 1), ("003D", 0), ("414", None), ("", None)],
)
def test_ages(tmp_path: Path, text: str, age: int | None):
    (record,) = make(tmp_path, HEADER_2020 + ROW_A.format(age=text)).records()
    assert record.age == age


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            HEADER_2020.replace("Patient ID", "PatientID") + ROW_B,
            r"no column 'Patient ID'.*it has.*PatientID",
        ),
        ("", "no column 'Image Index'"),
        (
            HEADER_2020 + ROW_B.replace("No Finding", "Covid"),
            r"label 'Covid'; known are: Atelectasis",
        ),
        (HEADER_2020 + ROW_B.replace("No Finding", ""), "label ''"),
        (HEADER_2020 + "00000001_000.png,Mass\n", "line 2 has only 2 fields"),
        (HEADER_2020 + ROW_B + "\n" + ROW_B, "1 different images in 2 rows"),
        (HEADER_2020, "0 different images in 0 rows"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, table: str, message: str):
    with pytest.raises(UserError, match=message):
        make(tmp_path, table).records()


def test_missing_folder_table_and_images(tmp_path: Path):
    with pytest.raises(UserError, match="no folder"):
        ChestXray14(ChestXray14Config(tmp_path / "nowhere"))
    (tmp_path / "nih.zip").touch()
    with pytest.raises(UserError, match=r"nih\.zip is a file, no folder; --src names the folder"):
        ChestXray14(ChestXray14Config(tmp_path / "nih.zip"))
    with pytest.raises(UserError, match="no Data_Entry_2017_v2020"):
        ChestXray14(ChestXray14Config(tmp_path))
    (tmp_path / "Data_Entry_2017.csv").write_text(HEADER_2020)
    with pytest.raises(UserError, match=r"expected images_001\.tar\.gz"):
        ChestXray14(ChestXray14Config(tmp_path))


def test_boxes(tmp_path: Path):
    source = make(tmp_path, HEADER_2020 + ROW_B)
    boxes = tmp_path / "BBox_List_2017.csv"
    boxes.write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000002_000.png,Infiltrate,1.5,2,3,4\n00000002_000.png,Mass,5,6,7,8,,,\n"
    )
    (record,) = source.records()
    assert record.boxes == (Box("Infiltration", 1.5, 2, 3, 4), Box("Mass", 5, 6, 7, 8))
    boxes.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000002_000.png,Mass,1,2\n")
    with pytest.raises(UserError, match="line 2"):
        source.records()


def archive(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(f"images/{name}")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"png"))


@pytest.mark.parametrize("pattern", ["images_{:03d}.tar.gz", "images_{:02d}.tar.gz"])
def test_both_names_of_archives(tmp_path: Path, pattern: str):
    (tmp_path / "Data_Entry_2017.csv").write_text(HEADER_2020 + ROW_B)
    for number in (2, 1):
        archive(tmp_path / pattern.format(number), [f"{number}.png"])
    source = ChestXray14(ChestXray14Config(tmp_path))
    assert [image.location for image in source.images()] == ["1.png", "2.png"]
    assert len(source.inventory()) == 2
    assert source.surely_missing(source.records()) is None  # nobody knows before the pass


def test_folders_as_some_copies_have_them(tmp_path: Path):
    (tmp_path / "Data_Entry_2017.csv").write_text(HEADER_2020 + ROW_B)
    for number in ("001", "002"):
        (tmp_path / f"images_{number}/images").mkdir(parents=True)
        (tmp_path / f"images_{number}/images/{number}.png").write_bytes(b"png")
    source = ChestXray14(ChestXray14Config(tmp_path))
    assert [image.location for image in source.images()] == ["001.png", "002.png"]
    missing = source.surely_missing(source.records())
    assert missing
    assert "00000002_000.png" in missing.text


def test_official_lists(tmp_path: Path):
    source_table = HEADER_2020 + ROW_A.format(age=1) + "\n" + ROW_B
    make(tmp_path, source_table)
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000002_000.png\n")
    records = ChestXray14(ChestXray14Config(tmp_path)).records()
    assert [r.split for r in records] == ["train_val", "test"]
    (tmp_path / "train_val_list.txt").unlink()
    records = ChestXray14(ChestXray14Config(tmp_path)).records()
    assert [r.split for r in records] == [None, None]


def test_the_real_table(shared_data: Path):
    src = shared_data / "chestxray14"
    source = ChestXray14(ChestXray14Config(src))
    records = source.records()
    assert len(records) == 112_120
    assert len({r.patient for r in records}) == 30_805
    assert sum("Hernia" in r.labels for r in records) == 227
    assert sum(len(r.boxes) for r in records) == 984
    missing = source.surely_missing(records)
    assert missing
    assert missing.images == 111_970
    assert "111970 of the table's 112120 images" in missing.text
    assert "2 of 12 archives are there: images_001.tar.gz, images_002.tar.gz" in missing.text


def test_links_in_an_archive_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with tarfile.open(tmp_path / "images_001.tar.gz", "w:gz") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("images/x.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    (tmp_path / "Data_Entry_2017.csv").write_text(HEADER_2020 + ROW_A.format(age=1))
    assert list(ChestXray14(ChestXray14Config(tmp_path)).images()) == []
    assert "images_001.tar.gz holds 3 links or devices" in capsys.readouterr().err
