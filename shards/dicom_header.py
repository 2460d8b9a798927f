"""What a DICOM file says of itself, read without its pixels and within bounds.

A stranger's header is parsed in plain Python (pydicom), never further than the tags wanted here,
never more than `MAX_HEADER_BYTES` of it. Error messages carry no content of the file, since any of
it may name a patient: they are made of our own words and of names from the standard.
"""

import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, BinaryIO

from pydicom import config
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from shards.codec import BadImage, is_dicom
from shards.kinds import kind_of

PREAMBLE_BYTES = 132  # 128 of anything, then DICM
MAX_INFLATED_BYTES = 320 << 20  # 100 megapixels, three bytes each, and a header
FIRST_BYTES = 1 << 16  # enough for nearly every header
MAX_HEADER_BYTES = 16 << 20
_TOO_LONG = f"a DICOM header of more than {MAX_HEADER_BYTES} bytes"
MAX_ELEMENTS = 20_000  # at the top level; a rich header has 300

config.settings.reading_validation_mode = config.IGNORE  # its complaints quote the values

_FIELDS = {
    "modality": 0x00080060,
    "sop_class": 0x00080016,
    "sop_instance": 0x00080018,
    "intent": 0x00080068,
    "patient_id": 0x00100020,
    "issuer": 0x00100021,
    "sex": 0x00100040,
    "age": 0x00101010,
    "view": 0x00185101,
    "orientation": 0x00200020,
    "series_laterality": 0x00200060,
    "image_laterality": 0x00200062,
    "burnt_in": 0x00280301,
}
_VIEW_CODES, _CODE_MEANING = 0x00540220, 0x00080104
_WANTED = [*_FIELDS.values(), _VIEW_CODES]
_LAST = max(_WANTED)
_PIXELS = 0x7FE00010


class NotDicom(BadImage):
    """Not a DICOM file, by its first bytes."""


class BadHeader(BadImage):
    """A header that cannot be read. sop_instance: what the file's beginning says of it."""

    def __init__(self, reason: str, sop_instance: str) -> None:
        super().__init__(reason)
        self.sop_instance = sop_instance


@dataclass(frozen=True)
class DicomHeader:
    """The elements as text, several values joined by a backslash; empty where absent. They are
    left out of its repr: identifiers belong into no message. cut: the file ends before any element
    that lies behind them, as the pixels do."""

    modality: str = field(default="", repr=False)
    sop_class: str = field(default="", repr=False)
    sop_instance: str = field(default="", repr=False)
    intent: str = field(default="", repr=False)
    patient_id: str = field(default="", repr=False)
    issuer: str = field(default="", repr=False)
    sex: str = field(default="", repr=False)
    age: str = field(default="", repr=False)
    view: str = field(default="", repr=False)
    orientation: str = field(default="", repr=False)
    series_laterality: str = field(default="", repr=False)
    image_laterality: str = field(default="", repr=False)
    burnt_in: str = field(default="", repr=False)
    view_meaning: str = field(default="", repr=False)
    cut: bool = False


def read_header(stream: BinaryIO) -> DicomHeader:
    """The header of the file that a stream is at the beginning of; reads on only where it must.

    The same bytes give the same result or the same reason (BadHeader; NotDicom), however large the
    pieces that the stream comes in.
    """
    data = stream.read(FIRST_BYTES)
    if not is_dicom(data):
        raise NotDicom(kind_of(data) or "no DICOM preamble")
    try:
        header = _parse(data) if len(data) == FIRST_BYTES else None
        if header is None:
            data += stream.read(MAX_HEADER_BYTES - len(data))
            header = _parse(data, whole=len(data) < MAX_HEADER_BYTES)
    except BadImage as error:
        raise BadHeader(str(error), _said_instance(data)) from None
    if header is None:
        raise BadHeader(_TOO_LONG, _said_instance(data))
    return header


