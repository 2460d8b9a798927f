"""What a request names -> archives: files, folders, globs, lists (@FILE) and URLs, mixed."""

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from serve.archives import Archive, Kind, archive_kind
from serve.entries import is_input, is_packed, is_shard_name
from serve.identity import place_of
from serve.score_folder import MARKS
from serve.walk import walk_files
from shards.console import UserError, warn
from shards.remote import OBJECT_STORES, is_remote, name_below
from shards.urls import path_of

LIST_SIGN = "@"
_MAGIC = re.compile(r"[*?[]")
_MAX_LIST_BYTES = 256 << 20


def find_archives(paths: Sequence[Path], *, keep_names: bool = False) -> list[Archive]:
    """The archives of a request. Those that lie in a folder are opened too, as archives of their
    own; if they are not shards, they are called by their number in the folder, since nobody gave
    their names, which may be patients' (keep_names: by their names). Images that one list or glob
    names are one archive. Of what a glob matches, folders of scores and files that are no images by
    their names are left out, and folders without images, of which a warning tells. UserError when a
    path is missing or holds nothing, or when what it holds is named twice."""
    named: list[tuple[Path, Path]] = []
    archives: list[Archive] = []
    for argument in paths:
        found = [(path, _archives_at(path, by_glob)) for path, by_glob in _paths_of(argument)]
        named += [(argument, path) for path, inside in found if inside]
        archives += _joined(argument, [archive for _, inside in found for archive in inside])
    _refuse_overlap(named)
    if keep_names:
        archives = [replace(archive, alias=None, keep_names=True) for archive in archives]
    if not archives:
        raise UserError("no archive named; name tar, tar.gz or zip files, folders or images")
    return archives


def list_of(argument: Path) -> Path | None:
    """The list that an @FILE names, None of anything else."""
    text = str(argument)
    if is_remote(argument) or not text.startswith(LIST_SIGN) or argument.exists():
        return None
    return Path(text[1:])


def _paths_of(argument: Path) -> list[tuple[Path, bool]]:
    """(path, whether it is a glob that names it) of one argument: of itself, or of what its list or
    its globs name."""
    listed = list_of(argument)
    if listed is None:
        return _matches(argument)
    paths = [found for line in _lines(listed) for found in _matches(path_of(line))]
    if not paths:
        raise UserError(f"the list {listed} names nothing; one path or URL per line")
    return paths


def _refuse_overlap(named: Sequence[tuple[Path, Path]]) -> None:
    """named: (argument, path that it names). UserError when a path is there twice, or lies in a
    folder that is there too."""
    seen: dict[str, tuple[Path, Path]] = {}
    for argument, path in named:
        place = place_of(path)
        if place in seen:
            raise UserError(
                f"{path} is named twice, by {seen[place][0]} and {argument}; name each image and "
                "archive once"
            )
        seen[place] = argument, path
    for place, (_, path) in seen.items():
        around = next((seen[folder][1] for folder in _folders_of(place) if folder in seen), None)
        if around is not None:
            raise UserError(
                f"{path} lies in {around}, which is named too; name the folder, or what is in it"
            )


def _folders_of(place: str) -> Iterator[str]:
    """Of a path or a URL, those around it."""
    while "/" in place:
        place = place.rpartition("/")[0]
        yield place or "/"


def _joined(argument: Path, found: Sequence[Archive]) -> list[Archive]:
    """What an argument names: all its images are one archive."""
    if not found:
        raise _no_match(argument)
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


def _matches(path: Path) -> list[tuple[Path, bool]]:
    """(path, False) of what is no glob; of a glob (* ? [a-z] **), (match, True), sorted."""
    if is_remote(path):
        is_glob = bool(_MAGIC.search(path.path))
        if not is_glob or (path.protocol in OBJECT_STORES and path.exists()):  # a key may hold ?
            return [(cast(Path, path), False)]
        found = _remote_matches(path)
    elif path.exists() or not _MAGIC.search(str(path)):
        return [(path, False)]
    else:
        found = _local_matches(path)
    named = [(one, True) for one in found if is_input(one.name) or one.is_dir()]
    if not named:
        raise _no_match(path)
    return named


def _no_match(glob_or_list: Path) -> UserError:
    said = f"no image and no archive matches {glob_or_list}; folders of scores do not count"
    return UserError(said)


def _local_matches(path: Path) -> list[Path]:
    """Without folders of scores: this request's own is there the second time."""
    names = sorted(glob.glob(str(path), recursive=True))
    found = [Path(name) for name in names if f"{name}**" != str(path)]  # of a/** not a/ itself
    if not found:
        raise UserError(f"nothing matches {path}; put a glob in quotation marks")
    folders = {folder for one in found for folder in (one, *one.parents)}
    scores = {folder for folder in folders if all((folder / mark).exists() for mark in MARKS)}
    return [one for one in found if scores.isdisjoint((one, *one.parents))]


def _remote_matches(path: Any) -> list[Path]:
    base, pattern = path, ""
    while _MAGIC.search(base.path):
        base, pattern = base.parent, f"{base.name}/{pattern}".rstrip("/")
    found = sorted(base.glob(pattern))
    if not found:
        raise UserError(f"nothing matches {path}; allowed behind a URL: * and ? within a name")
    return cast(list[Path], found)


def _archives_at(path: Path, by_glob: bool) -> list[Archive]:
    """Nothing only where a glob names a folder without images."""
    if not path.exists():
        raise UserError(f"no archive at {path}; name a tar, tar.gz, zip, a folder or an image")
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} is no regular file; name a tar, tar.gz, zip or an image")
        return [_of_file(path)]
    files = list(walk_files(path))
    packed = [f for f, kind in files if kind == "file" and is_packed(name_below(f, path))]
    found = [replace(_of_file(f), alias=_alias(path, f, n)) for n, f in enumerate(packed, 1)]
    folder = Archive(path, "folder")
    named = [(name, kind) for name, _, kind in folder.named_files()]
    linked = sum(kind == "linked folder" for _, kind in named)
    if any(kind != "linked folder" and is_input(name) for name, kind in named):
        found.append(folder)
    if not found:
        also = f", {linked} links to folders, which are not followed" if linked else ""
        said = f"no image and no archive in the folder {path} ({len(files) - linked} files{also})"
        if not by_glob:
            raise UserError(said)
        warn(f"{said}; passed over")
    elif linked and folder not in found:  # to say so at the end
        found.append(folder)
    return found


def _alias(folder: Path, file: Path, number: int) -> Path | None:
    return None if is_shard_name(file.name) else folder / f"archive-{number}"


def _of_file(path: Path) -> Archive:
    with path.open("rb") as file:
        kind: Kind | None = archive_kind(file.read(512), path.name)
    return Archive(path, "files", (path,)) if kind is None else Archive(path, kind)
