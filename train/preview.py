"""A contact sheet of one image per class with all its copies, as the network gets them.

Run: python -m train preview RECIPE --shards DIR [--out FILE.png]
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw, ImageFont

from shards.codec import encode
from shards.console import UserError
from shards.labels import YES
from shards.listing import Place, places
from shards.manifest import Manifest, load_manifest
from shards.preprocess import MEAN, STD, prepare
from shards.writer import write_atomic
from train.augment import CopyParameters
from train.config import (
    Stage,
    TrainConfig,
    check_config,
    expansions_of,
    vocabulary_of,
    without_skipped,
)
from train.expand import Expander, copies_from
from train.store import Store
from train.warp import Warper

_CELL, _GAP, _LINE, _TITLE = 150, 6, 13, 30  # px: a copy, between copies, lines of text
_COLUMNS = 12  # 72 copies: a row per rotation
_MAX_EPOCH = 1_000_000_000  # an address has 32 bits for it
_EPOCHS = 8  # of a class whose images are not multiplied: its one copy in each


@dataclass(frozen=True)
class PreviewCommand:
    """Draw one training image of each class with all its copies, and what was done to each."""

    shards: Path
    """The folder that python -m ingest wrote: it holds a folder per data set."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The recipe's settings, each of which may be given another value."""
    out: Path = Path("preview.png")
    """The PNG to write."""
    stage: str | None = None
    """Of this stage only. Default: all of the recipe's."""
    epoch: int = 0
    """The epoch, from 0, whose copies are drawn."""


def preview(command: PreviewCommand) -> None:
    """Write the sheet. UserError for a stage or a data set that is not there."""
    check_config(command.config)
    config = without_skipped(command.config)
    names = [stage.name for stage in config.stages]
    if command.stage is not None and command.stage not in names:
        raise UserError(
            f"no stage {command.stage!r} in {config.recipe}; it has: {', '.join(names)}"
        )
    if command.out.is_dir() or not command.out.parent.is_dir():
        raise UserError(f"--out {command.out}: it must name a file in a folder that is there")
    if not 0 <= command.epoch <= _MAX_EPOCH:
        raise UserError(f"--epoch {command.epoch}; epochs count from 0, to {_MAX_EPOCH}")
    rows = [
        row
        for stage in config.stages
        if command.stage in (None, stage.name)
        for row in _stage_rows(command, stage)
    ]
    if not rows:
        raise UserError(f"no class has a training image in {command.shards}; nothing to draw")
    sheet = _stack(rows)
    write_atomic(command.out, encode(np.asarray(sheet), "png"))
    print(f"{command.out.resolve()}: {len(rows)} classes, {sheet.width} x {sheet.height} pixels")


def _stage_rows(command: PreviewCommand, stage: Stage) -> Iterator[Image.Image]:
    """A picture for each class of the stage's data set that has a training image."""
    config, folder = command.config, command.shards / stage.dataset
    manifest = load_manifest(folder)
    vocabulary = vocabulary_of(stage, manifest)
    columns = [manifest.vocabulary.index(name) for name in vocabulary.names]
    expander = Expander(expansions_of(stage, vocabulary), stage.augment, config.seed, config.size)
    for name, place in _first_of_each(folder, manifest, vocabulary.names).items():
        sample = place.read()
        image = prepare(place.read_pixels(), manifest.shorter_side, config.size)
        store = Store(
            (place.key,), torch.from_numpy(image.copy())[None], sample.labels[columns][None]
        )
        yield _class_picture(f"{stage.name}, {name}", store, expander, command.epoch)


def _first_of_each(folder: Path, manifest: Manifest, labels: tuple[str, ...]) -> dict[str, Place]:
    """The first training image of each label, in the vocabulary's order."""
    wanted = {name: manifest.vocabulary.index(name) for name in labels}
    found: dict[str, Place] = {}
    for place in places(folder, manifest):
        if place.shard.split == "train":
            known = place.read_labels()
            for name in (name for name, at in wanted.items() if known[at] == YES):
                found.setdefault(name, place)
        if len(found) == len(wanted):
            break
    return {name: found[name] for name in labels if name in found}


def _class_picture(title: str, store: Store, expander: Expander, epoch: int) -> Image.Image:
    """A title, and the cells below it."""
    factor = int(expander.factors(store.labels)[0])
    epochs = range(epoch, epoch + (_EPOCHS if factor == 1 else 1))
    cells = [cell for number in epochs for cell in _cells(store, expander, number)]
    lines = max(len(text) for _, text in cells)
    width, height = _CELL + _GAP, _CELL + lines * _LINE + _GAP
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    picture = Image.new("L", (columns * width + _GAP, rows * height + _TITLE), 255)
    drawer = ImageDraw.Draw(picture)
    copies = f"{factor} copies" if factor > 1 else f"epochs {epochs[0]} to {epochs[-1]}"
    heading = f"{title}: {copies} of {store.keys[0]}"
    drawer.text((_GAP, 6), heading, fill=0, font=ImageFont.load_default(16))
    font = ImageFont.load_default(11)
    for number, (image, text) in enumerate(cells):
        left, top = _GAP + number % columns * width, _TITLE + number // columns * height
        picture.paste(image.resize((_CELL, _CELL), Image.Resampling.LANCZOS), (left, top))
        for line, words in enumerate(text):
            drawer.text((left, top + _CELL + line * _LINE), words, fill=0, font=font)
    return picture


def _cells(store: Store, expander: Expander, epoch: int) -> Iterator[tuple[Image.Image, list[str]]]:
    """Each copy as the network gets it, de-normalised, and what was done to it."""
    (count,) = expander.factors(store.labels)
    which = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    parameters = expander.parameters(store, which, epoch)
    copies = copies_from(which[:, 0], parameters, expander.size)
    images = Warper(threads=1)(store.images, copies)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    levels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    for number, image in enumerate(levels[:, 0].numpy()):
        yield Image.fromarray(image), describe(parameters, number, expander.size)


def describe(parameters: CopyParameters, number: int, size: int) -> list[str]:
    """What was done to a copy, in lines; pixels are those of the input of side `size`."""
    p = parameters
    lines = []
    if p.rotation_deg[number]:
        lines.append(f"rotation {p.rotation_deg[number]:+.1f}°")
    if p.dx_px[number] or p.dy_px[number]:
        lines.append(f"dx {p.dx_px[number]:+.1f} dy {p.dy_px[number]:+.1f} px")
    if p.mirror[number]:
        lines.append("mirror")
    if p.scale[number] != 1 or p.shear_deg[number]:
        lines.append(f"scale {p.scale[number]:.2f} shear {p.shear_deg[number]:+.1f}°")
    if p.brightness[number] != 1 or p.contrast[number] != 1:
        lines.append(f"bright {p.brightness[number]:.2f} contrast {p.contrast[number]:.2f}")
    left, top, width, height = p.crop[number] * size
    if (width, height) != (size, size):
        lines.append(f"crop {width:.0f} x {height:.0f} at {left:.0f}, {top:.0f}")
    if p.elastic[number].any():
        lines.append(f"elastic, up to {np.abs(p.elastic[number]).max():.1f} px")
    return lines or ["as it is"]


def _stack(rows: list[Image.Image]) -> Image.Image:
    sheet = Image.new("L", (max(row.width for row in rows), sum(row.height for row in rows)), 255)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet
