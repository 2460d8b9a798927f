"""The data sets there are: command name -> config class and the Source built from it."""

from collections.abc import Callable
from typing import Any

from ingest.record import Source
from ingest.sources import chestxray14, covid_radiography

SOURCES: dict[str, tuple[type, Callable[[Any], Source]]] = {
    chestxray14.NAME: (chestxray14.ChestXray14Config, chestxray14.ChestXray14),
    covid_radiography.NAME: (
        covid_radiography.CovidRadiographyConfig,
        covid_radiography.CovidRadiography,
    ),
}
