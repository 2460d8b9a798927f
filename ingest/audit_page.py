"""audit.html of a data set: its copies side by side, what became of them, and what leaks.

One page that needs nothing else: no network, no scripts. Every text from data is escaped.
"""

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import jinja2
import numpy as np

from ingest.audit import Pair
from ingest.choice import Choice, Excluded, Found
from ingest.near import BITS, THRESHOLD
from ingest.split import TEST, TRAIN, VAL, shared_patients
from ingest.spool import Images
from shards.codec import decode_grey, encode
from shards.writer import write_atomic

FILE_NAME = "audit.html"
SHOWN = 200  # pairs: about 2 MB of pictures
_THUMBNAIL = 160  # px, the longer side


@dataclass(frozen=True)
class Side:
    """One image of a pair. picture: a data URI; became: its split, or why it was left out."""

    key: str
    file: str
    source: str
    labels: str
    became: str
    picture: str


@dataclass(frozen=True)
class Shown:
    """A pair as the page shows it."""

    reason: str
    distance: int
    across: bool
    sides: tuple[Side, Side]


def write_page(folder: Path, dataset: str, choice: Choice, images: Images) -> None:
    """Write `folder/audit.html`."""
    splits, found = choice.splits, {f.record.key: f for f in choice.found}
    left_out = {e.record.key: e for e in choice.excluded}
    # What stays is what someone has to look at: those pairs first, across splits before others.
    pairs = sorted(choice.pairs, key=lambda p: (_urgency(p, splits), p.first, p.second))
    shown = []
    for pair in pairs[:SHOWN]:
        one, other = (
            _side(found[key], splits, left_out, images) for key in (pair.first, pair.second)
        )
        across = _urgency(pair, splits) == 0
        shown.append(Shown(pair.reason, pair.distance, across, (one, other)))
    counts = Counter(splits.values())
    page = _template().render(
        dataset=dataset,
        shown=shown,
        hidden=len(pairs) - len(shown),
        counts=sorted(Counter(_kind(p, splits) for p in pairs).items()),
        patients=len(shared_patients([k.record for k in choice.kept], splits)),
        images=len(choice.kept),
        unknown=choice.unknown_patients,
        near_sought=choice.near_sought,
        near_across=sum(p.reason.startswith("near") for p in choice.across),
        splits=[(name, count) for name in (TRAIN, VAL, TEST) if (count := counts[name])],
        threshold=THRESHOLD,
        bits=BITS,
    )
    write_atomic(folder / FILE_NAME, page.encode())


def _urgency(pair: Pair, splits: Mapping[str, str]) -> int:
    """0: both stay, in different splits; 1: both stay; 2: at least one was left out."""
    one, other = splits.get(pair.first), splits.get(pair.second)
    if one is None or other is None:
        return 2
    return int(one == other)


def _kind(pair: Pair, splits: Mapping[str, str]) -> tuple[str, str]:
    states = ("both stay, in different splits", "both stay, in one split", "left out")
    return pair.reason, states[_urgency(pair, splits)]


def _side(
    found: Found, splits: Mapping[str, str], left_out: Mapping[str, Excluded], images: Images
) -> Side:
    record = found.record
    split = splits.get(record.key)
    became = f"stays, in {split}" if split else f"left out: {left_out[record.key].reason}"
    return Side(
        key=record.key,
        file=record.file,
        source=found.source,
        labels=", ".join(record.labels) or "no label",
        became=became,
        picture=_thumbnail(decode_grey(images.read(found.entry))),
    )


def _thumbnail(grey: np.ndarray) -> str:
    """(H, W) uint8 -> a JPEG as data URI."""
    height, width = grey.shape
    scale = min(1.0, _THUMBNAIL / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    data = encode(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), "jpeg")
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("audit.html.j2")
