"""A contact sheet: some images of each class in a row, as one PNG.

Run: python -m shards sheet DIR --out FILE.png
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.codec import encode
from shards.console import UserError
from shards.listing import Place, places
from shards.manifest import Manifest

_CELL, _GAP, _LINE = 160, 8, 22  # px: an image's longer side, between images, a line of text
_MOST = 100  # images in a row
_NO_LABEL = "no label"


def contact_sheet(folder: Path, manifest: Manifest, per_class: int, split: str | None) -> bytes:
    """PNG: for each label a line with its name and count, and below it its first `per_class`
    images in the order of the shards. split: of this one alone. UserError for a wrong number or
    split."""
    if not 1 <= per_class <= _MOST:
        raise UserError(f"--per-class {per_class}; allowed: 1 to {_MOST}")
    if split is not None:
        manifest.of_split(split)  # says which splits there are
    chosen, counts = _choose(folder, manifest, per_class, split)
    rows = [name for name in (*manifest.labels, _NO_LABEL) if counts[name]]
    width = _GAP + per_class * (_CELL + _GAP)
    sheet = Image.new("L", (width, max(1, len(rows)) * (_LINE + _CELL + _GAP) + _GAP), 255)
    drawer = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for number, name in enumerate(rows):
        top = _GAP + number * (_LINE + _CELL + _GAP)
        drawer.text((_GAP, top), f"{name}: {counts[name]} images", fill=0, font=font)
        for column, place in enumerate(chosen[name]):
            small = _thumbnail(place)
            left = _GAP + column * (_CELL + _GAP)
            sheet.paste(small, (left, top + _LINE))
    return encode(np.asarray(sheet), "png")


def _choose(
    folder: Path, manifest: Manifest, per_class: int, split: str | None
) -> tuple[dict[str, list[Place]], dict[str, int]]:
    """The first images of each label, and how many there are."""
    chosen: dict[str, list[Place]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for place in places(folder, manifest):
        if split is not None and place.shard.split != split:
            continue
        for name in manifest.vocabulary.decode(place.read_labels()) or (_NO_LABEL,):
            counts[name] += 1
            if len(chosen[name]) < per_class:
                chosen[name].append(place)
    return chosen, counts


def _thumbnail(place: Place) -> Image.Image:
    small = Image.fromarray(place.read_pixels())
    small.thumbnail((_CELL, _CELL), Image.Resampling.BILINEAR)
    return small
