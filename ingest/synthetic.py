"""Two synthetic data sets in their publishers' raw layouts, for demos and tests.

`write_chestxray14(out, images=300, seed=0)` and `write_covid_radiography(out, per_class={...},
seed=0)`; the same arguments write the same bytes. Both plant the flaws that real downloads have
and say where, in `Flaws`. Run: python -m ingest synthetic --out DIR
"""

import csv
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from ingest.radiograph import Box, draw, draw_with_boxes
from shards.console import UserError

Progress = Callable[[int], None] | None  # called with the number of images done since the last call

# Counts of ChestX-ray14 (Data_Entry_2017_v2020.csv). Pneumonia has its own share here.
LABEL_COUNTS: Final = {
    "Atelectasis": 11559,
    "Cardiomegaly": 2776,
    "Effusion": 13317,
    "Infiltration": 19894,
    "Mass": 5782,
    "Nodule": 6331,
    "Pneumothorax": 5302,
    "Consolidation": 4667,
    "Edema": 2303,
    "Emphysema": 2516,
    "Fibrosis": 1686,
    "Pleural_Thickening": 3385,
    "Hernia": 227,
}
HEADER: Final = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
)
BOX_HEADER: Final = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
# Folder -> findings, as the first version of the COVID-19 Radiography Database has them.
CLASSES: Final[dict[str, frozenset[str]]] = {
    "COVID-19": frozenset({"COVID-19"}),
    "NORMAL": frozenset(),
    "Viral Pneumonia": frozenset({"Viral Pneumonia"}),
}
_NO_FINDING_SHARE, _PNEUMONIA_SHARE = 0.35, 0.20
_PATIENTS_PER_SET = 1_000_000  # the two sets of one seed share no patient
_CUT = 0.6  # a truncated file keeps this share of its bytes


# Written last. The adapters pass it on, so that no result is taken for one on real images.
MARKER = "SYNTHETIC"
MARKER_TEXT = "Synthetic radiographs, drawn by cxrstack: no patient, no real image.\n"


@dataclass(frozen=True)
class Flaws:
    """What is wrong on purpose, by path relative to the set's root (member name in an archive)."""

    rgba: str | None = None  # a grey picture stored as RGBA: to be taken as any other
    truncated: str | None = None  # the file ends too early: to be quarantined
    duplicate: tuple[str, str] | None = None  # (original, copy with the same bytes)
    lateral: str | None = None  # a side view, listed in exclude.txt


@dataclass(frozen=True)
class _Visit:
    """One row of ChestX-ray14's table."""

    patient: int  # 1 and up
    follow_up: int
    labels: tuple[str, ...]  # none: No Finding
    age: int
    gender: str
    view: str

    @property
    def name(self) -> str:
        return f"{self.patient:08d}_{self.follow_up:03d}.png"


