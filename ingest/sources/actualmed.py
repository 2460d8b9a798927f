"""Actualmed COVID-19 chest X-rays: `metadata.csv`, which names files in `imagename`, and `images/`
-> COVID-19 or not; inconclusive rows (a blank finding) are left out.

Chung, "Actualmed COVID-19 Chest X-ray Data Initiative" (2020).
Run: python -m ingest actualmed --src PATH --out DIR
"""

from dataclasses import dataclass
from pathlib import Path

from ingest.covid_table import CovidTable

NAME = "actualmed"


@dataclass(frozen=True)
class ActualmedConfig:
    """The Actualmed COVID-19 chest X-ray data set: metadata.csv and images/, as cloned. Labels:
    Not COVID-19 (its "No finding"), COVID-19. Inconclusive rows (a blank finding) are left out and
    counted. Patients are split 70/10/20."""

    src: Path
    """Folder with metadata.csv and images/."""


class Actualmed(CovidTable):
    """The Source built from an ActualmedConfig."""

    name = NAME
    file_column = "imagename"

    def __init__(self, config: ActualmedConfig) -> None:
        super().__init__(config.src)
