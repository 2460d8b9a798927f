"""What lies in a folder, on this machine or behind a URL."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

from serve.score_folder import MARKS
from shards.console import UserError
from shards.remote import is_remote

FileKind = Literal["file", "link or device", "linked folder"]
MAX_FOLDERS = 64  # in each other; a server may list folders without end


def walk_files(folder: Path, depth: int = 0) -> Iterator[tuple[Path, FileKind]]:
    """Everything but folders below a folder, sorted; links are not followed, and what lies in
    folders of scores does not count. UserError for folders too deep in each other."""
    if depth > MAX_FOLDERS:
        raise UserError(f"more than {MAX_FOLDERS} folders in each other: {folder}; name one in it")
    if is_remote(folder):
        for found in folder.iterdir():
            if found.is_dir():
                yield from walk_files(cast(Path, found), depth + 1)
            else:
                yield cast(Path, found), "file"
        return
    with os.scandir(folder) as listed:
        items = sorted(listed, key=lambda item: item.name)
    if {item.name for item in items} >= MARKS:
        return
    for item in items:
        if item.is_dir(follow_symlinks=False):
            yield from walk_files(Path(item.path), depth + 1)
        elif item.is_file(follow_symlinks=False):
            yield Path(item.path), "file"
        else:
            yield Path(item.path), "linked folder" if os.path.isdir(item.path) else "link or device"
