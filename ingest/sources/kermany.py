"""Kermany's chest X-rays of children: `chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/` -> normal,
bacterial or viral pneumonia.

Kermany et al., "Identifying Medical Diagnoses ..." (Cell 2018). File names carry cause and patient:
`person1_virus_6.jpeg`, `IM-0115-0001.jpeg`, and in the third edition `VIRUS-1009694-0001.jpeg`.
The published folders are the splits; where a patient stands in several, the images outside test
(then outside val) are left out. A nested copy `chest_xray/chest_xray/`, `__MACOSX` and `.DS_Store`
are passed over. Run: python -m ingest kermany --src PATH --out DIR
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ingest.file_source import FileSource, image_tree, require_folder, split_folders
from ingest.given_split import GIVEN_SPLIT, keep_patients_apart, val_from_train
from ingest.record import Record
from shards.console import UserError
from shards.labels import Vocabulary
from shards.sample import make_key
from shards.splits import read_as

NAME = "kermany"
_NORMAL, _PNEUMONIA = "NORMAL", "PNEUMONIA"
_BACTERIAL, _VIRAL = "Bacterial Pneumonia", "Viral Pneumonia"
_CAUSES = {"bacteria": _BACTERIAL, "virus": _VIRAL}
# Bacterial and viral persons are numbered apart, each from 1: person1_bacteria_1 (train) and
# person1_virus_6 (test) are two. Joining them would take hundreds of images from train for nothing.
_PERSON = re.compile(r"(person\d+_(bacteria|virus))_\d+(?:_\d+)?")
_HEALTHY = re.compile(r"((?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)?")
_THIRD_EDITION = re.compile(r"(NORMAL|BACTERIA|VIRUS)-(\d+)-\d+")


@dataclass(frozen=True)
class KermanyConfig:
    """Kermany's chest X-rays of children, unpacked: chest_xray/ with train, test and perhaps val,
    each with NORMAL and PNEUMONIA, in any usual spelling. Labels: Normal, Bacterial Pneumonia,
    Viral Pneumonia, from the file names. A patient of several folders counts for test, else val;
    the rest is left out. The published val has 16 images: --random-split divides all patients
    anew."""

    src: Path
    """Folder chest_xray, or the folder around it."""


class Kermany(FileSource):
    """The Source built from a KermanyConfig."""

    name = NAME
    vocabulary = Vocabulary(("Normal", _BACTERIAL, _VIRAL), exclusive=True)
    split = GIVEN_SPLIT

    def __init__(self, config: KermanyConfig) -> None:
        """UserError when the folders are not there."""
        require_folder(config.src, "the unpacked chest_xray")
        root, self.folders = split_folders(config.src, (_NORMAL, _PNEUMONIA))
        files: dict[str, Path] = {}
        passed: Counter[str] = Counter()
        for folder in self.folders:
            files |= image_tree(root, root / folder, passed)
        super().__init__(config.src, files, passed)
        splits = {folder.split("/")[0]: split for folder, (split, _) in self.folders.items()}
        self.notes = (*self.notes, *read_as(splits))

    def records(self) -> list[Record]:
        folders = ("/".join(location.split("/")[:2]) for location in self.files)
        records = [_record(file, *self.folders[f]) for file, f in zip(self.files, folders)]
        return val_from_train(keep_patients_apart(records))


def _record(location: str, split: str, folder: str) -> Record:
    stem = re.sub(r" \(\d+\)$", "", PurePosixPath(location).stem)  # `x (1)`: a copy of x
    label, patient = parse_name(stem, folder)
    if label is None:
        raise UserError(
            f"{location} says neither bacteria nor virus; expected names such as "
            "person1_virus_6.jpeg or VIRUS-1009694-0001.jpeg; download the images again"
        )
    return Record(
        location=location,
        key=make_key(location),
        labels=(label,),
        patient=f"{NAME}:{patient}" if patient else None,
        split=split,
    )


def parse_name(stem: str, folder: str) -> tuple[str | None, str | None]:
    """Label and patient of a file of NORMAL or PNEUMONIA; None: the name does not say."""
    person = _PERSON.fullmatch(stem)
    third = _THIRD_EDITION.fullmatch(stem)
    healthy = _HEALTHY.fullmatch(stem)
    cause = person[2] if person else third[1].lower() if third else ""
    label = "Normal" if folder == _NORMAL else _CAUSES.get(cause)
    patient = person[1] if person else third[2] if third else healthy[1] if healthy else None
    return label, patient
