"""DICOM files with a table of labels -> records that hold no identifier.

A patient, an image and a file are each a keyed hash (ingest/pseudonym.py); a bad file is found
again by the SHA-256 of its bytes, which stands in quarantine.parquet. The pass over the headers
reads an archive once more than the pass over the pixels.
Run: python -m ingest dicom --src PATH --labels FILE --key-file FILE --out DIR
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ingest.dicom_files import FoundFile, found_files
from ingest.dicom_labels import LabelRow, make_vocabulary, read_labels
from ingest.dicom_meta import describe
from ingest.file_source import check_name
from ingest.given_split import GIVEN_SPLIT, keep_patients_apart, val_from_train
from ingest.pseudonym import Pseudonyms, load_key
from ingest.record import Record, SourceImage
from ingest.split import SplitConfig
from shards.codec import BadImage
from shards.console import UserError, progress, warn
from shards.dicom_header import DicomHeader, NotDicom, read_header

NAME = "dicom"
NO_ROW = "no row in the label table"
REPEATED = "SOPInstanceUID of another file"
_SUFFIXES = (".dcm", ".dicom")
_NO_FILE = "no-file-"  # in front of the location of a row whose file is not there


@dataclass(frozen=True)
class DicomConfig:
    """DICOM radiographs (CR, DX) with a CSV of labels. Patients, images and files are named by
    hashes under a key that you keep; no name, date or identifier reaches the shards or the log."""

    src: Path
    """Folder (with all below it), tar, tar.gz or zip of DICOM files. Nothing is unpacked."""
    labels: Path
    """CSV with the columns id (SOPInstanceUID, or path below SRC), labels (joined by |) and, where
    you have splits, split (train, val, test, or train_val, which is divided 90/10)."""
    key_file: Path
    """The secret key of the hashes, made when it is not there. Keep it, and apart from OUT: with
    it, known patients can be found in the shards; without it, no patient keeps the same hash."""
    name: str = NAME
    """Name of the data set: of its folder in OUT and of its shards."""
    vocabulary: str = ""
    """The labels in the order of the outputs, as a,b,c. Default: those of the table, sorted."""
    keep_lateral: bool = False
    """Keep lateral, oblique and decubitus views."""
    allow_burnt_in: bool = False
    """Keep images whose header says that text is burnt into their pixels (it may be a name)."""


class Dicom:
    """The Source built from a DicomConfig."""

    synthetic = False

    def __init__(self, config: DicomConfig) -> None:
        """UserError for a source, table or key that is missing or wrong."""
        if not config.src.exists():
            raise UserError(f"no folder or archive {config.src}; --src names the DICOM files")
        self.config = config
        self.name = check_name(config.name)
        self.rows = read_labels(config.labels)
        given = [label.strip() for label in config.vocabulary.split(",") if label.strip()]
        self.vocabulary = make_vocabulary(self.rows, given, config.labels)
        self.split = GIVEN_SPLIT if self.rows[0].split else SplitConfig()
        self.pseudonyms = Pseudonyms(load_key(config.key_file))

    def records(self) -> list[Record]:
        """Reads every header; a file whose header cannot be read has a record, for the worker that
        decodes it to refuse."""
        table = _LabelTable(self.rows, self.config.labels)
        records: list[Record] = []
        kept: set[str] = set()  # SOPInstanceUIDs
        passed_over = 0
        with progress("read headers", None) as advance:
            for file in found_files(self.config.src):
                advance(1)
                try:
                    with file.stream() as stream:
                        header = read_header(stream)
                except NotDicom:
                    if PurePosixPath(file.name).suffix.lower() not in _SUFFIXES:
                        passed_over += 1
                        continue
                    header = None
                except BadImage:
                    header = None
                records.append(self._record(file, header, table, kept))
        if passed_over:
            warn(f"{passed_over} files are not DICOM; passed over")
        _warn_of_views(records)
        records += [self._without_file(row) for row in table.unused()]
        return keep_patients_apart(val_from_train(records)) if self.rows[0].split else records

    def inventory(self) -> list[tuple[str, int]]:
        if not self.config.src.is_dir():
            return [(self._location(self.config.src.name), self.config.src.stat().st_size)]
        return [(self._location(file.name), file.size) for file in found_files(self.config.src)]

    def surely_missing(self, records: Sequence[Record]) -> str | None:
        missing = sum(record.location.startswith(_NO_FILE) for record in records)
        if not missing:
            return None
        return f"{missing} of the label table's {len(self.rows)} rows are for no file in --src"

    def images(self) -> Iterator[SourceImage]:
        for file in found_files(self.config.src):
            stamp = self.pseudonyms.of("stamp", file.stamp)
            yield SourceImage(self._location(file.name), stamp, file.read)

    def _location(self, name: str) -> str:
        return f"{self.pseudonyms.of('file', name)}.dcm"

    def _record(
        self, file: FoundFile, header: DicomHeader | None, table: "_LabelTable", kept: set[str]
    ) -> Record:
        location = self._location(file.name)
        key = location.removesuffix(".dcm")
        if header is None:
            row = table.row(file.name, "")
            return Record(
                location, key, row.labels if row else (), split=row.split if row else None
            )
        row = table.row(file.name, header.sop_instance)
        described = describe(
            header,
            keep_lateral=self.config.keep_lateral,
            allow_burnt_in=self.config.allow_burnt_in,
        )
        excluded = described.excluded or (None if row else NO_ROW)
        if excluded is None and header.sop_instance in kept:
            excluded = REPEATED
        if excluded is None:
            kept.add(header.sop_instance)
            key = self.pseudonyms.of("image", header.sop_instance)
        return Record(
            location=location,
            key=key,
            labels=row.labels if row else (),
            patient=self._patient(header),
            view=described.view,
            age=described.age,
            sex=described.sex,
            split=row.split if row else None,
            excluded=excluded,
        )

    def _patient(self, header: DicomHeader) -> str | None:
        if not header.patient_id:
            return None
        return f"{self.name}:{self.pseudonyms.of('patient', header.issuer, header.patient_id)}"

    def _without_file(self, row: LabelRow) -> Record:
        name = self.pseudonyms.of("row", row.id)
        return Record(f"{_NO_FILE}{name}", f"{_NO_FILE}{name}", row.labels, split=row.split)


class _LabelTable:
    """The rows by id, and which of them were used."""

    def __init__(self, rows: Sequence[LabelRow], path: Path) -> None:
        self.by_id, self.path = {row.id: row for row in rows}, path
        self.used: set[str] = set()

    def row(self, name: str, sop_instance: str) -> LabelRow | None:
        """The row of a file, by its path or by its UID. UserError when two rows contradict."""
        found = [self.by_id[i] for i in (name, sop_instance) if i and i in self.by_id]
        self.used.update(row.id for row in found)
        if len({(row.labels, row.split) for row in found}) > 1:
            lines = " and ".join(str(line) for line in sorted(row.line for row in found))
            raise UserError(f"{self.path} lines {lines} are for one file and differ; keep one")
        return found[0] if found else None

    def unused(self) -> list[LabelRow]:
        return [row for row in self.by_id.values() if row.id not in self.used]


def _warn_of_views(records: Sequence[Record]) -> None:
    unknown = sum(not r.excluded and r.view is None for r in records)
    if unknown:
        warn(f"{unknown} of {len(records)} files do not say their view; they stay")
