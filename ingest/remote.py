"""Sources and outputs behind URLs: images read ahead, and finished data sets uploaded.

A data set for a URL is made in a local work folder first, as any other one, then uploaded: each
file to its final name only when it is whole, the manifest last. The work folder is removed at the
end; until then the same command goes on from it.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ingest.places import refuse_strangers
from ingest.record import SourceImage
from ingest.split import TEST, TRAIN, VAL
from ingest.spool import FOLDER_NAME as SPOOL
from ingest.spool import lock
from shards.console import UserError, progress
from shards.manifest import FILE_NAME as MANIFEST
from shards.remote import RemotePath, is_remote

_READS = 16  # at a time: a request takes 20 to 50 ms, whatever the size of the image
_HASHED_BYTES = 2**20
Uploaded = dict[str, list[str]]  # URL -> SHA-256 of the local file, then what the store says of it


def read_ahead(images: Iterable[SourceImage]) -> Iterator[tuple[SourceImage, Callable[[], bytes]]]:
    """Each image with how its bytes are got, in order; those that stand apart from the pass are
    read before their turn, several at a time."""
    pending: deque[tuple[SourceImage, Future[bytes]]] = deque()
    with ThreadPoolExecutor(_READS) as pool:
        for image in images:
            if image.apart:
                pending.append((image, pool.submit(image.read)))
            while pending and (not image.apart or len(pending) == _READS):
                earlier, future = pending.popleft()
                yield earlier, future.result
            if not image.apart:
                yield image, image.read
        for earlier, future in pending:
            yield earlier, future.result


def begin(folder: Path, target: RemotePath) -> None:
    """Make the work folder, and mark a data set as begun, which shows before hours of work whether
    it can be written."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # radiographs are nobody else's
    (target / SPOOL).write_bytes(b"")


def upload(folder: Path, target: RemotePath, *, shown: bool = True) -> None:
    """Copy a finished local data set to its URL, and go on behind what a broken upload copied.
    Shards of an earlier attempt that lie there are removed. UserError: see refuse_strangers."""
    refuse_strangers(folder)
    state = _state_folder(folder)
    state.mkdir(exist_ok=True)
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in inside if path.name != MANIFEST] + [folder / MANIFEST]
    with lock(state), progress("upload", len(files), shown=shown) as advance:
        uploaded = _read_journal(state)
        for path in files:
            place = target / path.relative_to(folder).as_posix()
            if path.name == MANIFEST:
                _remove_strangers(folder, target)
            _put(path, place, uploaded, state)
            advance(1, path.name)


def finish(folder: Path, target: RemotePath) -> None:
    """Remove what was made here for a data set that is finished there, and the mark of begin().
    UserError: see refuse_strangers."""
    refuse_strangers(folder)
    mark = target / SPOOL
    if mark.exists():
        mark.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    state = _state_folder(folder)
    for path in (_journal(state), state / "lock"):
        path.unlink(missing_ok=True)
    if state.is_dir() and not any(state.iterdir()):
        state.rmdir()


def refuse_urls(config: object, command: str) -> None:
    """UserError when one of a config's paths is a URL: the command works on local folders."""
    for value in vars(config).values():
        for path in value if isinstance(value, tuple) else (value,):
            if is_remote(path):
                raise UserError(
                    f"{command} works on local folders; found {path}; copy it to a folder first"
                )


def _put(path: Path, place: RemotePath, uploaded: Uploaded, state: Path) -> None:
    sha256 = _sha256(path)
    if str(place) in uploaded and place.exists() and uploaded[str(place)] == _now(sha256, place):
        return
    place.put(path)
    with _journal(state).open("a", encoding="utf-8") as journal:
        journal.write(json.dumps([str(place), _now(sha256, place)]) + "\n")


def _now(sha256: str, place: RemotePath) -> list[str]:
    status = place.stat()
    return [sha256, str(status.st_size), status.version]


def _remove_strangers(folder: Path, target: RemotePath) -> None:
    """A split that the data set lacks may be there, of an earlier attempt."""
    inside = {path.name for path in folder.iterdir() if path.is_dir()}
    for name in sorted(inside | {TRAIN, VAL, TEST}):
        own = {path.name for path in (folder / name).glob("*")}
        for place in (target / name).glob("*"):
            if place.name not in own and place.is_file():
                place.unlink()


def _state_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.upload")


def _journal(state: Path) -> Path:
    return state / "uploaded.jsonl"


def _read_journal(state: Path) -> Uploaded:
    path = _journal(state)
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a kill may cut the last one short
    return dict(json.loads(line) for line in lines)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
