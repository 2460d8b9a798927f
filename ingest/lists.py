"""Text files with one image name a line: split lists and exclusion lists."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ingest.record import Record
from shards.console import UserError, warn

NOT_LISTED = "in none of the split lists"


def read_list(path: Path) -> list[str]:
    """The names in a list; empty lines are passed over. UserError when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {error}; give a text file") from error
    return [line.strip() for line in lines if line.strip()]


def apply_split_lists(records: Sequence[Record], lists: Mapping[str, Path]) -> list[Record]:
    """The records with the splits of the lists (split -> file); the rest are excluded.

    UserError when a name stands in two lists.
    """
    files = {record.file for record in records}
    splits: dict[str, str] = {}
    for split, path in lists.items():
        for line in read_list(path):
            # Some public lists put the labels behind the name; and names may hold spaces.
            name = next((name for name in (line, line.split()[0]) if name in files), line)
            if splits.setdefault(name, split) != split:
                raise UserError(f"{name} is in the lists of both {splits[name]} and {split}")
    _warn_unknown(splits.keys() - files, "the split lists")
    return [_with_split(record, splits.get(record.file)) for record in records]


def _with_split(record: Record, split: str | None) -> Record:
    if split is not None:
        return replace(record, split=split)
    return replace(record, excluded=record.excluded or NOT_LISTED)


def apply_exclusions(records: Sequence[Record], path: Path, prefix: str = "") -> list[Record]:
    """The records with those of the list excluded; names may begin with `prefix`."""
    names = {line.removeprefix("./").removeprefix(prefix) for line in read_list(path)}
    _warn_unknown(names - {record.file for record in records}, str(path))
    reason = "in the exclusion list"
    return [replace(r, excluded=reason) if r.file in names else r for r in records]


def _warn_unknown(names: Iterable[str], where: str) -> None:
    unknown = sorted(names)
    if unknown:
        warn(f"{len(unknown)} names in {where} are unknown, such as {unknown[0]}; passed over")
