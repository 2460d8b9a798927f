"""COVID-Xray-5k: `{train,test}/{covid,non}/`, images at any depth -> COVID-19 or other.

Minaee et al., "Deep-COVID" (arXiv 2004.09363): 84 COVID-19 and 2000 other images for training, 100
and 3000 for testing. Some copies nest `test/non/<finding>/`. Its patients are unknown.
Run: python -m ingest covid-xray-5k --src PATH --out DIR
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ingest.file_source import FileSource, image_tree, require_folder, split_folders
from ingest.given_split import GIVEN_SPLIT, val_from_train
from ingest.record import Record
from shards.console import UserError
from shards.labels import Vocabulary
from shards.sample import make_key
from shards.splits import read_as

NAME = "covid-xray-5k"
_CLASSES = {"covid": "COVID-19", "non": "Other"}


@dataclass(frozen=True)
class CovidXray5kConfig:
    """COVID-Xray-5k, unpacked: train/covid, train/non, test/covid and test/non, in any usual
    spelling, images at any depth. Labels: Other, COVID-19. The published test set; 10 % of train
    becomes val."""

    src: Path
    """Folder with train/ and test/, or the folder around it."""


class CovidXray5k(FileSource):
    """The Source built from a CovidXray5kConfig."""

    name = NAME
    vocabulary = Vocabulary(("Other", "COVID-19"), exclusive=True)
    split = GIVEN_SPLIT

    def __init__(self, config: CovidXray5kConfig) -> None:
        """UserError when the four folders are not there, or one holds no image."""
        require_folder(config.src, "the unpacked COVID-Xray-5k")
        root, self.folders = split_folders(config.src, tuple(_CLASSES))
        files: dict[str, Path] = {}
        passed: Counter[str] = Counter()
        for folder in self.folders:
            tree = image_tree(root, root / folder, passed)
            if not tree:
                raise UserError(f"no image in {root / folder}; unpack the data set again")
            files |= tree
        super().__init__(config.src, files, passed)
        splits = {folder.split("/")[0]: split for folder, (split, _) in self.folders.items()}
        self.notes = (*self.notes, *read_as(splits))

    def records(self) -> list[Record]:
        return val_from_train([self._record(location) for location in self.files])

    def _record(self, location: str) -> Record:
        split, folder = self.folders["/".join(location.split("/")[:2])]
        return Record(location, make_key(location), (_CLASSES[folder],), split=split)
