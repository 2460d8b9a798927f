"""What a request names -> archives: files, folders, globs, lists (@FILE) and URLs, mixed."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from serve.archives import Archive, Kind, is_archive_name, kind_of, place_of, walk_files
from serve.entries import is_input
from shards.console import UserError
from shards.remote import is_remote
from shards.urls import path_of

LIST_SIGN = "@"
_SHARD = re.compile(r"[a-z0-9-]+-(train|val|test)-\d{6}\.tar")  # as ingest calls them
_MAGIC = re.compile(r"[*?[]")
_MAX_LIST_BYTES = 256 << 20


def find_archives(paths: Sequence[Path], *, keep_names: bool = False) -> list[Archive]:
    """The archives of a request. Those that lie in a folder are opened too, as archives of their
    own; if they are not shards, they are called by their number in the folder, since nobody gave
    their names, which may be patients' (keep_names: by their names). Images that one list or glob
    names are one archive. UserError when a path is missing, holds nothing, or is named twice."""
    archives = [archive for path in paths for archive in _archives_of(path)]
    if keep_names:
        archives = [replace(archive, alias=None) for archive in archives]
    counts: Counter[str] = Counter()
    for archive in archives:
        counts.update(map(place_of, archive.files or (archive.path,)))
    twice = [place for place, count in counts.items() if count > 1]
    if twice:
        shown = ", ".join(twice[:3]) + (f" and {len(twice) - 3} more" if len(twice) > 3 else "")
        raise UserError(f"named more than once: {shown}; name each archive once")
    if not archives:
        raise UserError("no archive named; name tar, tar.gz or zip files, folders or images")
    return archives


def _archives_of(argument: Path) -> list[Archive]:
    text = str(argument)
    if not is_remote(argument) and text.startswith(LIST_SIGN) and not argument.exists():
        paths = [found for line in _lines(Path(text[1:])) for found in _matches(path_of(line))]
        if not paths:
            raise UserError(f"the list {text[1:]} names nothing; one path or URL per line")
    else:
        paths = _matches(argument)
    found = [archive for path in paths for archive in _archives_at(path)]
    images = tuple(archive.path for archive in found if archive.kind == "files")
    rest = [archive for archive in found if archive.kind != "files"]
    return [*rest, Archive(argument, "files", images)] if images else rest


def _lines(path: Path) -> list[str]:
    """The paths in a list; # begins a comment line."""
    if not path.is_file():
        raise UserError(f"no list {path}; {LIST_SIGN}FILE names a text file with one path per line")
    if path.stat().st_size > _MAX_LIST_BYTES:
        raise UserError(f"the list {path} has over {_MAX_LIST_BYTES} bytes; divide it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"the list {path} is not UTF-8 text; one path or URL per line") from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _matches(path: Path) -> list[Path]:
    """The path itself; of a glob (* ? [a-z] **), what it matches, sorted."""
    if is_remote(path):
        return _remote_matches(path) if _MAGIC.search(path.path) else [cast(Path, path)]
    if path.exists() or not _MAGIC.search(str(path)):
        return [path]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise UserError(f"nothing matches {path}; put a glob in quotation marks")
    return found


def _remote_matches(path: Any) -> list[Path]:
    base, pattern = path, ""
    while _MAGIC.search(base.path):
        base, pattern = base.parent, f"{base.name}/{pattern}".rstrip("/")
    found = sorted(base.glob(pattern))
    if not found:
        raise UserError(f"nothing matches {path}; allowed behind a URL: * and ? within a name")
    return cast(list[Path], found)


def _archives_at(path: Path) -> list[Archive]:
    if not path.exists():
        raise UserError(f"no archive at {path}; name a tar, tar.gz, zip, a folder or an image")
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} is no regular file; name a tar, tar.gz, zip or an image")
        return [_of_file(path)]
    files = list(walk_files(path))
    packed = [file for file, kind in files if kind == "file" and is_archive_name(file.name)]
    found = [replace(_of_file(f), alias=_alias(path, f, n)) for n, f in enumerate(packed, 1)]
    folder = Archive(path, "folder")
    named = [(name, kind) for name, _, kind in folder.named_files()]
    linked = sum(kind == "linked folder" for _, kind in named)
    if any(kind != "linked folder" and is_input(name) for name, kind in named):
        found.append(folder)
    if not found:
        also = f", {linked} links to folders, which are not followed" if linked else ""
        raise UserError(
            f"no image and no archive in the folder {path} ({len(files) - linked} files{also})"
        )
    if linked and folder not in found:  # to say so at the end
        found.append(folder)
    return found


def _alias(folder: Path, file: Path, number: int) -> Path | None:
    return None if _SHARD.fullmatch(file.name) else folder / f"archive-{number}"


def _of_file(path: Path) -> Archive:
    with path.open("rb") as file:
        kind: Kind | None = kind_of(file.read(512), path.name)
    return Archive(path, "files", (path,)) if kind is None else Archive(path, kind)
