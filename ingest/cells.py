"""What the cells of a data set's table mean: labels, patients, ages, and one row per image."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from shards.console import UserError, warn
from shards.csv_table import clean, is_missing, whole_numbers
from shards.labels import warn_of_variants

MAX_LABELS = 500  # more are no labels: another column was taken for them
_MAX_AGE = 120  # older ones are typing errors
_TRUTHS = {-1.0, 0.0, 1.0}  # of one finding, as CheXpert's table has them


def labels_of(cell: str, given: Collection[str]) -> tuple[str, ...]:
    """The labels of a cell, joined by `|`, sorted. A word for missing, as `nan`, is one only where
    it is among those given."""
    parts = {clean(part) for part in cell.split("|")}
    return tuple(sorted(part for part in parts if part in given or not is_missing(part)))


def vocabulary_names(
    rows: Iterable[Sequence[str]], given: Sequence[str], path: Path, column: str
) -> tuple[str, ...]:
    """The names as given, else the labels of all rows, sorted. UserError where these are the values
    of one finding, or too many. Warns of labels that are written in several ways."""
    if given:
        return tuple(given)
    names = tuple(sorted({label for labels in rows for label in labels}))
    if len(names) > MAX_LABELS:
        raise UserError(
            f"column {column!r} of {path} has {len(names)} different labels; allowed: up to "
            f"{MAX_LABELS}; name the column with the labels"
        )
    if names and all(_is_truth(name) for name in names):
        raise UserError(
            f"column {column!r} of {path} holds {', '.join(names)}, which are values of one "
            "finding and no names of labels; allowed: the names of each image's labels, joined by "
            "|, or --labels, where these are names; a table with one column per finding is not read"
        )
    warn_of_variants(names, path)
    return names


def exclude_each_other(rows: Sequence[Sequence[str]], path: Path) -> bool:
    """Whether every row has exactly one label. Warns where rows without one alone speak against."""
    without = sum(not labels for labels in rows)
    several = any(len(labels) > 1 for labels in rows)
    if without and not several:
        warn(
            f"{without} rows of {path} have no label, so labels do not exclude each other and the "
            "rows count as negative for each. Remove those whose labels are unknown."
        )
    return not without and not several


def _is_truth(name: str) -> bool:
    try:
        return float(name) in _TRUTHS
    except ValueError:
        return False


def patients_of(ids: Sequence[str], path: Path) -> list[str | None]:
    """The patient of each row, None where missing. Warns of patients that are written in several
    ways, and names none."""
    names = whole_numbers(ids)
    different = set(names)
    alike = {"".join(name.casefold().split()).lstrip("0") for name in different}
    if len(alike) < len(different):
        warn(
            f"{len(different) - len(alike)} patients of {path} are written as others but for case, "
            "spaces or zeros in front. Each is a patient of its own. Give each patient one name."
        )
    return [name or None for name in names]


def refuse_repeats(names: Iterable[str], path: Path) -> None:
    """UserError when the table names no image, or one image twice."""
    counts = Counter(names)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise UserError(
            f"{path} names {len(repeated)} images more than once, such as {repeated[0]}; expected "
            "one row per image; remove the others"
        )
    if not counts:
        raise UserError(f"{path} names no image; expected one row per image")


def years(text: str) -> int | None:
    """Age in whole years: `58`, `58.5`; None for anything else (`50+`, `early 40s`)."""
    match = re.fullmatch(r"(\d{1,3})(?:\.\d+)?", text)
    age = int(match[1]) if match else None
    return age if age is not None and age <= _MAX_AGE else None
