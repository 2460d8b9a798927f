"""Anybody's own images in a folder per class -> exclusive labels: `SRC/<class>/`, or with a split
above, `SRC/{train,val,test}/<class>/` in any usual spelling (`shards/splits.py`), images at any
depth. The labels are the folders' names, sorted. Its patients are unknown: several images of one
give a table instead (csv).

Run: python -m ingest folders --src PATH --name NAME --out DIR
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from ingest.file_source import (
    FileSource,
    check_name,
    image_tree,
    require_folder,
    subfolders,
)
from ingest.given_split import GIVEN_SPLIT, val_from_train
from ingest.record import Record
from ingest.split import SplitConfig
from shards.console import UserError
from shards.labels import Vocabulary
from shards.sample import make_key
from shards.splits import TRAIN, TRAIN_VAL, canonical, read_as, splits_of

NAME = "folders"


@dataclass(frozen=True)
class FoldersConfig:
    """Your own images in a folder per class: SRC/<class>/, or SRC/train/<class>/ with val and test
    beside it (Training, valid, dev, Testing and the like mean the same). The labels are the folder
    names, sorted; each image has exactly one. Without val, a tenth of train is set apart; without
    train, val and test, images are split 70/10/20. The
    names of folders and files stand in the shards: let none be a patient's. Files that are no
    images by their names are counted in a warning."""

    src: Path
    """Folder with the class folders, or with train, val and test."""
    name: str = NAME
    """Name of the data set: of its folder in OUT and of its shards."""


class Folders(FileSource):
    """The Source built from a FoldersConfig."""

    def __init__(self, config: FoldersConfig) -> None:
        """UserError when there are no two classes, when images stand outside the class folders, or
        when these may not be the classes."""
        require_folder(config.src, "the folder with the class folders")
        self.name = check_name(config.name)
        self.splits = _splits(config.src)  # the folders above the classes
        self.depth = 1 if self.splits else 0  # of the class in a location
        passed: Counter[str] = Counter()
        super().__init__(config.src, image_tree(config.src, config.src, passed), passed)
        outside = [f for f in self.files if f.count("/") < self.depth + 1]
        if outside:
            raise UserError(
                f"{len(outside)} images stand in no class folder of {config.src}, such as "
                f"{outside[0]}; move or remove them"
            )
        classes = {self._class_of(location) for location in self.files}
        _check_classes(classes, config.src, self.depth)
        _check_level(config.src, self.files, self.depth)
        self.notes = (*self.notes, *read_as(self.splits))
        self.vocabulary = Vocabulary(tuple(sorted(classes)), exclusive=True)
        self.split = GIVEN_SPLIT if self.depth else SplitConfig()

    def _class_of(self, location: str) -> str:
        return location.split("/")[self.depth]

    def records(self) -> list[Record]:
        return val_from_train([self._record(location) for location in self.files])

    def _record(self, location: str) -> Record:
        return Record(
            location=location,
            key=make_key(location),
            labels=(self._class_of(location),),
            split=self.splits[location.split("/")[0]] if self.depth else None,
        )


def _splits(src: Path) -> dict[str, str]:
    """Folder -> split, where there is a level train/val/test above the classes. UserError when
    there is half of one."""
    names = [folder.name for folder in subfolders(src)]
    splits = splits_of(names, src)
    if not splits or (len(splits) < len(names) and all(len(name) <= 2 for name in splits)):
        return {}  # TR beside AR is a class
    if not {TRAIN, TRAIN_VAL} & set(splits.values()) or len(splits) < len(names):
        raise UserError(
            f"{src} holds {', '.join(names)}; expected either class folders, or train (with val "
            "and test) and no other folder"
        )
    return splits


def _check_classes(classes: set[str], src: Path, depth: int) -> None:
    """UserError for fewer than two classes, a class folder without an image, or a broken name."""
    levels = subfolders(src) if depth else [src]
    named = {folder.name for level in levels for folder in subfolders(level)}
    empty = sorted(named - classes)
    if empty:
        raise UserError(f"no image in the class folder {empty[0]!r} of {src}; fill or remove it")
    if len(classes) < 2:
        found = ", ".join(sorted(classes)) or "none"
        inside = [folder.name for name in classes if not depth for folder in subfolders(src / name)]
        hint = f", which holds {', '.join(inside[:4])}: is --src one folder too high?"
        raise UserError(
            f"expected at least two class folders in {src}; found: {found}{hint if inside else ''}"
        )
    cases = defaultdict(list)
    for name in sorted(classes):
        cases[" ".join(name.casefold().split())].append(name)
    alike = next((names for names in cases.values() if len(names) > 1), None)
    if alike:
        raise UserError(
            f"the class folders {alike[0]!r} and {alike[1]!r} of {src} differ in case or spaces "
            "alone; give them one name"
        )
    broken = sorted(name for name in classes if not _is_unicode(name))
    if broken:
        raise UserError(f"the class folder {broken[0]!r} of {src} is not named in UTF-8; rename it")


def _check_level(src: Path, files: Iterable[str], depth: int) -> None:
    """UserError when the folders taken for classes look like parts of one data set: several hold
    the same folders (fold1/{A,B}, fold2/{A,B}), or each its own split (A/{train,test})."""
    inner: dict[str, set[str]] = defaultdict(set)  # class -> the folders in it; "": images in it
    for location in files:
        one, *below = location.split("/")[depth:-1]
        inner[one].add(below[0] if below else "")
    for one, other in permutations(sorted(inner), 2):
        both = inner[one] & inner[other] - {""}
        if "" not in inner[one] and _are_parts(both, inner[one]):
            raise UserError(
                f"{src}: the folders {one} and {other} hold the same folders "
                f"({', '.join(sorted(both)[:4])}), so they are not taken for classes; put the "
                "class folders right into --src, or into train, val and test in it, or list the "
                "images in a table: python -m ingest csv"
            )


def _are_parts(both: Collection[str], of_one: Collection[str]) -> bool:
    split = any(canonical(name) in (TRAIN, TRAIN_VAL) for name in both)
    return split or (len(both) > 1 and len(both) == len(of_one))


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # undecodable bytes of a file name are surrogates
        return False
    return True
