"""Figure 1 COVID-19 chest X-rays: a Latin-1 `metadata.csv` without file names, and
`images/<patientid>.jpg` or `.png` -> COVID-19 or not.

`COVID-00003a` and `COVID-00003b` are two images of patient COVID-00003. Rows with a blank finding
(no test result) are left out. Chung, "Figure 1 COVID-19 Chest X-ray Data Initiative" (2020).
Run: python -m ingest figure1 --src PATH --out DIR
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ingest.covid_table import CovidTable
from shards.console import UserError

NAME = "figure1"


@dataclass(frozen=True)
class Figure1Config:
    """The Figure 1 COVID-19 chest X-ray data set: metadata.csv and images/<patientid>.jpg or .png,
    as cloned. Labels: Not COVID-19, COVID-19. Rows with a blank finding are left out and counted.
    Patients are split 70/10/20."""

    src: Path
    """Folder with metadata.csv and images/."""


class Figure1(CovidTable):
    """The Source built from a Figure1Config."""

    name = NAME
    file_column = "patientid"

    def __init__(self, config: Figure1Config) -> None:
        """UserError as for CovidTable, and when one patientid has two files."""
        super().__init__(config.src)
        self.by_stem: dict[str, str] = {}
        for name, path in self.files.items():
            if self.by_stem.setdefault(path.stem, name) != name:
                raise UserError(
                    f"{path.parent} has both {self.by_stem[path.stem]} and {name}; expected one "
                    "image per patientid; remove one"
                )

    def file_of(self, cells: Mapping[str, str]) -> str:
        image = cells[self.file_column]
        return self.by_stem.get(image, f"{image}.jpg" if image else "")

    def patient_of(self, cells: Mapping[str, str]) -> str:
        return re.sub(r"(?<=\d)[a-z]$", "", cells["patientid"])
