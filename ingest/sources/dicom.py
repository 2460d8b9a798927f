"""DICOM files with a table of labels -> records that hold no identifier.

A patient, an image and a file are each a keyed hash (ingest/pseudonym.py); a bad file is found
again by the SHA-256 of its bytes, which stands in quarantine.parquet. The pass over the headers
reads an archive once more than the pass over the pixels.
Run: python -m ingest dicom --src PATH --table FILE --key-file FILE --out DIR
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from ingest.dicom_files import FoundFile, found_files
from ingest.dicom_labels import LabelRow, LabelTable, make_vocabulary, read_labels
from ingest.dicom_meta import BURNT_IN, describe, is_cut_short
from ingest.file_map import Row, map_path, write_map
from ingest.file_source import check_name
from ingest.given_split import GIVEN_SPLIT, keep_patients_apart, val_from_train
from ingest.pseudonym import Pseudonyms, load_key
from ingest.record import BadFile, Missing, Record, Source, SourceImage
from ingest.split import SplitConfig
from shards.codec import BadImage, Encoding, is_dicom
from shards.console import UserError, progress, warn
from shards.dicom_header import BadHeader, DicomHeader, NotDicom, read_header
from shards.kinds import kind_of
from shards.members import is_system_file
from shards.remote import is_remote

NAME = "dicom"
NO_ROW = "no row in the label table"
REPEATED = "SOPInstanceUID of another file"
NOT_DICOM = "not a DICOM file"
_UNREAD = "unread header: "  # begins the reason of a file that was put into quarantine for it
_BY_UID = "; its row is known by its SOPInstanceUID"  # ends it where that could be read
_SUFFIXES = (".dcm", ".dicom")
_NO_FILE = "no-file-"  # in front of the location of a row whose file is not there


@dataclass(frozen=True)
class DicomConfig:
    """DICOM radiographs (CR, DX) with a CSV of labels. Patients, images and files are named by
    hashes under a key that you keep; no name, date or identifier reaches the shards or the log."""

    src: Path
    """DICOM files: a folder (with all below it), a zip, a tar, or a tar in gzip, bzip2, xz, lzma or
    zstd. Nothing is unpacked."""
    table: Path
    """CSV with the columns id (SOPInstanceUID, or path below SRC), labels (joined by |) and, where
    you have splits, split (train, val, test, or train_val, which is divided 90/10; Training, valid,
    dev and the like mean the same)."""
    key_file: Path
    """The secret key of the hashes, made (mode 600) when it is not there. Keep it, outside OUT:
    with it, known patients can be found in the shards; without it, no patient keeps the same
    hash. Beside it, FILE.<name>.csv (mode 600) tells the path of each file's hash."""
    name: str = NAME
    """Name of the data set: of its folder in OUT and of its shards."""
    labels: tuple[str, ...] = ()
    """The labels, in the order of the outputs. Default: those in the table, sorted."""
    keep_lateral: bool = False
    """Keep lateral, oblique and decubitus views."""
    allow_burnt_in: bool = False
    """Take images whose header says that text is burnt into their pixels (it may be a name); by
    default they go to quarantine."""


