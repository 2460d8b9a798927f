"""The command that made a data set, remembered beside it: `python -m ingest retry OUT` repeats it.

`OUT/.ingest/<data set>.json`: `{"folder": where it ran, "arguments": [source, option, ...]}`. It is
no part of the data set, and not written where names of files may be those of people (dicom).
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import tyro

from shards.console import UserError
from shards.writer import write_atomic

FOLDER_NAME = ".ingest"


@dataclass(frozen=True)
class RetryConfig:
    """Try the quarantined images of finished data sets again, with the options of the command that
    made them (after a resplit, with its seed and shares); what decodes now is added as shards of
    its own. The shards there are stay as they are. A data set whose command is not remembered is
    named at the end, and the others are done."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of data sets, or folders that hold several."""


def remember(folder: Path, arguments: list[str]) -> None:
    """Keep the command of the data set in `folder`."""
    place = _place(folder)
    place.parent.mkdir(exist_ok=True)
    kept = {"folder": str(Path.cwd()), "arguments": arguments}
    write_atomic(place, (json.dumps(kept, indent=1) + "\n").encode())


def recall(folder: Path, sources: Collection[str]) -> tuple[Path, list[str]]:
    """Where the command of the data set ran, and its arguments, the first of them one of the
    sources. UserError: not remembered."""
    try:
        kept = json.loads(_place(folder).read_bytes())
        arguments = [str(argument) for argument in kept["arguments"]]
        if arguments[0] not in sources:
            raise ValueError
        return Path(kept["folder"]), arguments
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(
            f"the command that made {folder} is not remembered in {_place(folder)} (that of dicom "
            "never is); run it again with --retry"
        ) from None


def hand_on(folder: Path, target: Path) -> None:
    """Keep the command of the data set in `folder`, if it is remembered, for its copy too."""
    old, new = _place(folder), _place(target)
    if old.is_file() and old != new:
        new.parent.mkdir(exist_ok=True)
        write_atomic(new, old.read_bytes())


def _place(folder: Path) -> Path:
    return folder.resolve().parent / FOLDER_NAME / f"{folder.resolve().name}.json"
