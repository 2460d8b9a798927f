"""Text files with one image a line: split lists and exclusion lists.

A line names an image as `lists/*.txt` of a finished data set does, or by its key as `python -m
shards ls` prints it. Messages name lines, never what stands in them: it may be a patient's name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ingest.record import Record
from ingest.split import TEST, TRAIN, TRAIN_VAL, VAL
from shards.console import UserError, warn
from shards.csv_table import clean, read_text

NOT_LISTED = "in none of the split lists"
LISTED = "in the exclusion list"
Named = Callable[[str], Iterable[str]]  # a line -> the files or keys that it may mean


def split_lists(train: Path | None, val: Path | None, test: Path | None) -> dict[str, Path]:
    """Split -> list; without one for val, that of train is still to be divided. UserError for one
    list alone, or none for train."""
    if not (train or val or test):
        return {}
    if not train or not (val or test):
        raise UserError("--train-list and --test-list (or --val-list) belong together; give both")
    named = {TRAIN if val else TRAIN_VAL: train, VAL: val, TEST: test}
    return {split: path for split, path in named.items() if path}


def read_list(path: Path) -> list[str]:
    """The lines of a list, stripped; empty where nothing stands. UserError: cannot be read."""
    return [clean(line) for line in read_text(path, "list", "text").splitlines()]


def apply_split_lists(
    records: Sequence[Record], lists: Mapping[str, Path], named: Named = lambda line: (line,)
) -> list[Record]:
    """The records with the splits of the lists (split -> file); the rest are excluded.

    UserError when an image stands in two lists, or a list names no image of these.
    """
    places: dict[str, tuple[str, int]] = {}  # key -> split, line
    for split, path in lists.items():
        for key, line in _find(records, path, named).items():
            other, before = places.setdefault(key, (split, line))
            if other != split:
                raise UserError(
                    f"one image is in the lists of both {other} (line {before}) and {split} (line "
                    f"{line} of {path}); take it out of one"
                )
    return [_with_split(record, places.get(record.key)) for record in records]


def _with_split(record: Record, place: tuple[str, int] | None) -> Record:
    if place is not None:
        return replace(record, split=place[0])
    return replace(record, excluded=record.excluded or NOT_LISTED)


def apply_exclusions(
    records: Sequence[Record], path: Path, named: Named = lambda line: (line,)
) -> list[Record]:
    """The records with those of the list excluded. UserError when it names none of them."""
    listed = _find(records, path, named)
    return [
        replace(r, excluded=LISTED) if r.key in listed and not r.excluded else r for r in records
    ]


def _find(records: Sequence[Record], path: Path, named: Named) -> dict[str, int]:
    """Key -> the line that names it. Names that are unknown are counted in a warning."""
    keys = {r.key: r.key for r in records} | {r.file: r.key for r in records}
    found: dict[str, int] = {}
    unknown = []
    for number, line in enumerate(read_list(path), 1):
        if not line:
            continue
        # Some public lists put the labels behind the name; and names may hold spaces.
        names = (name for text in (line, line.split()[0]) for name in named(text))
        key = next((keys[name] for name in names if name in keys), None)
        if key is None:
            unknown.append(number)
        else:
            found.setdefault(key, number)
    if unknown and not found:
        raise UserError(
            f"none of the {len(unknown)} names in {path} is an image of this data set; its images "
            f"are named as {records[0].file}"
        )
    if unknown:
        warn(f"{len(unknown)} names in {path} are unknown, such as line {unknown[0]}; passed over")
    return found
