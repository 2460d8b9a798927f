"""What a text on a command line names: a local path, or a URL such as s3://bucket/folder.

`path_of(text)` gives a Path for a local path and a RemotePath for a URL.
"""

import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import tyro

from shards.console import UserError
from shards.remote import HTTP, OBJECT_STORES, RemotePath

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> extra of this project that brings its package
# Of fsspec's: what lasts only as long as a process, and what lies around another file system.
_NO_PLACES = ("memory", "data", "dir", "zip", "tar", "libarchive", "reference", "generic", "dask")
_ONE_TRY = {"config_kwargs": {"retries": {"max_attempts": 0}}}  # of botocore: else 5 within those
_OPTIONS: dict[str, dict[str, Any]] = {"s3": _ONE_TRY, "s3a": _ONE_TRY}


def place_of(text: str) -> Path:
    """path_of() for what a user names: UserError for a URL at which nothing lies."""
    protocol = text.partition("://")[0].lower()
    if protocol in _NO_PLACES and _URL.match(text):
        raise UserError(
            f"{protocol}:// is no place where files stay; allowed: a folder, or a URL such as s3://"
        )
    return path_of(text)


def path_of(text: str) -> Path:
    """A local Path, or for a URL a RemotePath, which does a Path's work where data sets are read.
    UserError for a URL that nothing here can open, and for no text at all."""
    if not text:
        raise UserError("an empty path; name a file, a folder or a URL")
    if not _URL.match(text):
        return Path(text)
    parts = urlsplit(text)
    protocol = parts.scheme.lower()
    shown = f"{protocol}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.password is not None:
        raise UserError(
            f"{shown} was given with a password, which logs would keep; leave it out, and set the "
            "provider's environment variables or profile"
        )
    if protocol in ("file", "local"):
        return Path(unquote(parts.path))
    # Of an object's key ? and # are parts, and ? stands for a character; `?name=value` is neither.
    is_key = protocol in OBJECT_STORES and "=" not in parts.query
    if parts.query and protocol not in HTTP and not is_key:
        raise UserError(f"{shown} was given with a query; allowed: a plain URL of a folder or file")
    fs = _file_system(protocol, shown)
    fs.invalidate_cache()  # a command sees what is there when it begins
    http = protocol in HTTP
    plain = text.partition("?")[0].partition("#")[0] if http else text
    query = parts.query if http else ""
    return cast(Path, RemotePath(fs, protocol, str(fs._strip_protocol(plain)), query))


def _file_system(protocol: str, shown: str) -> Any:
    import fsspec  # 0.1 s, for those who name a URL

    options = dict(_OPTIONS.get(protocol, {}))
    try:
        if protocol in HTTP:
            from shards.web_pages import BoundedPage

            options["client_kwargs"] = {"response_class": BoundedPage}
        return fsspec.filesystem(protocol, **options)
    except ValueError:
        raise UserError(
            f"{shown}: the protocol {protocol} is not known; known are s3, gs, abfs, http, https, "
            "file and the others of fsspec"
        ) from None
    except (TypeError, OSError) as error:
        raise UserError(f"{shown}: {error}; allowed: a folder, or a URL such as s3://") from None
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        way = f"pip install '.[{extra}]'" if extra else str(error)
        raise UserError(f"{shown} needs a package that is not installed: {way}") from None


def url_paths() -> tyro.constructors.ConstructorRegistry:
    """For a command line whose paths may be URLs: pathlib alone would make s3:/x of s3://x."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: Any) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda texts: place_of(texts[0]),
            is_instance=lambda value: isinstance(value, (Path, RemotePath)),
            str_from_instance=lambda path: [str(path)],
        )

    return registry