class Dicom(Source):
    """The Source built from a DicomConfig."""

    synthetic, private = False, True

    def __init__(self, config: DicomConfig) -> None:
        """UserError for a source or table that is missing or wrong."""
        if is_remote(config.key_file):
            raise UserError(f"--key-file {config.key_file}; allowed: a file on this machine")
        if not config.src.exists():
            raise UserError(f"no folder or archive {config.src}; --src names the DICOM files")
        self.config = config
        self.name = check_name(config.name)
        self.rows = read_labels(config.table, config.labels)
        self.vocabulary = make_vocabulary(self.rows, config.labels, config.table)
        self.split = GIVEN_SPLIT if self.rows[0].split else SplitConfig()
        self.looked = _Looked()

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """Read late: check() refuses some places for the key before one is made there."""
        return Pseudonyms(load_key(self.config.key_file))

    def check(self, out: Path, encoding: Encoding) -> None:
        """UserError for what would publish the key or the headers."""
        if self.config.key_file.resolve().is_relative_to(out.resolve()):
            raise UserError(
                f"--key-file {self.config.key_file} lies in --out {out}, with which it would be "
                "given away; name a file outside it"
            )
        if encoding == "keep":
            raise UserError(
                "--format keep would keep the DICOM headers, which name the patients; allowed: "
                "htj2k, jpeg, png"
            )

    def paths(self) -> tuple[Path, ...]:
        return (self.config.src, self.config.table)

    def records(self) -> list[Record]:
        """Reads every header; a file whose header cannot be read, or tells of burnt-in words, has a
        record, which images() puts into quarantine. Writes the map of the hashes' files."""
        self.looked = looked = self._look({})
        write_map(self.map_path, looked.files)
        if looked.unread:
            reasons = ", ".join(f"{n} {reason}" for reason, n in looked.unread.most_common())
            warn(
                f"{looked.unread.total()} files cannot be read ({reasons}); they go to quarantine, "
                f"and {self.map_path} names them"
            )
        _warn_of_views(looked.records)
        return looked.records

    def records_before(self, quarantined: Mapping[str, str]) -> list[Record]:
        """Of files whose header can be read now, and could not, or that told of burnt-in words."""
        return self._look(quarantined).records

    @property
    def map_path(self) -> Path:
        """Where the owner of the key finds the file of a hash."""
        return map_path(self.config.key_file, self.name)

    def _look(self, before: Mapping[str, str]) -> "_Looked":
        """before: file -> why it was put into quarantine, and is taken to be still."""
        looked = _Looked()
        table = LabelTable(self.rows, self.config.table)
        kept: set[str] = set()  # SOPInstanceUIDs
        with progress("read headers", None) as advance:
            for file in self._files():
                advance(1)
                header = None if is_system_file(file.name) else self._header(file)
                other = isinstance(header, NotDicom) and not _says_dicom(file.name)
                if header is None or other:
                    looked.passed_over += 1
                    continue
                location = self._location(file.name)
                was = before.get(location, "")
                if isinstance(header, BadImage) or was.startswith((NOT_DICOM, _UNREAD)):
                    problem = self._unread(file.name, location, header, table, was, looked)
                else:
                    problem = ""
                    row = table.row(file.name, header.sop_instance)
                    record, reason = self._record(location, header, row, kept, was)
                    looked.records.append(record)
                    if reason:
                        looked.held_back[location] = reason
                looked.files.append((location.removesuffix(".dcm"), file.name, problem))
        looked.rowless = len(table.unused())
        if looked.rowless > looked.nameless:  # else they may be those of the unread files
            looked.records += [self._without_file(row) for row in table.unused()]
        if self.rows[0].split:
            looked.records = keep_patients_apart(val_from_train(looked.records))
        return looked

    def _unread(
        self,
        name: str,
        location: str,
        header: DicomHeader | BadImage,
        table: LabelTable,
        was: str,
        looked: "_Looked",
    ) -> str:
        """Take in a file whose header is not known; returns why. Its row is found by its path, by
        its name where that is a UID, or by the UID that the damaged file says."""
        row = table.row(name, PurePosixPath(name).stem)
        problem = _why_unread(header)
        said = header.sop_instance if isinstance(header, (BadHeader, DicomHeader)) else ""
        if row is None and (isinstance(header, BadHeader) or was.endswith(_BY_UID)):
            row = table.row(name, said)
            problem += _BY_UID if row else ""
        looked.nameless += row is None
        looked.unread[_why_unread(header)] += 1
        looked.held_back[location] = problem
        looked.records.append(_unread_record(location, row))
        return problem

    def _files(self) -> Iterator[FoundFile]:
        """All but the map, which may lie below --src."""
        own, src = self.map_path.resolve(), self.config.src
        inside = not is_remote(src) and own.is_relative_to(src.resolve())
        name = own.relative_to(src.resolve()).as_posix() if inside else None
        return (file for file in found_files(src) if file.name != name)

    def inventory(self) -> list[tuple[str, int]]:
        if not self.config.src.is_dir():
            return [(self._location(self.config.src.name), self.config.src.stat().st_size)]
        return [(self._location(file.name), file.size) for file in self._files()]

    def surely_missing(self, records: Sequence[Record]) -> Missing | None:
        missing = sum(r.location.startswith(_NO_FILE) and not r.excluded for r in records)
        rows, unread = self.looked.rowless, self.looked.nameless
        if not unread:
            text = f"{missing} of the label table's {len(self.rows)} rows are for no file in --src"
            return Missing(missing, text) if missing else None
        text = (
            f"{rows} of the label table's {len(self.rows)} rows are for no file in --src that can "
            f"be read; {unread} files there cannot be, and may be theirs"
        )
        way = f"fetch again the files that {self.map_path} names with a problem"
        return Missing(missing, text, way) if rows else None

    def unlisted(self, records: Sequence[Record]) -> str | None:
        count = self.looked.passed_over
        return f"{count} files or links are not DICOM or are a system's own" if count else None

    def named(self, line: str) -> tuple[str, ...]:
        """A path below --src, a SOPInstanceUID, or what a finished data set calls an image."""
        path = line.removeprefix("./")
        return (path, self._location(path), self.pseudonyms.of("image", line))

    def images(self) -> Iterator[SourceImage]:
        """What is not DICOM, and what records() knows too little of, is BadFile though its pixels
        may decode: nobody looked for burnt-in words, the patient or the modality."""
        for file in self._files():
            location = self._location(file.name)
            reason = self.looked.held_back.get(location, "")
            # Another stamp, or what a run before encoded would pass for looked at.
            stamp = self.pseudonyms.of("stamp", file.stamp, *([reason] if reason else []))
            yield SourceImage(location, stamp, partial(_read, file, reason))

    @staticmethod
    def _header(file: FoundFile) -> DicomHeader | BadImage:
        try:
            with file.stream() as stream:
                header = read_header(stream)
        except BadImage as error:
            return error
        if is_cut_short(header):
            return BadHeader("it is cut short", header.sop_instance)
        return header

    def _location(self, name: str) -> str:
        return f"{self.pseudonyms.of('file', name)}.dcm"

    def _record(
        self, location: str, header: DicomHeader, row: LabelRow | None, kept: set[str], was: str
    ) -> tuple[Record, str | None]:
        """Of a file whose header was read, and why its image is held back. was: see _look()."""
        allowed = self.config.allow_burnt_in
        described = describe(
            header,
            keep_lateral=self.config.keep_lateral,
            allow_burnt_in=allowed,
        )
        held_back = described.held_back or (was if was == BURNT_IN and not allowed else None)
        excluded = described.excluded or (None if row else NO_ROW)
        if excluded is None and header.sop_instance in kept:
            excluded = REPEATED
        key = location.removesuffix(".dcm")
        if excluded is None and held_back is None:
            kept.add(header.sop_instance)
            key = self.pseudonyms.of("image", header.sop_instance)
        record = Record(
            location=location,
            key=key,
            labels=row.labels if row else (),
            patient=self._patient(header),
            view=described.view,
            age=described.age,
            sex=described.sex,
            split=row.split if row else None,
            excluded=excluded,
            modality=described.modality,
        )
        return record, held_back if excluded is None else None

    def _patient(self, header: DicomHeader) -> str | None:
        if not header.patient_id:
            return None
        return f"{self.name}:{self.pseudonyms.of('patient', header.issuer, header.patient_id)}"

    def _without_file(self, row: LabelRow) -> Record:
        name = self.pseudonyms.of("row", row.id)
        return Record(f"{_NO_FILE}{name}", f"{_NO_FILE}{name}", row.labels, split=row.split)


