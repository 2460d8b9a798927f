"""What lies in a folder, on this machine or behind a URL."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

from serve.score_folder import MARKS
from shards.remote import MAX_FOLDERS, is_remote, too_deep

FileKind = Literal["file", "link or device", "linked folder"]


def walk_files(folder: Path, depth: int = 0) -> Iterator[tuple[Path, FileKind]]:
    """Everything but folders below a folder, sorted; links are not followed, and what lies in
    folders of scores does not count. UserError for folders too deep in each other."""
    if depth > MAX_FOLDERS:
        raise too_deep(folder)
    if is_remote(folder):
        yield from ((cast(Path, file), "file") for file in folder.files())
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