def _said_instance(data: bytes) -> str:
    """The SOPInstanceUID that stands in the file's first group; empty where that is damaged too."""
    try:
        with contained():
            return str(_first_group(BytesIO(data)).get("MediaStorageSOPInstanceUID", ""))
    except BadImage:
        return ""


@contextmanager
def contained() -> Iterator[None]:
    """What fails inside over a stranger's DICOM becomes BadImage, and nothing is printed: the
    parser's own messages quote the values that they stumble over."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(f"damaged DICOM ({type(error).__name__})") from None


def _parse(data: bytes, *, whole: bool = False) -> DicomHeader | None:
    """None when the wanted elements may go on behind these bytes. whole: there are no more."""
    try:
        with contained():
            dataset, reached_end = _read_wanted(data)
            if reached_end or whole:
                return _header(dataset, cut=not reached_end)
    except BadImage:
        if whole or len(data) > FIRST_BYTES:
            raise
    return None


def _read_wanted(data: bytes) -> tuple[Dataset, bool]:
    """The wanted elements, and whether an element behind the last of them was met."""
    data = inflated(data, MAX_HEADER_BYTES)
    met = [0, 0]  # elements; the highest tag

    def stop(tag: int, vr: str | None, length: int) -> bool:
        met[:] = met[0] + 1, tag
        if met[0] > MAX_ELEMENTS:
            raise BadImage(f"a DICOM header of more than {MAX_ELEMENTS} elements")
        return tag > _LAST

    dataset = read_partial(BytesIO(data), stop_when=stop, specific_tags=list(_WANTED))
    if met[1] <= _LAST and len(data) >= MAX_HEADER_BYTES:
        raise BadImage(_TOO_LONG)
    return dataset, met[1] > _LAST


def inflated(data: bytes, limit: int = MAX_INFLATED_BYTES) -> bytes:
    """A DICOM file as Explicit VR Little Endian where it is deflated (PS3.5, A.5), else as it is.

    At most about `limit` bytes, so that no bomb goes off: what lies behind them is not inflated.
    """
    stream = BytesIO(data)
    meta = _first_group(stream)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return data
    begin = stream.tell()
    deflated, plain = DeflatedExplicitVRLittleEndian.encode(), ExplicitVRLittleEndian.encode()
    head = data[:begin].replace(deflated, plain.ljust(len(deflated), b"\0"), 1)
    return head + zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[begin:], limit)


def _first_group(stream: BytesIO) -> Dataset:
    """The file meta information, behind which the stream is left."""
    stream.seek(PREAMBLE_BYTES)
    behind: Callable[[Any, str | None, int], bool] = lambda tag, vr, length: tag >> 16 != 2  # noqa: E731
    return read_dataset(stream, False, True, stop_when=behind)


def has_pixels(data: bytes) -> bool:
    """Whether the element of the pixels begins in these bytes, whole or cut."""
    met: list[int] = []

    def stop(tag: int, vr: str | None, length: int) -> bool:
        met.append(tag)
        return tag >= _PIXELS

    read_partial(BytesIO(data), stop_when=stop, specific_tags=[])
    return _PIXELS in met


def _header(dataset: Dataset, *, cut: bool) -> DicomHeader:
    texts = {name: _text(dataset, tag) for name, tag in _FIELDS.items()}
    if not texts["sop_instance"]:
        texts["sop_instance"] = str(dataset.file_meta.get("MediaStorageSOPInstanceUID", ""))
    if not texts["sop_class"]:
        texts["sop_class"] = str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    codes = dataset[_VIEW_CODES].value if _VIEW_CODES in dataset else None
    meaning = _text(codes[0], _CODE_MEANING) if codes else ""
    return DicomHeader(**texts, view_meaning=meaning, cut=cut)


def _text(dataset: Dataset, tag: int) -> str:
    value = dataset[tag].value if tag in dataset else None
    parts = value if isinstance(value, MultiValue) else [value]
    return "\\".join("" if part is None else str(part).strip(" \0") for part in parts)
