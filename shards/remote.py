"""Paths that are URLs: s3://bucket/folder, https://host/file and whatever else fsspec knows.

A RemotePath (`shards/urls.py` makes it of a text) does what this project asks of a folder or file
that it reads, and nothing silently on the local disk: it is no os.PathLike, so open() and os.walk()
refuse it. Transient errors are tried again, with a limit.
"""

import errno
import io
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard, TypeVar, cast
from urllib.parse import quote, unquote

from shards.console import RunFailed, UserError
from shards.remote_errors import absent, attempt
from shards.remote_file import RemoteFile

T = TypeVar("T")
HTTP = ("http", "https")
MAX_FOLDERS = 64  # in each other; a server may list folders without end
# What is put into these is there whole or not at all; elsewhere a name is given at the end.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss")
_S3_LIMITS = {"chunksize": 2**24, "max_concurrency": 4}  # else 500 MB of memory per upload
_VERSIONS = ("ETag", "Last-Modified", "LastModified", "mtime", "created", "etag", "updated")


class Stat(NamedTuple):
    """st_size in bytes; version: tells the content from another one of the same name."""

    st_size: int
    version: str


class RemotePath:
    """A folder or a file behind a URL. Its text is the URL without its query, which may be secret.

    path: as the file system names it; info: what a listing said of it, None when nobody asked.
    """

    __slots__ = ("_below", "_info", "fs", "path", "protocol", "query")

    def __init__(
        self, fs: Any, protocol: str, path: str, query: str = "", info: Any = None
    ) -> None:
        self.fs, self.protocol, self.path, self.query = fs, protocol, path.rstrip("/"), query
        self._info = info
        self._below: list[RemotePath] | None = None

    @property
    def plain(self) -> str:
        """The path without what HTTP quotes: of `a%20b.png`, `a b.png`."""
        return unquote(self.path) if self.protocol in HTTP else self.path

    @property
    def parts(self) -> tuple[str, ...]:
        http = self.protocol in HTTP
        return tuple(unquote(part) if http else part for part in self.path.split("/"))

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        return self._at(self.path.rpartition("/")[0])

    def __truediv__(self, other: object) -> "RemotePath":
        parts = [part for part in str(other).split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ValueError(f"a path with '..' below {self}")
        if self.protocol in HTTP:
            parts = [quote(part) for part in parts]
        return self._at("/".join([self.path, *parts]))

    def with_name(self, name: str) -> "RemotePath":
        return self.parent / name

    def with_suffix(self, suffix: str) -> "RemotePath":
        return self.with_name(self.stem + suffix)

    def __str__(self) -> str:
        return self.path if self.protocol in HTTP else f"{self.protocol}://{self.path.lstrip('/')}"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: "RemotePath") -> bool:
        return self.parts < other.parts

    def exists(self) -> bool:
        return self._find() is not None or self.is_dir()

    def is_file(self) -> bool:
        return self._is("file")

    def is_dir(self) -> bool:
        if self.protocol in HTTP:
            # A page may be a folder's list of links. Of anything else it is not asked: fsspec would
            # fetch a whole archive to look for them.
            kind = (self._find() or {}).get("mimetype", "text/html")
            if kind != "text/html":
                return False
            try:
                return bool(self._attempt(lambda: self.fs.ls(self.path, detail=False)))
            except FileNotFoundError:
                return False
        return self._is("directory")

    def stat(self) -> Stat:
        """FileNotFoundError when there is no such file."""
        info = self._find()
        if info is not None and info.get("size") is None:  # a listing of HTTP has no sizes
            info = self._info = self._ask()
        if info is None:
            raise absent(str(self))
        version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
        return Stat(int(info.get("size") or 0), version)

    def iterdir(self) -> Iterator["RemotePath"]:
        """What is in the folder, sorted. FileNotFoundError when there is none."""
        infos = self._attempt(lambda: self.fs.ls(self.path, detail=True))
        for info in sorted(infos, key=lambda info: str(info["name"])):
            found = self._listed(info)
            if found is not None and found.path.rpartition("/")[0] == self.path:
                yield found

    def files(self, depth: int = 0) -> Iterator["RemotePath"]:
        """All files below, sorted by the parts of their paths. Of an object store every object: a
        key may hold `#`, `?` and `//`. UserError for folders too deep in each other."""
        if depth > MAX_FOLDERS:
            raise too_deep(self)
        if self.protocol in OBJECT_STORES:
            yield from self._objects()
            return
        for found in self.iterdir():
            if found.is_dir():
                yield from found.files(depth + 1)
            else:
                yield found

    def _objects(self) -> list["RemotePath"]:
        """One listing, which is kept, without a request for every folder."""
        if self._below is not None:
            return self._below
        folder = self.path.rstrip("/")
        behind = {"prefix": slashes} if (slashes := self.path[len(folder) :]) else {}
        infos = self._attempt(lambda: self.fs.find(folder, detail=True, **behind)).values()
        self.fs.invalidate_cache()  # s3fs takes what it cached of keys with // for folders
        listed = (self._listed(info) for info in infos if info["name"] != self.path)
        self._below = sorted((one for one in listed if one), key=lambda one: one.path.split("/"))
        return self._below

    def _listed(self, info: dict[str, Any]) -> "RemotePath | None":
        """What a listing tells of. None for the marker of a folder, which is listed beside what is
        in it, and for other links of an HTTP index."""
        name = info["name"]
        path = name.rstrip("/")
        if self.protocol not in OBJECT_STORES:
            linked = {"?", "#"} & set(path)
            return None if linked else RemotePath(self.fs, self.protocol, path, info=info)
        if path != name and info["type"] == "file" and not info["size"]:
            return None
        found = RemotePath(self.fs, self.protocol, path, info=info)
        found.path = name  # an object's key may end in a slash
        return found

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """pattern: names with * and ?, and / between them."""
        first, _, rest = pattern.partition("/")
        try:
            inside = list(self.iterdir())
        except FileNotFoundError:
            return
        for path in inside:
            if fnmatchcase(path.name, first):
                if not rest:
                    yield path
                elif path.is_dir():
                    yield from path.glob(rest)

    def open(
        self,
        mode: str = "r",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """For reading, as a stream that never holds more than a few blocks."""
        size = self.stat().st_size
        if self.protocol in HTTP:
            if size <= RemoteFile.MAX_BYTES:
                stream: Any = io.BytesIO(self.read_bytes())
            elif not self._gives_parts():
                raise UserError(
                    f"the server of {self} sends no parts of files (HTTP Range), which {size} "
                    "bytes need; download the file, or serve it with one that does, such as nginx"
                )
            else:
                stream = io.BufferedReader(RemoteFile(self.read_range, size))
        else:
            stream = io.BufferedReader(RemoteFile(self.read_range, size))
        if "b" in mode:
            return stream
        return io.TextIOWrapper(stream, encoding or "utf-8", errors, newline)

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from start to before end."""

        def read() -> bytes:
            data: bytes = self.fs.cat_file(self._url, start=start, end=end)
            if self.protocol in HTTP and len(data) == self.stat().st_size:
                return data[start:end]  # of a server that sends no parts, the whole file came
            if len(data) != end - start:
                raise OSError(errno.EIO, f"{len(data)} of {end - start} bytes arrived")
            return data

        return self._attempt(read)

    def read_bytes(self) -> bytes:
        return cast(bytes, self._attempt(lambda: self.fs.cat_file(self._url)))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def fetch(self, path: Path) -> None:
        """Copy the file to a local path."""
        self._attempt(lambda: self.fs.get_file(self._url, str(path)))

    def write_bytes(self, data: bytes) -> None:
        """Make this the content of a small file."""
        self._info = None
        self._attempt(lambda: self.fs.pipe_file(self.path, data))
        self.fs.invalidate_cache(self.path)

    def put(self, path: Path) -> None:
        """Make this the content of a local file: at once, or not at all."""
        if self.protocol in OBJECT_STORES:
            limits = _S3_LIMITS if self.protocol in ("s3", "s3a") else {}
            self._attempt(lambda: self.fs.put_file(str(path), self.path, **limits))
        else:
            draft = f"{self.path}.tmp"
            self._attempt(lambda: self.fs.makedirs(self.parent.path, exist_ok=True))
            self._attempt(lambda: self.fs.put_file(str(path), draft))
            self._attempt(lambda: self.fs.mv(draft, self.path))
        self._info = None
        self.fs.invalidate_cache(self.path)
        if (found := self.stat().st_size) != (size := path.stat().st_size):
            raise RunFailed(f"{self} has {found} of {size} bytes after its upload; run it again")

    def unlink(self) -> None:
        """FileNotFoundError when there is no such file."""
        self._attempt(lambda: self.fs.rm_file(self.path))
        self.fs.invalidate_cache(self.path)

    def _at(self, path: str) -> "RemotePath":
        return RemotePath(self.fs, self.protocol, path)

    @property
    def _url(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    def _is(self, kind: str) -> bool:
        info = self._find()
        return info is not None and info["type"] == kind

    def _find(self) -> dict[str, Any] | None:
        if self._info is None:
            self._info = self._ask()
        return cast("dict[str, Any] | None", self._info)

    def _ask(self) -> dict[str, Any] | None:
        try:
            return cast(dict[str, Any], self._attempt(lambda: self.fs.info(self._url)))
        except FileNotFoundError:
            return None

    def _gives_parts(self) -> bool:
        def ask() -> bool:
            kept = {"Range": "bytes=0-0"}
            with self.fs.open(self._url, block_size=0, size=1, headers=kept) as stream:
                return bool(stream.r.status == 206)

        return self._attempt(ask)

    def _attempt(self, action: Callable[[], T]) -> T:
        return attempt(action, str(self))


def check_writable(path: Path) -> None:
    """UserError for a URL that nothing can be written to."""
    if is_remote(path) and path.protocol in HTTP:
        raise UserError(f"{path} cannot be written to; allowed: a folder, or a URL such as s3://")


def too_deep(folder: object) -> UserError:
    """For folders in each other without end, or nearly."""
    return UserError(f"more than {MAX_FOLDERS} folders in each other: {folder}; name one in it")


def name_below(path: Path, folder: Path) -> str:
    """What a file is called in a folder: with / between folders, and exactly as a key has it."""
    if not is_remote(path):
        return path.relative_to(folder).as_posix()
    assert is_remote(folder)
    begin = f"{folder.path}/"
    if not path.path.startswith(begin):
        raise ValueError(f"{path} is not below {folder}")
    return path.plain.removeprefix(folder.plain + "/")


def is_remote(path: Any) -> TypeGuard[RemotePath]:
    return isinstance(path, RemotePath)
