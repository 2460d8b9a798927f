"""What a folder of scores holds: counts, a histogram, the images of the highest scores.

Run: python -m serve summary OUT --top 24 --label COVID-19
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

from serve.decode import Decoded, DecodePool, Task
from serve.entries import ArchiveDamaged, BadMember
from serve.figures import COLOURS, new_figure, to_png
from serve.identity import identify
from serve.score_folder import PROBABILITY_PREFIX, ScoreFolder, damage_of
from serve.score_inputs import find_archives
from shards.console import RunFailed, UserError, one_line
from shards.urls import path_of
from shards.writer import write_atomic

HISTOGRAM_FILE, SHEET_FILE = "summary.png", "top.png"
_BINS = 50
_REASONS = 10  # shown, the commonest first
_MOST_TOP = 400
_CELL, _GAP, _LINE, _COLUMNS = 192, 8, 34, 6  # px; text of two lines; images in a row
_TITLE = 22  # px


@dataclass(frozen=True)
class SummaryConfig:
    """Count the rows of a folder of scores, draw their histograms, and show the highest."""

    scores: Annotated[Path, tyro.conf.Positional]
    """Folder of python -m serve score."""
    top: int | None = None
    """Make a contact sheet of this many images with the highest scores of --label; the archives are
    read again, and have to be where they were."""
    label: str | None = None
    """The label of --top; by default the first that is not Normal or No Finding."""
    out: Path | None = None
    """Folder of the pictures; by default the folder of the scores."""


@dataclass(frozen=True)
class Counts:
    """predicted: label (or labels joined by |, none: empty) -> rows; errors: reason -> rows;
    histograms: (L, _BINS) rows per probability."""

    rows: int
    labels: tuple[str, ...]
    predicted: dict[str, int]
    errors: dict[str, int]
    histograms: np.ndarray


def summary(config: SummaryConfig) -> list[str]:
    """The lines to print; writes the pictures. UserError when the scores are not finished."""
    folder = ScoreFolder(config.scores)
    content = folder.finished()
    if config.top is not None and not 1 <= config.top <= _MOST_TOP:
        raise UserError(f"--top {config.top}; allowed: 1 to {_MOST_TOP}")
    if config.label is not None and config.top is None:
        raise UserError("--label belongs to --top")
    out = config.out or config.scores
    out.mkdir(parents=True, exist_ok=True)
    counts = count_rows(folder, tuple(content["labels"]))
    lines = _lines(counts, content)
    write_atomic(out / HISTOGRAM_FILE, _draw(counts, lines[0]))
    lines.append(f"{out / HISTOGRAM_FILE}: histograms")
    if config.top is not None:
        label = _choose_label(config.label, counts.labels)
        title = f"highest scores of {one_line(label)}, {one_line(content['model'])}"
        sheet = contact_sheet(folder, label, config.top, title + _made_up(content))
        write_atomic(out / SHEET_FILE, sheet)
        lines.append(f"{out / SHEET_FILE}: the highest scores of {one_line(label)}")
    return lines


def count_rows(folder: ScoreFolder, labels: tuple[str, ...]) -> Counts:
    """In one pass over the parts."""
    predicted: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    histograms = np.zeros((len(labels), _BINS), np.int64)
    rows = 0
    names = [PROBABILITY_PREFIX + label for label in labels]
    for _, table in folder.tables(["predicted", "error", *names]):
        rows += len(table)
        errors.update(e for e in table.column("error").to_pylist() if e is not None)
        predicted.update(p for p in table.column("predicted").to_pylist() if p is not None)
        for i, name in enumerate(names):
            values = table.column(name).drop_null().to_numpy()
            histograms[i] += np.histogram(values, _BINS, (0, 1))[0]
    return Counts(
        rows, labels, dict(predicted.most_common()), dict(errors.most_common()), histograms
    )


def _lines(counts: Counts, content: dict[str, Any]) -> list[str]:
    failed = sum(counts.errors.values())
    model = one_line(content["model"]) + _made_up(content)
    lines = [f"{counts.rows} rows, {failed} of them errors; {model}"]
    lines += [f"  {n:9d}  {one_line(name) or 'no label'}" for name, n in counts.predicted.items()]
    shown = list(counts.errors.items())[:_REASONS]
    lines += [f"  {n:9d}  error: {one_line(reason)}" for reason, n in shown]
    hidden = len(counts.errors) - len(shown)
    lines += [f"             and {hidden} more kinds of errors"] if hidden else []
    lines += [f"  damaged: {one_line(text)}" for text in damage_of(content)]
    return lines


def _made_up(content: dict[str, Any]) -> str:
    return " (trained on synthetic radiographs, all or some)" if content["synthetic"] else ""


def _draw(counts: Counts, title: str) -> bytes:
    columns = min(3, len(counts.labels))
    rows = -(-len(counts.labels) // columns)
    figure, axes = new_figure(4 * columns, 2.4 * rows, columns, rows)
    edges = np.linspace(0, 1, _BINS + 1)
    for ax in axes[len(counts.labels) :]:
        ax.set_visible(False)
    for ax, label, heights in zip(axes, counts.labels, counts.histograms):
        ax.stairs(heights, edges, fill=True, color=COLOURS[0])
        ax.set_yscale("symlog", linthresh=1)
        ax.set_title(one_line(label).replace("$", r"\$"), fontsize=9)
        ax.set_xlabel("probability")
        ax.set_ylabel("rows")
    figure.suptitle(title.replace("$", r"\$"), fontsize=9, wrap=True)
    return to_png(figure)


def _choose_label(asked: str | None, labels: tuple[str, ...]) -> str:
    if asked is None:
        findings = [label for label in labels if label not in ("Normal", "No Finding")]
        return (findings or list(labels))[0]
    if asked not in labels:
        raise UserError(f"no label {asked!r} in these scores; they have: {', '.join(labels)}")
    return asked


@dataclass(frozen=True, order=True)
class _Place:
    """Ordered by score; number: of the input in its archive."""

    score: float
    archive: int
    number: int
    member: str


def contact_sheet(folder: ScoreFolder, label: str, top: int, title: str) -> bytes:
    """PNG of the images with the highest scores, the highest first, each with score and name.

    Images are told by their place in the archive. UserError when an archive is another one now.
    """
    chosen = heapq.nlargest(top, _places(folder, label))
    if not chosen:
        raise UserError(f"no image in {folder.path} has a score")
    images = _read_again(folder, chosen)
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    wide = _GAP + max(columns, 3) * (_CELL + _GAP)  # for the title
    size = (wide, _TITLE + _GAP + rows * (_CELL + _LINE + _GAP))
    sheet = Image.new("L", size, 255)
    drawer, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    drawer.text((_GAP, _GAP), title, fill=0, font=font)
    for position, place in enumerate(chosen):
        left = _GAP + position % columns * (_CELL + _GAP)
        high = _TITLE + _GAP + position // columns * (_CELL + _LINE + _GAP)
        name = one_line(place.member)
        name = name if len(name) <= 28 else f"...{name[-25:]}"
        drawer.text((left, high), f"{place.score:.4f}\n{name}", fill=0, font=font)
        sheet.paste(Image.fromarray(images[place]), (left, high + _LINE))
    return _png(sheet)


def _png(sheet: Image.Image) -> bytes:
    from shards.codec import encode

    return encode(np.asarray(sheet), "png")


def _places(folder: ScoreFolder, label: str) -> Iterator[_Place]:
    name = PROBABILITY_PREFIX + label
    number, last = 0, -1
    for archive, table in folder.tables([name, "member"]):
        number, last = (number if archive == last else 0), archive
        columns = (table.column(c).to_pylist() for c in (name, "member"))
        for score, member in zip(*columns):
            if score is not None:
                yield _Place(score, archive, number, member)
            number += 1


def _read_again(folder: ScoreFolder, chosen: list[_Place]) -> dict[_Place, np.ndarray]:
    """(_CELL, _CELL) uint8 of each, decoded in a worker."""
    request = folder.request()
    inputs = [path_of(text) for text in request["inputs"]]
    archives = find_archives(inputs, keep_names=request["keep_names"])
    now, then = len(archives), len(request["archives"])
    if now != then or max(place.archive for place in chosen) >= then:
        raise UserError(
            f"{now} archives are there now, {then} were scored; bring back what is gone, take away "
            "what is new, or score again into another --out"
        )
    tasks = []
    for index in sorted({place.archive for place in chosen}):
        archive = archives[index]
        if identify(archive).to_dict() != request["archives"][index]:
            raise UserError(f"{archive.called} is another archive than the one that was scored")
        wanted = {place.number: place for place in chosen if place.archive == index}
        tasks += [Task(wanted[n], [data]) for n, data in _bytes_of(archive, set(wanted))]
    with DecodePool(1, None, _CELL, request.get("depth")) as pool:
        return {place: _sound(place, found) for place, found in pool.run(tasks)}


def _bytes_of(archive: Any, numbers: set[int]) -> Iterator[tuple[int, bytes]]:
    left = set(numbers)
    try:
        for number, entry in enumerate(archive.entries()):
            if number in left:
                yield number, entry.read()
                left.discard(number)
                if not left:
                    return
        raise RunFailed(f"{archive.called} has fewer images than were scored; score it again")
    except (ArchiveDamaged, BadMember) as error:
        raise RunFailed(f"{archive.called}: {error}; score it again") from error


def _sound(place: _Place, found: Decoded) -> np.ndarray:
    if found.errors[0] is not None:
        raise RunFailed(f"{place.member}: {found.errors[0]}; score its archive again")
    return found.images[0]
