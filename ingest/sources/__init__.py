"""The data sets there are: command name -> config class and the Source built from it."""

from collections.abc import Callable
from typing import Any

from ingest.record import Source
from ingest.sources import (
    actualmed,
    chestxray14,
    covid_chestxray,
    covid_radiography,
    covid_xray_5k,
    dicom,
    figure1,
    folders,
    kermany,
    table,
)

SOURCES: dict[str, tuple[type, Callable[[Any], Source]]] = {
    chestxray14.NAME: (chestxray14.ChestXray14Config, chestxray14.ChestXray14),
    covid_radiography.NAME: (
        covid_radiography.CovidRadiographyConfig,
        covid_radiography.CovidRadiography,
    ),
    covid_chestxray.NAME: (covid_chestxray.CovidChestxrayConfig, covid_chestxray.CovidChestxray),
    covid_xray_5k.NAME: (covid_xray_5k.CovidXray5kConfig, covid_xray_5k.CovidXray5k),
    kermany.NAME: (kermany.KermanyConfig, kermany.Kermany),
    actualmed.NAME: (actualmed.ActualmedConfig, actualmed.Actualmed),
    figure1.NAME: (figure1.Figure1Config, figure1.Figure1),
    folders.NAME: (folders.FoldersConfig, folders.Folders),
    dicom.NAME: (dicom.DicomConfig, dicom.Dicom),
    table.NAME: (table.TableConfig, table.Table),
}
