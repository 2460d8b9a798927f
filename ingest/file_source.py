"""What sources of plain image files share: finding the files, and the pass over them."""

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from os.path import isfile  # False for a name that is too long, where Path.is_file raises
from pathlib import Path

from ingest.files import (
    files_below,
    folder_image,
    image_files,
    is_image_name,
    kind_passed_over,
)
from ingest.record import PASSED_OVER, Missing, Record, Source, SourceImage
from ingest.split import SplitConfig
from shards.console import UserError, warn
from shards.labels import Vocabulary
from shards.members import is_system_file
from shards.remote import is_remote, name_below
from shards.splits import TEST, TRAIN, VAL, splits_of

NOT_IN_TABLE = "are in no row of the table"
NOT_IN_FOLDERS = "are in none of the folders that are read"
_SYNTHETIC = "SYNTHETIC"  # this file marks a data set as drawn
_KINDS = 6  # of files passed over are told apart; numbers behind a dot make many
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # of a folder, and in front of every shard's name


class FileSource(Source):
    """A Source but for its records(). files: location -> file, in the order of the pass;
    passed: see image_tree()."""

    name: str
    vocabulary: Vocabulary
    split: SplitConfig
    unlisted_are = NOT_IN_FOLDERS

    def __init__(
        self, src: Path, files: Mapping[str, Path], passed: Mapping[str, int] | None = None
    ) -> None:
        self.src, self.files = src, files
        self.synthetic = (src / _SYNTHETIC).is_file()
        self.notes = tell_passed_over(src, passed or {})

    def paths(self) -> tuple[Path, ...]:
        return (self.src,)

    def inventory(self) -> list[tuple[str, int]]:
        return [(_unicode(name), path.stat().st_size) for name, path in self.files.items()]

    def surely_missing(self, records: Sequence[Record]) -> Missing | None:
        wanted = {r.location for r in records if not r.excluded}
        missing = sorted(wanted - self.files.keys())
        if not missing:
            return None
        text = f"{len(missing)} of the table's {len(wanted)} images (such as {missing[0]})"
        return Missing(len(missing), text)

    def images_folder(self) -> Path:
        """Below which every image should have a record."""
        return self.src

    def unlisted(self, records: Sequence[Record]) -> str | None:
        listed = {self.files[r.location] for r in records if r.location in self.files}
        return count_unlisted(self.images_folder(), listed, self.unlisted_are)

    def images(self) -> Iterator[SourceImage]:
        for location, path in self.files.items():
            yield folder_image(path, location)


def _unicode(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def check_name(name: str) -> str:
    """The name itself. UserError when it cannot name a data set."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r}; allowed: up to 40 lower-case letters, digits, - and _, such as "
            "our-hospital"
        )
    return name


def require_folder(src: Path, what: str) -> None:
    """UserError when there is no such folder."""
    if not src.is_dir():
        wrong = f"{src} is a file, no folder" if src.exists() else f"no folder {src}"
        raise UserError(f"{wrong}; --src names {what}")


def files_by_name(folder: Path) -> dict[str, Path]:
    """Name -> image file right inside a folder. UserError when there is none."""
    found = {path.name: path for path in image_files(folder)} if folder.is_dir() else {}
    if not found:
        raise UserError(f"no images in {folder}; expected the images that the table names")
    return found


def subfolders(folder: Path) -> list[Path]:
    """The folders right inside a folder, sorted; without hidden ones and macOS's."""
    return sorted(
        path for path in folder.iterdir() if not is_system_file(path.name) and path.is_dir()
    )


def image_tree(root: Path, folder: Path, passed: Counter[str]) -> dict[str, Path]:
    """Path relative to root -> image file, for all in `folder` and the folders in it, sorted.
    passed: gets the other files, by kind_passed_over()."""
    found = {}
    links = 0
    for path, linked in files_below(folder):
        if is_system_file(name_below(path, folder)) or path.name == _SYNTHETIC:
            continue
        kind = None if linked else kind_passed_over(path)
        links += linked
        if kind:
            passed[kind] += 1
        elif not linked:
            found[name_below(path, root)] = path
    if links:
        warn(f"{links} folders below {folder} are links; what lies behind them is not read")
    return dict(sorted(found.items()))


def count_unlisted(
    folder: Path, listed: Container[Path], they_are: str, aside: str | None = None
) -> str | None:
    """How many image files below a folder are not listed, in words; None for none. aside: the name
    of folders whose images are known to be something else."""
    there = (path for path, linked in files_below(folder) if not linked and path not in listed)
    images = (path for path in there if is_image_name(path.name) and path.is_file())
    names = [name_below(path, folder) for path in images]
    beside = [n for n in names if not is_system_file(n) and aside not in n.split("/")[:-1]]
    return f"{len(beside)} images {they_are}, such as {min(beside)}" if beside else None


def tell_passed_over(src: Path, passed: Mapping[str, int]) -> tuple[str, ...]:
    """Warn of the files passed over, and the same for the manifest's notes: nothing for none."""
    if not passed:
        return ()
    several = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    counts = [f"{count} {kind}" for kind, count in several[:_KINDS]]
    others = sum(count for _, count in several[_KINDS:])
    kinds = ", ".join([*counts, f"{others} others"] if others else counts)
    text = f"{sum(passed.values())} files are no images by their names ({kinds})"
    warn(
        f"{text}, below {src}; passed over: rename those that are images, and ingest .dcm by dicom"
    )
    return (f"{text}{PASSED_OVER}",)


def split_folders(src: Path, classes: Sequence[str]) -> tuple[Path, dict[str, tuple[str, str]]]:
    """Where `<split>/<class>/` stand, however they are spelt: src, a folder in it or in one of
    those; and `<folder>/<folder>` in it -> split, class. UserError when no train and test hold all
    the classes."""
    for root in _near(src):
        splits = splits_of([folder.name for folder in subfolders(root)], root)
        found = {
            f"{name}/{inner.name}": (split, one)
            for split in (TRAIN, VAL, TEST)
            for name in splits
            if splits[name] == split
            for one in classes
            for inner in subfolders(root / name)
            if inner.name.casefold() == one.casefold()
        }
        if {(split, one) for split in (TRAIN, TEST) for one in classes} <= set(found.values()):
            return root, found
    wanted = ", ".join(f"{split}/{one}" for split in (TRAIN, TEST) for one in classes)
    raise UserError(f"no {wanted} in {src} or the folders in it")


def _near(src: Path) -> Iterator[Path]:
    """src, the folders in it, those in them."""
    yield src
    near = subfolders(src)
    yield from near
    yield from (folder for parent in near for folder in subfolders(parent))


def present(files: Mapping[str, Path]) -> dict[str, Path]:
    """Those of the files that are there."""
    if not any(map(is_remote, files.values())):
        return {location: path for location, path in files.items() if isfile(path)}
    folders = {path.parent for path in files.values()}  # each listed once: no request per file
    there = {path: path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return {location: there[path] for location, path in files.items() if path in there}
