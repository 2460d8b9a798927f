"""The synthetic radiographs and the two raw data sets made of them."""

import csv
import hashlib
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ingest.findings import EFFECTS
from ingest.radiograph import draw, draw_with_boxes
from ingest.synthetic import (
    CLASSES,
    HEADER,
    Flaws,
    write_chestxray14,
    write_covid_radiography,
)
from shards.console import UserError

SIZE = 96
NORMAL: frozenset[str] = frozenset()


def hashes(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def nih(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Flaws]:
    out = tmp_path_factory.mktemp("nih")
    return out, write_chestxray14(out, images=80, seed=3, size=SIZE, archives=3)


@pytest.fixture(scope="module")
def covid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Flaws]:
    out = tmp_path_factory.mktemp("covid")
    counts = {"COVID-19": 3, "NORMAL": 4, "Viral Pneumonia": 5}
    return out, write_covid_radiography(out, per_class=counts, seed=3, size=SIZE)


def members(root: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(root.glob("images_*.tar.gz")):
        with tarfile.open(path) as archive:
            files = [m for m in archive if m.isfile()]
            found |= {m.name: archive.extractfile(m).read() for m in files}  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("view", ["PA", "AP", "L"])
@pytest.mark.parametrize("size", [64, 200])
def test_draw_repeats(view: str, size: int) -> None:
    findings = frozenset({"Mass", "Effusion", "Fibrosis"})
    first = draw(11, findings, size=size, view=view)
    assert first.shape == (size, size)
    assert first.dtype == np.uint8
    assert np.array_equal(first, draw(11, findings, size=size, view=view))
    assert not np.array_equal(first, draw(12, findings, size=size, view=view))


def test_views_and_films_of_one_patient_differ() -> None:
    pictures = [draw(5, NORMAL, size=SIZE, view=view) for view in ("PA", "AP", "L")]
    pictures.append(draw(5, NORMAL, size=SIZE, film=1))
    assert len({p.tobytes() for p in pictures}) == 4


def test_draw_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="no finding 'Covid'; there are: Atelectasis"):
        draw(0, frozenset({"Covid"}))
    with pytest.raises(ValueError, match="no view 'Axial'"):
        draw(0, NORMAL, view="Axial")