def _unread_record(location: str, row: LabelRow | None) -> Record:
    key = location.removesuffix(".dcm")
    return Record(location, key, row.labels if row else (), split=row.split if row else None)


def _why_unread(header: DicomHeader | BadImage) -> str:
    return f"{NOT_DICOM} ({header})" if isinstance(header, NotDicom) else f"{_UNREAD}{header}"


def _says_dicom(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _SUFFIXES


def _read(file: FoundFile, held_back: str) -> bytes:
    """All bytes of a DICOM file. BadFile: another one, or one that is held back (why)."""
    try:
        data = file.read()
    except BadImage as error:
        raise BadImage(held_back or str(error)) from None
    other = f"{NOT_DICOM} ({kind_of(data) or 'no DICOM preamble'})"
    reason = held_back if is_dicom(data) else other
    if reason:
        raise BadFile(reason, hashlib.sha256(data).hexdigest())
    return data


@dataclass
class _Looked:
    """What a look at every header found. held_back: location -> why images() does not give its
    pixels; unread: reason -> files; nameless: unread files of which no row is known; rowless: rows
    of which no file is known; passed_over: files that are not DICOM; files: for the map."""

    records: list[Record] = field(default_factory=list)
    held_back: dict[str, str] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    files: list[Row] = field(default_factory=list, repr=False)
    nameless: int = 0
    rowless: int = 0
    passed_over: int = 0


def _warn_of_views(records: Sequence[Record]) -> None:
    unknown = sum(not r.excluded and r.view is None for r in records)
    if unknown:
        warn(f"{unknown} of {len(records)} files do not say their view; they stay")
