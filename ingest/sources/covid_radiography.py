"""COVID-19 Radiography Database: a folder per class -> records, in all its published layouts.

Chowdhury et al., "Can AI help in screening viral and COVID-19 pneumonia?" (2020). Its defaults are
the data of Bassi & Attux (arXiv 2005.01578): 60 test images per class, the rest 80/20.
Run: python -m ingest covid-radiography --src PATH --out DIR
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ingest.file_source import (
    NOT_IN_FOLDERS,
    count_unlisted,
    require_folder,
    tell_passed_over,
)
from ingest.files import folder_image, image_files, kind_passed_over
from ingest.record import Missing, Record, Source, SourceImage
from ingest.split import SplitConfig
from shards.console import UserError
from shards.labels import COVID
from shards.remote import name_below
from shards.sample import make_key

NAME = "covid-radiography"
# Folder -> class. The second layout renamed two of them and added Lung_Opacity.
_CLASSES = {
    "COVID-19": "COVID-19",
    "COVID": "COVID-19",
    "NORMAL": "Normal",
    "Normal": "Normal",
    "Viral Pneumonia": "Viral Pneumonia",
}
_OUTSIDE = "Lung_Opacity"
_MASKS = "masks"
# The names that Kermany et al. (2018) gave their images carry the patient.
_KERMANY = (
    re.compile(r"(person\d+)_(?:virus|bacteria)_\d+"),
    re.compile(r"((?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)?"),
)


@dataclass(frozen=True)
class CovidRadiographyConfig:
    """COVID-19 Radiography Database, unpacked, any of its versions: folders COVID-19 (or COVID),
    NORMAL and Viral Pneumonia, each with images or with images/ and masks/ in it. 60 images of each
    class test, as in Bassi & Attux; of the rest, 80 % train and 20 % validate."""

    src: Path
    """Folder with the class folders, or the folder around it."""


class CovidRadiography(Source):
    """The Source built from a CovidRadiographyConfig."""

    name = NAME
    vocabulary = COVID
    split = SplitConfig((0.8, 0.2, 0.0), test_per_class=60)

    def __init__(self, config: CovidRadiographyConfig) -> None:
        """UserError when no class folders are there."""
        self.src, self.root = config.src, _find_root(config.src)
        self.prefix = "" if self.root == config.src else f"{self.root.name}/"
        self.synthetic = (config.src / "SYNTHETIC").is_file()
        kinds = (kind_passed_over(path) for folder in self._folders() for path in folder.iterdir())
        self.notes = tell_passed_over(self.src, Counter(kind for kind in kinds if kind))

    def paths(self) -> tuple[Path, ...]:
        return (self.src, *self._folders())  # which may be links to elsewhere

    def records(self) -> list[Record]:
        return [_record(name_below(path, self.root)) for path in self._files()]

    def named(self, line: str) -> tuple[str, ...]:
        """Lists may begin at the folder around the class folders."""
        plain = line.removeprefix("./")
        return (plain, plain.removeprefix(self.prefix))

    def inventory(self) -> list[tuple[str, int]]:
        files = ((path, path.stat().st_size) for path in self._files())
        names = ((name_below(path, self.root), size) for path, size in files)
        return [(name.encode("utf-8", "surrogateescape").hex(), size) for name, size in names]

    def surely_missing(self, records: Sequence[Record]) -> Missing | None:
        return None  # the folders are all that says which images there are

    def unlisted(self, records: Sequence[Record]) -> str | None:
        return count_unlisted(self.src, set(self._files()), NOT_IN_FOLDERS, aside=_MASKS)

    def images(self) -> Iterator[SourceImage]:
        for path in self._files():
            yield folder_image(path, name_below(path, self.root))

    def _folders(self) -> Iterator[Path]:
        for name in sorted([*_CLASSES, _OUTSIDE]):
            folder = self.root / name
            inner = folder / "images"
            if folder.is_dir():
                yield inner if inner.is_dir() else folder

    def _files(self) -> Iterator[Path]:
        for folder in self._folders():
            yield from image_files(folder)


def _find_root(src: Path) -> Path:
    require_folder(src, "the unpacked COVID-19 Radiography Database")
    around = sorted(path for path in src.iterdir() if path.is_dir())
    for root in [src, *around]:
        found = {_CLASSES[name] for name in _CLASSES if (root / name).is_dir()}
        if found == set(COVID.names):
            return root
    raise UserError(
        f"no class folders in {src}; expected COVID-19 (or COVID), NORMAL and Viral Pneumonia; "
        f"found: {', '.join(path.name for path in around[:6]) or 'no folder'}"
    )


def _record(location: str) -> Record:
    folder = location.split("/", 1)[0]
    outside = folder == _OUTSIDE
    return Record(
        location=location,
        key=make_key(location),
        labels=() if outside else (_CLASSES[folder],),
        patient=_patient(PurePosixPath(location).stem),
        excluded=f"class {_OUTSIDE} is not in the vocabulary" if outside else None,
    )


def _patient(stem: str) -> str | None:
    original = re.sub(r" \(\d+\)$", "", stem)  # `x (1)`: a file manager's copy of x
    for pattern in _KERMANY:
        match = pattern.fullmatch(original)
        if match:
            return f"{NAME}:{match[1]}"
    return None
