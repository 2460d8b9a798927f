"""NIH ChestX-ray14: `Data_Entry_2017*.csv` and `images_*.tar.gz` or folders of PNG -> records.

Wang et al., "ChestX-ray8" (CVPR 2017). Run: python -m ingest chestxray14 --src PATH --out DIR
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ingest.file_source import NOT_IN_TABLE, count_unlisted, require_folder
from ingest.files import archive_images, folder_image, image_files, is_image_name
from ingest.lists import apply_split_lists
from ingest.record import PASSED_OVER, Missing, Record, Source, SourceImage
from ingest.split import TEST, TRAIN_VAL, SplitConfig
from shards.console import UserError, progress, warn
from shards.csv_table import clean, read_records, read_rows
from shards.labels import CHESTXRAY14
from shards.sample import Box, make_key

NAME = "chestxray14"
_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
_ARCHIVE = re.compile(r"images_\d+\.tar\.gz")
_ALL_IMAGES, _ALL_ARCHIVES = 112_120, 12
_BOX_NAMES = {"Infiltrate": "Infiltration"}
_MAX_AGE = 120  # the table has ages of 148 and 414: typing errors
# The validation set: 12.5 % of the official train_val list is 10 % of all, as in 70/10/20.
_FRACTIONS = (0.7, 0.1, 0.2)


@dataclass(frozen=True)
class ChestXray14Config:
    """NIH ChestX-ray14, as downloaded: the CSV tables beside images_001.tar.gz and on (read as a
    stream, never unpacked), or beside unpacked folders images/ or images_001/images/."""

    src: Path
    """Folder with Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv) and the images. The official
    train_val_list.txt and test_list.txt beside them are used where both are there (12.5 % of the
    training patients become val); else patients are split 70/10/20."""


class ChestXray14(Source):
    """The Source built from a ChestXray14Config."""

    name = NAME
    vocabulary = CHESTXRAY14
    split = SplitConfig(_FRACTIONS)

    def __init__(self, config: ChestXray14Config) -> None:
        """UserError when the folder, its table or all images are missing."""
        self.src = config.src
        require_folder(self.src, "the folder of the ChestX-ray14 download")
        self.table = _find_table(self.src)
        self.lists = _official_lists(self.src)
        self.synthetic = (self.src / "SYNTHETIC").is_file()
        self.folders = [f for f in _image_folders(self.src) if image_files(f)]
        self.archives = sorted(p for p in self.src.iterdir() if _ARCHIVE.fullmatch(p.name))
        if not self.folders and not self.archives:
            raise UserError(
                f"no images in {self.src}; expected images_001.tar.gz (or images_01.tar.gz) and "
                "on, or a folder images/ of PNG files"
            )

    def paths(self) -> tuple[Path, ...]:
        return (self.src, *self.folders, *self.archives)  # which may be links to elsewhere

    def records(self) -> list[Record]:
        boxes = _read_boxes(self.src / "BBox_List_2017.csv")
        rows = read_rows(self.table, _COLUMNS)
        records = [_record(self.table, line, cells, boxes) for line, cells in rows]
        _refuse_repeats(records, self.table)
        return apply_split_lists(records, self.lists) if self.lists else records

    @cached_property
    def listed(self) -> set[str]:
        """The images that the table names."""
        return {row["Image Index"] for _, row in read_rows(self.table, ("Image Index",))}

    def inventory(self) -> list[tuple[str, int]]:
        files = [path for folder in self.folders for path in image_files(folder)]
        return [(path.name, path.stat().st_size) for path in files + self.archives]

    def surely_missing(self, records: Sequence[Record]) -> Missing | None:
        """Listed only where something is known to lack: a table of all NIH images, but not all 12
        archives. Listing inflates every archive once (about 1,000 images per second)."""
        complete = len(records) != _ALL_IMAGES or len(self.archives) >= _ALL_ARCHIVES
        if self.archives and complete:
            return None
        there = {path.name for folder in self.folders for path in image_files(folder)}
        with progress("count images", None) as advance:
            for archive in self.archives:
                for image in archive_images(archive):
                    there.add(image.location)
                    advance(1, archive.name)
        wanted = {r.location for r in records if not r.excluded}
        missing = sorted(wanted - there)
        if not missing:
            return None
        names = ", ".join(path.name for path in self.archives)
        have = f"; {len(self.archives)} of {_ALL_ARCHIVES} archives are there: {names}"
        return Missing(
            len(missing),
            f"{len(missing)} of the table's {len(wanted)} images (such as {missing[0]}"
            f"{have if self.archives else ''})",
        )

    def unlisted(self, records: Sequence[Record]) -> str | None:
        listed = {r.location for r in records}
        read = {p for folder in self.folders for p in image_files(folder) if p.name in listed}
        return count_unlisted(self.src, read, NOT_IN_TABLE)

    def images(self) -> Iterator[SourceImage]:
        """notes: at the end they tell of the images of archives that the table does not name."""
        for folder in self.folders:
            for path in image_files(folder):
                yield folder_image(path, path.name)
        notes = []
        for archive in self.archives:
            unlisted = 0
            for image in archive_images(archive, warn):
                unlisted += is_image_name(image.location) and image.location not in self.listed
                yield image
            if unlisted:
                text = f"{unlisted} images of {archive.name} {NOT_IN_TABLE}{PASSED_OVER}"
                notes.append(text)
                if text not in self.notes:  # of an earlier pass
                    warn(text)
        self.notes = tuple(notes)


def _find_table(src: Path) -> Path:
    tables = sorted(src.glob("Data_Entry_2017*.csv"))
    if not tables:
        raise UserError(
            f"no Data_Entry_2017_v2020.csv in {src}; --src names the folder that holds it"
        )
    return tables[-1]  # the name of the corrected table of 2020 sorts last


def _image_folders(src: Path) -> list[Path]:
    nested = sorted(p for p in src.glob("images_*/images") if p.is_dir())
    return [src / "images", *nested] if (src / "images").is_dir() else nested


def _official_lists(src: Path) -> dict[str, Path]:
    official = {TRAIN_VAL: src / "train_val_list.txt", TEST: src / "test_list.txt"}
    return official if all(path.is_file() for path in official.values()) else {}


def _record(
    path: Path, line: int, row: Mapping[str, str], boxes: Mapping[str, tuple[Box, ...]]
) -> Record:
    name, patient = row["Image Index"], row["Patient ID"]
    labels = tuple(row["Finding Labels"].split("|"))
    if not name:
        raise UserError(f"{path} line {line} names no image; download the table again")
    for label in labels:
        if label not in CHESTXRAY14.names:
            known = ", ".join(CHESTXRAY14.names)
            raise UserError(f"{path} line {line} has the label {label!r}; known are: {known}")
    return Record(
        location=name,
        key=make_key(Path(name).stem),
        labels=labels,
        patient=f"{NAME}:{patient}" if patient else None,
        view=row["View Position"] or None,
        age=_years(row["Patient Age"]),
        sex=row["Patient Gender"] or None,
        boxes=boxes.get(name, ()),
    )


def _years(text: str) -> int | None:
    """`58`, `058Y`; ages in months or days, `009M`, are years begun at 0."""
    match = re.fullmatch(r"(\d{1,5})([YMD]?)", text)
    if not match:
        return None
    years = int(match[1]) // {"M": 12, "D": 365}.get(match[2], 1)
    return years if years <= _MAX_AGE else None


def _refuse_repeats(records: Sequence[Record], table: Path) -> None:
    keys = {record.key for record in records}
    if not records or len(keys) < len(records):
        raise UserError(
            f"{table} names {len(keys)} different images in {len(records)} rows; expected one row "
            "per image; download the table again"
        )


def _read_boxes(path: Path) -> dict[str, tuple[Box, ...]]:
    """Image -> boxes, in pixels of the 1024 x 1024 image; none when there is no file."""
    boxes: dict[str, list[Box]] = defaultdict(list)
    if not path.is_file():
        return {}
    records = read_records(path)
    next(records, None)  # the header has the commas of `Bbox [x,y,w,h]`
    for line, cells in records:
        try:
            name, label, x, y, w, h = map(clean, cells[:6])
            box = Box(_BOX_NAMES.get(label, label), float(x), float(y), float(w), float(h))
        except ValueError as error:
            raise UserError(f"{path} line {line}: {error}; download it again") from None
        boxes[name].append(box)
    return {name: tuple(found) for name, found in boxes.items()}
