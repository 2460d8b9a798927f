"""ingest.sources.kermany: causes and patients from names, copies passed over, patients apart."""

from pathlib import Path

import pytest

from ingest.selection import SelectionConfig, select
from ingest.sources.kermany import Kermany, KermanyConfig, parse_name
from ingest.split import TRAIN_VAL
from shards.console import UserError

NAMES = [
    *("train/NORMAL/IM-0115-0001.jpeg", "train/NORMAL/NORMAL2-IM-1274-0001.jpeg"),
    *("train/PNEUMONIA/person1_bacteria_1.jpeg", "train/PNEUMONIA/person1_bacteria_2.jpeg"),
    *("train/PNEUMONIA/person98_virus_182.jpeg", "train/PNEUMONIA/.DS_Store"),
    *("test/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg"),
]
VAL = ["val/NORMAL/NORMAL2-IM-1427-0001.jpeg", "val/PNEUMONIA/person1946_bacteria_4874.jpeg"]


def make(root: Path, names: list[str], src: Path | None = None, **options) -> Kermany:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")
    return Kermany(KermanyConfig(src or root, **options))


@pytest.mark.parametrize(
    ("name", "label", "patient"),
    [
        ("PNEUMONIA/person1_virus_6", "Viral Pneumonia", "person1_virus"),
        ("PNEUMONIA/person1_bacteria_1", "Bacterial Pneumonia", "person1_bacteria"),
        ("PNEUMONIA/person1_virus_6_1", "Viral Pneumonia", "person1_virus"),
        ("PNEUMONIA/VIRUS-1009694-0001", "Viral Pneumonia", "1009694"),
        ("PNEUMONIA/BACTERIA-1008087-0002", "Bacterial Pneumonia", "1008087"),
        ("PNEUMONIA/something", None, None),
        ("NORMAL/IM-0115-0001", "Normal", "IM-0115"),
        ("NORMAL/IM-0115-0001-0002", "Normal", "IM-0115"),
        ("NORMAL/NORMAL2-IM-1427-0001", "Normal", "NORMAL2-IM-1427"),
        ("NORMAL/NORMAL-1003233-0001", "Normal", "1003233"),
        ("NORMAL/something", "Normal", None),
    ],
)
def test_names(name: str, label: str | None, patient: str | None):
    folder, stem = name.split("/")
    assert parse_name(stem, folder) == (label, patient)


@pytest.mark.parametrize("around", ["", "chest_xray", "archive/chest_xray"])
def test_copies_and_litter_are_passed_over(tmp_path: Path, around: str):
    litter = [f"chest_xray/{name}" for name in NAMES]
    litter += [f"__MACOSX/{name.replace('person', '._person')}" for name in NAMES]
    source = make(tmp_path / around, NAMES + VAL + litter, tmp_path)
    records = source.records()
    assert {(r.split, r.location) for r in records} == {
        (name.split("/")[0], name) for name in NAMES + VAL if ".DS_Store" not in name
    }
    assert not any(r.excluded for r in records)  # person1_bacteria is not person1_virus
    assert [image.location for image in source.images()] == [r.location for r in records]


def test_folders_in_other_words(tmp_path: Path):
    words = {"train/": "Train/", "val/": "valid/", "test/": "TESTING/", "NORMAL/": "Normal/"}
    names = NAMES + VAL
    for word, other in words.items():
        names = [name.replace(word, other) for name in names]
    usual, other = make(tmp_path / "usual", NAMES + VAL), make(tmp_path / "x/other", names)
    found = [(r.split, r.labels, r.patient, r.excluded) for r in other.records()]
    assert found == [(r.split, r.labels, r.patient, r.excluded) for r in usual.records()]
    told = "names of splits: 'Train' as train, 'valid' as val, 'TESTING' as test"
    assert (usual.notes, other.notes) == ((), (told,))


def test_without_val_a_part_of_train(tmp_path: Path):
    records = make(tmp_path, NAMES).records()
    assert {r.split for r in records} == {TRAIN_VAL, "test"}


def test_a_patient_of_two_folders_stays_in_test(tmp_path: Path):
    again = ["train/PNEUMONIA/person1_virus_7.jpeg", "val/PNEUMONIA/person98_virus_183 (1).jpeg"]
    records = make(tmp_path, NAMES + VAL + again).records()
    assert {r.location: r.excluded for r in records if r.excluded} == {
        "train/PNEUMONIA/person1_virus_7.jpeg": "patient also in test",
        "train/PNEUMONIA/person98_virus_182.jpeg": "patient also in val",
    }


def test_random_split(tmp_path: Path):
    again = "train/PNEUMONIA/person1_virus_7.jpeg"
    source = select(make(tmp_path, [*NAMES, again]), SelectionConfig(random_split=True))
    assert {(r.split, r.excluded) for r in source.records()} == {(None, None)}
    assert source.split.fractions == (0.7, 0.1, 0.2)


def test_wrong_folders_and_names(tmp_path: Path):
    with pytest.raises(UserError, match="no folder"):
        make(tmp_path, [], tmp_path / "nowhere")
    with pytest.raises(UserError, match="no train/NORMAL, train/PNEUMONIA, test/NORMAL"):
        make(tmp_path, NAMES[:3])
    with pytest.raises(UserError, match=r"PNEUMONIA/x\.jpeg says neither bacteria nor virus"):
        make(tmp_path, [*NAMES, "train/PNEUMONIA/x.jpeg"]).records()


def test_other_files_are_counted_once_for_all_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = make(tmp_path, [*NAMES, "train/NORMAL/1.dcm", "test/NORMAL/2", "notes.txt"])
    text = "2 files are no images by their names (1 .dcm, 1 without suffix)"
    assert source.notes == (f"{text}; passed over",)
    assert capsys.readouterr().err.startswith(f"warning: {text}, below {tmp_path};")