def write_chestxray14(
    out: Path,
    *,
    images: int,
    seed: int,
    size: int = 512,
    archives: int = 1,
    progress: Progress = None,
) -> Flaws:
    """Tables and `images_001.tar.gz` and on, as NIH publishes them; 35 % healthy, 20 % pneumonia.

    Among the `images` one is RGBA and one is truncated. UserError: fewer than 2 images, or an
    archive without images.
    """
    if images < 2 or not 1 <= archives <= images:
        raise UserError(
            f"cannot write {images} images into {archives} archives; "
            "at least 2 images and 1 image per archive are needed; ask for more images"
        )
    out.mkdir(parents=True, exist_ok=True)
    visits = _visits(images, np.random.default_rng([seed, 0]))
    rgba, truncated = visits[images // 3].name, visits[images // 2 + images // 4].name
    boxes: list[tuple[str, Box]] = []

    def members(part: np.ndarray) -> Iterator[tuple[str, bytes]]:
        for visit in (visits[i] for i in part):
            image, found = draw_with_boxes(
                seed * 2 * _PATIENTS_PER_SET + visit.patient,
                frozenset(visit.labels),
                size=size,
                view=visit.view,
                film=visit.follow_up,
            )
            boxes.extend((visit.name, box) for box in found)
            data = _png(cv2.cvtColor(image, cv2.COLOR_GRAY2BGRA) if visit.name == rgba else image)
            yield visit.name, _truncate(data) if visit.name == truncated else data
            if progress:
                progress(1)

    for number, part in enumerate(np.array_split(np.arange(images), archives), start=1):
        _write_archive(out / f"images_{number:03d}.tar.gz", members(part))
    _write_table(out / "Data_Entry_2017_v2020.csv", visits, np.random.default_rng([seed, 1]))
    _write_boxes(out / "BBox_List_2017.csv", boxes)
    (out / MARKER).write_text(MARKER_TEXT, encoding="utf-8")
    return Flaws(rgba=f"images/{rgba}", truncated=f"images/{truncated}")


def write_covid_radiography(
    out: Path,
    *,
    per_class: Mapping[str, int],
    seed: int,
    size: int = 512,
    progress: Progress = None,
) -> Flaws:
    """`COVID-19/`, `NORMAL/`, `Viral Pneumonia/`, each image another patient.

    On top of the `per_class` sound images: one truncated (NORMAL), one byte-for-byte copy (Viral
    Pneumonia), one side view (COVID-19) that `exclude.txt` lists. UserError: an unknown class, or
    a class without images.
    """
    for name in CLASSES:
        if per_class.get(name, 0) < 1 or set(per_class) != set(CLASSES):
            raise UserError(
                f"images per class {dict(per_class)}; the classes are: {', '.join(CLASSES)}; "
                "ask for at least 1 image of each"
            )
    patient = (seed * 2 + 1) * _PATIENTS_PER_SET
    for name, findings in CLASSES.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for number in range(1, per_class[name] + 1):
            patient += 1
            image = draw(patient, findings, size=size)
            (out / name / f"{name} ({number}).png").write_bytes(_png(image))
            if progress:
                progress(1)
    flaws = _plant_flaws(out, per_class, patient + 1, size)
    (out / MARKER).write_text(MARKER_TEXT, encoding="utf-8")
    return flaws


def _plant_flaws(out: Path, per_class: Mapping[str, int], patient: int, size: int) -> Flaws:
    """Add the flawed files of the COVID set; two of them show patients `patient` and the next."""
    truncated = f"NORMAL/NORMAL ({per_class['NORMAL'] + 1}).png"
    image = draw(patient, CLASSES["NORMAL"], size=size)
    (out / truncated).write_bytes(_truncate(_png(image)))
    viral = "Viral Pneumonia/Viral Pneumonia"
    original, copy = f"{viral} (1).png", f"{viral} ({per_class['Viral Pneumonia'] + 1}).png"
    (out / copy).write_bytes((out / original).read_bytes())
    lateral = "COVID-19/COVID-19 (lateral 1).png"
    image = draw(patient + 1, CLASSES["COVID-19"], size=size, view="L")
    (out / lateral).write_bytes(_png(image))
    (out / "exclude.txt").write_text(lateral + "\n", encoding="utf-8")
    return Flaws(truncated=truncated, duplicate=(original, copy), lateral=lateral)


def _visits(images: int, rng: np.random.Generator) -> list[_Visit]:
    """Patients of 1 to 4 visits each, `images` visits in all."""
    labels = _label_sets(images, rng)
    visits: list[_Visit] = []
    patient = 0
    while len(visits) < images:
        patient += 1
        age, gender = int(rng.integers(18, 90)), "MF"[rng.integers(2)]
        for follow_up in range(min(int(rng.integers(1, 5)), images - len(visits))):
            view = "PA" if rng.random() < 0.6 else "AP"
            found = labels[len(visits)]
            visits.append(_Visit(patient, follow_up, found, age + follow_up, gender, view))
    return visits


def _label_sets(images: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Labels per image, each in alphabetical order, with exact shares of the two main classes."""
    others = list(LABEL_COUNTS)
    # The square root brings up the rare ones: Hernia is 1 in 500 in the real set.
    weights = np.sqrt(np.array(list(LABEL_COUNTS.values()), float))
    weights /= weights.sum()
    healthy, sick = round(_NO_FINDING_SHARE * images), round(_PNEUMONIA_SHARE * images)
    chosen: list[tuple[str, ...]] = [()] * healthy
    for i in range(images - healthy):
        pair = rng.choice(others, 2, replace=False, p=weights).tolist()
        first = "Pneumonia" if i < sick else pair[0]
        chosen.append(tuple(sorted([first, pair[1]])) if rng.random() < 0.25 else (first,))
    return [chosen[i] for i in rng.permutation(images)]


def _png(image: np.ndarray) -> bytes:
    """Level 1: three times as fast as the default for a few per cent more bytes."""
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _truncate(data: bytes) -> bytes:
    return data[: int(len(data) * _CUT)]


def _write_archive(path: Path, members: Iterator[tuple[str, bytes]]) -> None:
    """A tar.gz with an `images/` folder; no time stamp or owner, so the bytes can repeat."""
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        folder = tarfile.TarInfo("images/")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for name, data in members:
            member = tarfile.TarInfo(f"images/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _write_table(path: Path, visits: list[_Visit], rng: np.random.Generator) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(HEADER)
        rows = csv.writer(file, lineterminator="\n")
        for visit in visits:
            width, height = rng.integers(2000, 3057, 2).tolist()
            spacing = float(rng.choice([0.143, 0.139, 0.168, 0.171]))
            labels = "|".join(visit.labels) or "No Finding"
            who = [visit.patient, visit.age, visit.gender, visit.view]
            rows.writerow(
                [visit.name, labels, visit.follow_up, *who, width, height] + [spacing] * 2
            )


def _write_boxes(path: Path, boxes: list[tuple[str, Box]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(BOX_HEADER)
        rows = csv.writer(file, lineterminator="\n")
        for name, box in boxes:
            rows.writerow([name, box.finding, *(round(v, 3) for v in (box.x, box.y, box.w, box.h))])
