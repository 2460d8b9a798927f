"""What sources of plain image files share: finding the files, and the pass over them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from os.path import isfile  # False for a name that is too long, where Path.is_file raises
from pathlib import Path

from ingest.files import folder_image, image_files, is_image_name, is_link, walk
from ingest.record import Missing, Record, Source, SourceImage
from ingest.split import SplitConfig
from shards.console import UserError, warn
from shards.labels import Vocabulary
from shards.remote import is_remote

_SYSTEM_FOLDER = "__MACOSX"  # macOS puts `._x.jpeg` there for every x.jpeg it packs
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # of a folder, and in front of every shard's name


class FileSource(Source):
    """A Source but for its records(). files: location -> file, in the order of the pass."""

    name: str
    vocabulary: Vocabulary
    split: SplitConfig

    def __init__(self, src: Path, files: Mapping[str, Path]) -> None:
        self.src, self.files = src, files
        self.synthetic = (src / "SYNTHETIC").is_file()

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
        raise UserError(f"no folder {src}; --src names {what}")


def files_by_name(folder: Path) -> dict[str, Path]:
    """Name -> image file right inside a folder. UserError when there is none."""
    found = {path.name: path for path in image_files(folder)} if folder.is_dir() else {}
    if not found:
        raise UserError(f"no images in {folder}; expected the images that the table names")
    return found


def subfolders(folder: Path) -> list[Path]:
    """The folders right inside a folder, sorted; without hidden ones and macOS's."""
    return sorted(path for path in folder.iterdir() if _is_plain(path.name) and path.is_dir())


def image_tree(root: Path, folder: Path) -> dict[str, Path]:
    """Path relative to root -> image file, for all in `folder` and the folders in it, sorted."""
    found = {}
    links = 0
    for parent, folders, names in walk(folder):
        folders[:] = [name for name in folders if _is_plain(name)]
        links += sum(is_link(parent / name) for name in folders)
        paths = [parent / name for name in names if is_image_name(name)]
        found.update({p.relative_to(root).as_posix(): p for p in paths if p.is_file()})
    if links:
        warn(f"{links} folders below {folder} are links; what lies behind them is not read")
    return dict(sorted(found.items()))


def find_root(src: Path, inside: Sequence[str]) -> Path | None:
    """The first that holds all the folders `inside`: src, the folders in it, those in them."""
    near = subfolders(src)
    candidates = [src, *near, *(folder for parent in near for folder in subfolders(parent))]
    return next((c for c in candidates if all((c / name).is_dir() for name in inside)), None)


def present(files: Mapping[str, Path]) -> dict[str, Path]:
    """Those of the files that are there."""
    if not any(map(is_remote, files.values())):
        return {location: path for location, path in files.items() if isfile(path)}
    folders = {path.parent for path in files.values()}  # each listed once: no request per file
    there = {path: path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return {location: there[path] for location, path in files.items() if path in there}


def _is_plain(name: str) -> bool:
    return not name.startswith(".") and name != _SYSTEM_FOLDER
