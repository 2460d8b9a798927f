"""covid-chestxray-dataset (ieee8023): `metadata.csv` and `images/` -> COVID-19 or not.

Cohen et al., "COVID-19 Image Data Collection" (2020). All versions of its table: `Patientid` and
` url` or `patientid`, `RT_PCR_positive` and `folder`; with or without `modality`; findings flat
(`COVID-19, ARDS`) or as paths (`Pneumonia/Viral/COVID-19`). CT and lateral views are left out.
Run: python -m ingest covid-chestxray --src PATH --out DIR
"""

from dataclasses import dataclass
from pathlib import Path

from ingest.covid_table import CovidTable

NAME = "covid-chestxray"


@dataclass(frozen=True)
class CovidChestxrayConfig:
    """The covid-chestxray-dataset of ieee8023, any of its versions: metadata.csv and images/, as
    cloned. Labels: Not COVID-19, COVID-19. CT, lateral views and open findings (todo, Unknown) are
    left out and counted. Patients are split 70/10/20."""

    src: Path
    """Folder with metadata.csv and images/."""


class CovidChestxray(CovidTable):
    """The Source built from a CovidChestxrayConfig."""

    name = NAME

    def __init__(self, config: CovidChestxrayConfig) -> None:
        super().__init__(config.src)
