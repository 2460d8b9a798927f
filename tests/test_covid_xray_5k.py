"""ingest.sources.covid_xray_5k: four folders, some copies with folders in them."""

from pathlib import Path

import pytest

from ingest.sources.covid_xray_5k import CovidXray5k, CovidXray5kConfig
from ingest.split import TEST, TRAIN, VAL, assign_splits
from shards.console import UserError

NAMES = [
    *(f"train/covid/{n}.jpg" for n in range(20)),
    *(f"train/non/{n}.jpg" for n in range(40)),
    *("test/covid/0.jpg", "test/covid/deep/er/1.png"),
    *("test/non/Edema/0.jpg", "test/non/Edema/1.jpg", "test/non/Mass/0.jpg"),
    *("train/non/.DS_Store", "train/non/notes.txt", "__MACOSX/train/non/._0.jpg"),
]


def make(root: Path, src: Path | None = None, names: list[str] = NAMES) -> CovidXray5k:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")
    return CovidXray5k(CovidXray5kConfig(src or root))


@pytest.mark.parametrize("around", ["", "data_upload_v3", "a/data"])
def test_published_split_and_nested_folders(tmp_path: Path, around: str):
    source = make(tmp_path / around, tmp_path)
    records = source.records()
    assert [image.location for image in source.images()] == [r.location for r in records]
    assert {r.location: r.labels for r in records if r.split == TEST} == {
        "test/covid/0.jpg": ("COVID-19",),
        "test/covid/deep/er/1.png": ("COVID-19",),
        "test/non/Edema/0.jpg": ("Other",),
        "test/non/Edema/1.jpg": ("Other",),
        "test/non/Mass/0.jpg": ("Other",),
    }
    splits = assign_splits(records, source.split, 0)
    counts = {split: list(splits.values()).count(split) for split in (TRAIN, VAL, TEST)}
    assert counts == {TRAIN: 54, VAL: 6, TEST: 5}
    assert source.surely_missing(records) is None


def test_folders_in_other_words(tmp_path: Path):
    names = [n.replace("train/non", "Training/NON").replace("test/", "Test-set/") for n in NAMES]
    names = [name.replace("train/covid", "Training/Covid") for name in names]
    source = make(tmp_path, names=names)
    usual = make(tmp_path / "usual")
    found = [(r.split, r.labels) for r in source.records()]
    assert found == [(r.split, r.labels) for r in usual.records()]
    assert source.notes[-1] == "names of splits: 'Training' as train, 'Test-set' as test"


def test_wrong_folders(tmp_path: Path):
    with pytest.raises(UserError, match="no folder"):
        CovidXray5k(CovidXray5kConfig(tmp_path / "nowhere"))
    (tmp_path / "train/covid").mkdir(parents=True)
    with pytest.raises(UserError, match="no train/covid, train/non, test/covid, test/non in"):
        CovidXray5k(CovidXray5kConfig(tmp_path))
    for name in ("train/non", "test/covid", "test/non"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no image in .*train/covid"):
        CovidXray5k(CovidXray5kConfig(tmp_path))
