"""One sample of a shard: an image's bytes, its labels, its metadata, under a key.

Its members in the tar: `<key>.<image extension>`, `<key>.lab` (int8 per label), `<key>.json`.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields

import numpy as np

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")  # WebDataset cuts a name at its first dot
LABELS_EXTENSION, META_EXTENSION = "lab", "json"

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=asdict)


@dataclass(frozen=True)
class Box:
    """A finding's rectangle, in pixels of the original image: left, top, width, height."""

    label: str
    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True)
class SampleMeta:
    """What is known of a sample beside image and labels. None: not known."""

    source: str
    file: str
    sha256: str  # of the source file's bytes
    width: int  # of the source image, pixels
    height: int
    patient: str | None = None
    view: str | None = None
    age: int | None = None
    sex: str | None = None
    boxes: tuple[Box, ...] = ()

    def to_json(self) -> bytes:
        """Canonical JSON: the same metadata gives the same bytes."""
        # vars, and asdict for the boxes only: asdict of the whole copies every value, 0.15 ms.
        return _CANONICAL.encode(vars(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "SampleMeta":
        """Inverse of to_json. ValueError for anything else."""
        raw = json.loads(data)
        if not isinstance(raw, dict) or set(raw) != {f.name for f in fields(cls)}:
            raise ValueError("the sample's JSON does not have the fields of a SampleMeta")
        return cls(**{**raw, "boxes": tuple(Box(**box) for box in raw["boxes"])})


@dataclass(frozen=True)
class Sample:
    """image: encoded bytes; extension: of the image, no dot; labels: (L,) int8."""

    key: str
    image: bytes
    extension: str
    labels: np.ndarray = field(repr=False)
    meta: SampleMeta


def make_key(name: str) -> str:
    """A key for a file name: itself where it is clean, else cleaned and made unique by a hash.

    >>> make_key("00000001_000")
    '00000001_000'
    """
    if KEY_PATTERN.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:64]
    return f"{clean}-{digest}" if clean else digest
