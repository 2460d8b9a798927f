"""A clone with `metadata.csv` and `images/`, in the columns that the collections of COVID-19
radiographs share (patientid, finding, view, modality, age, sex) -> records, COVID-19 or not."""

from collections.abc import Mapping
from pathlib import Path

from ingest.cells import patients_of, refuse_repeats, years
from ingest.covid_findings import COVID_OR_NOT, covid_label, exclusion
from ingest.file_source import NOT_IN_TABLE, FileSource, files_by_name, require_folder
from ingest.record import Record
from ingest.split import SplitConfig
from shards.console import UserError
from shards.csv_table import read_rows
from shards.sample import make_key

_REQUIRED = ("patientid", "finding", "view")
_OPTIONAL = ("modality", "age", "sex")  # the first covid-chestxray-dataset has no modality
TABLE = "metadata.csv"


class CovidTable(FileSource):
    """A Source but for its name; file_column: the one with the names of the files."""

    vocabulary = COVID_OR_NOT
    split = SplitConfig()
    file_column = "filename"
    unlisted_are = NOT_IN_TABLE

    def __init__(self, src: Path) -> None:
        """UserError when the folder, its table or all its images are missing."""
        require_folder(src, f"the clone of the data set, with {TABLE} and images/")
        self.table = src / TABLE
        if not self.table.is_file():
            raise UserError(f"no {TABLE} in {src}; --src names the folder with it and images/")
        super().__init__(src, files_by_name(src / "images"))

    def images_folder(self) -> Path:
        return self.src / "images"

    def file_of(self, cells: Mapping[str, str]) -> str:
        """The image file of a row."""
        return cells[self.file_column]

    def patient_of(self, cells: Mapping[str, str]) -> str:
        """The patient of a row."""
        return cells["patientid"]

    def records(self) -> list[Record]:
        records = []
        rows = list(read_rows(self.table, (*_REQUIRED, self.file_column), _OPTIONAL))
        patients = patients_of([self.patient_of(cells) for _, cells in rows], self.table)
        for (line, cells), patient in zip(rows, patients):
            try:
                records.append(self._record(cells, patient))
            except UserError as error:
                raise UserError(f"{self.table} line {line}: {error}") from error
        refuse_repeats((r.location for r in records), self.table)
        return records

    def _record(self, cells: Mapping[str, str], patient: str | None) -> Record:
        file, finding, view = self.file_of(cells), cells["finding"], cells["view"]
        if not file:
            raise UserError("no image is named; fill it in or remove the row")
        excluded = exclusion(view, cells["modality"], file)
        label = None if excluded else covid_label(finding)
        if not excluded and label is None:
            excluded = f"finding is {finding or 'blank'}"
        return Record(
            location=file,
            key=make_key(file),
            labels=(label,) if label else (),
            patient=f"{self.name}:{patient}" if patient else None,
            view=view or None,
            modality=cells["modality"] or None,
            age=years(cells["age"]),
            sex=cells["sex"] or None,
            excluded=excluded,
        )
