"""What of a DICOM header may go into a shard, and which images do not belong there.

Allowed: view, sex, age in years (90 for all above: the older could be told by it). Nothing else of
the header leaves it but under a keyed hash; no dates. What a reason quotes is a word of the
standard.
"""

import re
from dataclasses import dataclass

from shards.dicom_header import DicomHeader

MAX_AGE = 90
_LARGEST_AGE = 120  # years
_RADIOGRAPHS = ("CR", "DX", "DR")
_OTHERS = """AU BI BMD CT DOC ECG EPS ES FID GM HD IO IVOCT IVUS KER KO LS MG MR NM OAM OCT OP OPM
OPT OPV OT PLAN PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT SEG SM SMR SR SRF
STAIN TG US VA XA XC"""
_RADIOGRAPH_CLASSES = {  # where the modality is left empty
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",
}
_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
LATERAL, OBLIQUE, DECUBITUS = "L", "oblique", "decubitus"
_VIEWS = {  # ViewPosition (0018,5101): the standard's terms, then what vendors write
    "PA": "PA",
    "AP": "AP",
    **dict.fromkeys(("LL", "RL", "L", "LAT", "LATERAL", "LLAT", "RLAT"), LATERAL),
    **dict.fromkeys(("LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "OBLIQUE"), OBLIQUE),
    **dict.fromkeys(("LLD", "RLD"), DECUBITUS),
}
_WORDS = (  # in ViewPosition or the meaning of ViewCodeSequence; the first that fits
    ("oblique", OBLIQUE),
    ("decubitus", DECUBITUS),
    ("bilateral", None),
    ("lateral", LATERAL),
    ("postero anterior", "PA"),
    ("posteroanterior", "PA"),
    ("antero posterior", "AP"),
    ("anteroposterior", "AP"),
)


BURNT_IN = "its header tells of burnt-in annotation; --allow-burnt-in takes such images"


@dataclass(frozen=True)
class Described:
    """What a record takes over. modality: as the standard words it; excluded: why the image is
    left out; held_back: why it is put into quarantine, where it is not."""

    view: str | None
    modality: str | None
    age: int | None
    sex: str | None
    excluded: str | None
    held_back: str | None


def is_cut_short(header: DicomHeader) -> bool:
    """Whether a radiograph's file, or what may have been one, ends within its header, so that what
    it does not say may be lost. Reports and directories have no pixels, and are not meant."""
    may_be = header.modality.upper() in ("", *_RADIOGRAPHS)
    return header.cut and may_be and header.sop_class in ("", *_RADIOGRAPH_CLASSES)


def describe(header: DicomHeader, *, keep_lateral: bool, allow_burnt_in: bool) -> Described:
    """The header, judged."""
    view = view_of(header)
    modality = _modality(header)
    reason = _not_a_radiograph(header, modality)
    if reason is None and view in (LATERAL, OBLIQUE, DECUBITUS) and not keep_lateral:
        reason = f"{'lateral' if view == LATERAL else view} view"
    if reason is None and not header.sop_instance:
        reason = "no SOPInstanceUID"
    is_held_back = reason is None and header.burnt_in.upper() == "YES" and not allow_burnt_in
    sex = header.sex.upper()
    return Described(
        view,
        modality,
        age_of(header.age),
        sex if sex in ("F", "M", "O") else None,
        reason,
        BURNT_IN if is_held_back else None,
    )


def _modality(header: DicomHeader) -> str | None:
    """A term of the standard, `other` for any other word, None where none is given."""
    modality = header.modality.upper() or _RADIOGRAPH_CLASSES.get(header.sop_class, "")
    known = modality in _RADIOGRAPHS or modality in _OTHERS.split()
    return (modality if known else "other") if modality else None


def _not_a_radiograph(header: DicomHeader, modality: str | None) -> str | None:
    if modality not in _RADIOGRAPHS:
        return f"modality {modality}" if modality else "modality not given"
    if header.intent.upper() == "FOR PROCESSING" or header.sop_class == _FOR_PROCESSING:
        return "raw image, for processing"
    return None


def view_of(header: DicomHeader) -> str | None:
    """PA, AP, L, oblique, decubitus; None where nothing tells. The view position decides, then the
    view code, then how the patient lies in the picture, then a side: a frontal view has none."""
    for text in (header.view, header.view_meaning):
        view = _view(text)
        if view is not None:
            return view
    if header.orientation[:1].upper() in ("A", "P"):
        return LATERAL  # rows run from front to back
    sides = (header.image_laterality.upper(), header.series_laterality.upper())
    return LATERAL if any(side in ("L", "R") for side in sides) else None


def _view(text: str) -> str | None:
    words = re.sub(r"[^A-Z]+", " ", text.upper()).split()
    if words and words[0] in _VIEWS:  # `AP SUPINE` too
        return _VIEWS[words[0]]
    joined = " ".join(words).lower()
    return next((view for word, view in _WORDS if word in joined), None)


def age_of(text: str) -> int | None:
    """`058Y`, `009M`, `58` -> whole years, at most MAX_AGE. `999Y` and all above 120: None."""
    match = re.fullmatch(r"(\d{1,3})([YMWD]?)", text.upper())
    if not match:
        return None
    years = int(match[1]) // {"M": 12, "W": 52, "D": 365}.get(match[2], 1)
    return min(years, MAX_AGE) if years <= _LARGEST_AGE else None
