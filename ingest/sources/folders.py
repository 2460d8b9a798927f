"""Anybody's own images in a folder per class -> exclusive labels: `SRC/<class>/`, or with a split
above, `SRC/{train,val,test}/<class>/`, images at any depth. The labels are the folders' names,
sorted. Its patients are unknown: several images of one give a table instead (csv).

Run: python -m ingest folders --src PATH --name NAME --out DIR
"""

from collections import Counter
from dataclasses import dataclass
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
from ingest.split import TEST, TRAIN, VAL, SplitConfig
from shards.console import UserError
from shards.labels import Vocabulary
from shards.sample import make_key

NAME = "folders"
_SPLITS = (TRAIN, VAL, TEST)


@dataclass(frozen=True)
class FoldersConfig:
    """Your own images in a folder per class: SRC/<class>/, or SRC/train/<class>/ with val and test
    beside it. The labels are the folder names, sorted; each image has exactly one. Without val,
    a tenth of train is set apart; without train, val and test, images are split 70/10/20. The
    names of folders and files stand in the shards: let none be a patient's. Files that are no
    images by their names are counted in a warning."""

    src: Path
    """Folder with the class folders, or with train, val and test."""
    name: str = NAME
    """Name of the data set: of its folder in OUT and of its shards."""


class Folders(FileSource):
    """The Source built from a FoldersConfig."""

    def __init__(self, config: FoldersConfig) -> None:
        """UserError when there are no two classes, or images stand outside the class folders."""
        require_folder(config.src, "the folder with the class folders")
        self.name = check_name(config.name)
        self.depth = 1 if _has_splits(config.src) else 0  # of the class in a location
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
            split=location.split("/")[0] if self.depth else None,
        )


def _has_splits(src: Path) -> bool:
    """Is there a level train/val/test above the classes? UserError when there is half of one."""
    names = [folder.name for folder in subfolders(src)]
    splits = [name for name in names if name in _SPLITS]
    if not splits:
        return False
    if TRAIN not in splits or len(splits) < len(names):
        raise UserError(
            f"{src} holds {', '.join(names)}; expected either class folders, or train (with val "
            "and test) and no other folder"
        )
    return True


def _check_classes(classes: set[str], src: Path, depth: int) -> None:
    """UserError for fewer than two classes, a class folder without an image, or a broken name."""
    levels = subfolders(src) if depth else [src]
    named = {folder.name for level in levels for folder in subfolders(level)}
    empty = sorted(named - classes)
    if empty:
        raise UserError(f"no image in the class folder {empty[0]!r} of {src}; fill or remove it")
    if len(classes) < 2:
        found = ", ".join(sorted(classes)) or "none"
        raise UserError(f"expected at least two class folders in {src}; found: {found}")
    broken = sorted(name for name in classes if not _is_unicode(name))
    if broken:
        raise UserError(f"the class folder {broken[0]!r} of {src} is not named in UTF-8; rename it")


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # undecodable bytes of a file name are surrogates
        return False
    return True