@pytest.mark.parametrize("finding", EFFECTS)
def test_finding_changes_the_chest_and_not_the_corners(finding: str) -> None:
    """By at least 8 grey levels over 1 % of the chest in every patient; the corners stay."""
    for seed in range(6):
        healthy = draw(seed, NORMAL, size=SIZE).astype(int)
        ill = draw(seed, frozenset({finding}), size=SIZE).astype(int)
        changed = np.abs(ill - healthy) >= 8
        assert changed[SIZE // 8 : -SIZE // 8, SIZE // 8 : -SIZE // 8].mean() > 0.01
        corners = np.r_[: SIZE // 5, SIZE - SIZE // 5 : SIZE]
        assert not changed[: SIZE // 12, corners].any()


def test_healthy_names_change_nothing() -> None:
    healthy = draw(1, NORMAL, size=SIZE)
    assert np.array_equal(healthy, draw(1, frozenset({"No Finding"}), size=SIZE))
    assert np.array_equal(healthy, draw(1, frozenset({"Normal"}), size=SIZE))


def test_viral_pneumonia_is_drawn_as_pneumonia() -> None:
    pneumonia = draw(1, frozenset({"Pneumonia"}), size=SIZE)
    assert np.array_equal(pneumonia, draw(1, frozenset({"Viral Pneumonia"}), size=SIZE))


@pytest.mark.parametrize("finding", ["Mass", "Nodule"])
def test_box_is_brighter_than_without_the_shadow(finding: str) -> None:
    gains = []
    for seed in range(12):
        image, boxes = draw_with_boxes(seed, frozenset({finding}), size=256)
        healthy = draw(seed, NORMAL, size=256).astype(int)
        assert boxes
        for box in boxes:
            assert box.finding == finding
            assert 0 <= box.x < box.x + box.w <= 256
            assert 0 <= box.y < box.y + box.h <= 256
            area = np.s_[int(box.y) : int(box.y + box.h), int(box.x) : int(box.x + box.w)]
            gains.append((image[area].astype(int) - healthy[area]).mean())
            outside = image.astype(int) - healthy
            outside[area] = 0
            assert (outside > 25).mean() < 0.03  # other nodules at most
    assert min(gains) > 8


def test_two_writes_are_identical(nih: tuple, covid: tuple, tmp_path: Path) -> None:
    write_chestxray14(tmp_path / "n", images=80, seed=3, size=SIZE, archives=3)
    assert hashes(tmp_path / "n") == hashes(nih[0])
    counts = {"Viral Pneumonia": 5, "NORMAL": 4, "COVID-19": 3}
    write_covid_radiography(tmp_path / "c", per_class=counts, seed=3, size=SIZE)
    assert hashes(tmp_path / "c") == hashes(covid[0])


def test_chestxray14_table(nih: tuple[Path, Flaws]) -> None:
    path = nih[0] / "Data_Entry_2017_v2020.csv"
    assert path.read_text(encoding="utf-8").startswith(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
    )
    header, *table = rows(path)
    assert ",".join(header) + "\n" == HEADER
    assert {len(row) for row in table} == {11}
    names = [row[0] for row in table]
    assert names == [f"{int(row[3]):08d}_{int(row[2]):03d}.png" for row in table]
    assert len(set(names)) == 80
    assert 20 <= len({row[3] for row in table}) < 60
    assert {row[6] for row in table} == {"PA", "AP"}
    labels = [set(row[1].split("|")) for row in table]
    assert set.union(*labels) <= set(EFFECTS) | {"No Finding"}
    assert sum(found == {"No Finding"} for found in labels) == 28
    assert sum("Pneumonia" in found for found in labels) >= 16


def test_chestxray14_archives_hold_the_table_s_images(nih: tuple[Path, Flaws]) -> None:
    root, flaws = nih
    assert sorted(p.name for p in root.glob("*.gz")) == [f"images_00{i}.tar.gz" for i in (1, 2, 3)]
    found = members(root)
    names = [f"images/{row[0]}" for row in rows(root / "Data_Entry_2017_v2020.csv")[1:]]
    assert list(found) == names
    for name, data in found.items():
        if name == flaws.truncated:
            with pytest.raises(OSError, match="truncated"):
                Image.open(io.BytesIO(data)).load()
            continue
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.size == (SIZE, SIZE)
            assert image.mode == ("RGBA" if name == flaws.rgba else "L")


def test_chestxray14_boxes(nih: tuple[Path, Flaws]) -> None:
    header, *boxes = rows(nih[0] / "BBox_List_2017.csv")
    assert header == ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""]
    table = {row[0]: row[1].split("|") for row in rows(nih[0] / "Data_Entry_2017_v2020.csv")}
    assert boxes
    assert all(row[1] in table[row[0]] and len(row) == 6 for row in boxes)
    marked = {name for name, labels in table.items() if {"Mass", "Nodule"} & set(labels)}
    assert marked == {row[0] for row in boxes}


def test_covid_folders_and_flaws(covid: tuple[Path, Flaws]) -> None:
    root, flaws = covid
    counts = {name: len(list((root / name).glob("*.png"))) for name in CLASSES}
    assert counts == {"COVID-19": 4, "NORMAL": 5, "Viral Pneumonia": 6}
    assert (root / "Viral Pneumonia" / "Viral Pneumonia (5).png").is_file()
    assert flaws.duplicate
    assert flaws.truncated
    original, copy = ((root / name).read_bytes() for name in flaws.duplicate)
    assert original == copy
    assert (root / "exclude.txt").read_text(encoding="utf-8").splitlines() == [flaws.lateral]
    assert flaws.lateral == "COVID-19/COVID-19 (lateral 1).png"
    with Image.open(root / flaws.truncated) as image, pytest.raises(OSError, match="truncated"):
        image.load()
    sound = [n for n in hashes(root) if n.endswith("png") and n != flaws.truncated]
    assert all(cv2.imread(str(root / name), -1).shape == (SIZE, SIZE) for name in sound)
    assert len({hashes(root)[name] for name in sound}) == len(sound) - 1


def test_progress_counts_images(tmp_path: Path) -> None:
    done: list[int] = []
    write_chestxray14(tmp_path / "n", images=4, seed=0, size=32, progress=done.append)
    counts = dict.fromkeys(CLASSES, 2)
    write_covid_radiography(tmp_path, per_class=counts, seed=0, size=32, progress=done.append)
    assert sum(done) == 10


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 images into 1 archives"):
        write_chestxray14(tmp_path, images=1, seed=0)
    with pytest.raises(UserError, match="4 images into 5 archives"):
        write_chestxray14(tmp_path, images=4, seed=0, archives=5)
    with pytest.raises(UserError, match="the classes are: COVID-19, NORMAL, Viral Pneumonia"):
        write_covid_radiography(tmp_path, per_class={"NORMAL": 3, "Covid": 2}, seed=0)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def drawings() -> tuple[np.ndarray, np.ndarray]:
    """(420, 64, 64) float32 drawings of as many patients and their class, 140 of each."""
    classes = list(CLASSES.values())
    labels = np.arange(420) % 3
    images = [draw(1000 + i, classes[k], size=64) for i, k in enumerate(labels)]
    return np.stack(images).astype(np.float32), labels


def accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Of a linear classifier learnt on the first 280 images, on the other 140."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    model.fit(features[:280], labels[:280])
    return float(model.score(features[280:], labels[280:]))


def test_classes_can_be_learnt(drawings: tuple[np.ndarray, np.ndarray]) -> None:
    """From 16 x 16 pixels of the chest, each image standardised."""
    images, labels = drawings
    small = np.stack([cv2.resize(i, (16, 16), interpolation=cv2.INTER_AREA) for i in images])
    chest = small[:, 2:14, 2:14].reshape(len(small), -1)
    chest = (chest - chest.mean(1, keepdims=True)) / chest.std(1, keepdims=True)
    assert accuracy(chest, labels) > 0.85


def test_border_does_not_tell_the_class(drawings: tuple[np.ndarray, np.ndarray]) -> None:
    """Exposure, noise, marker and outline are in the outer 12 %; chance is 0.33."""
    images, labels = drawings
    border = np.ones((64, 64), bool)
    border[8:-8, 8:-8] = False
    assert accuracy(images[:, border], labels) < 0.5
