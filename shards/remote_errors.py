"""What goes wrong with a URL: tried again with a limit, or said to the user in one line.

Every file system of fsspec raises its own exceptions; no message keeps a URL's query, which may be
a signature.
"""

import errno
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar, cast

from shards.console import RunFailed, UserError

T = TypeVar("T")
TRIES, WAIT_S = 4, 1.0  # waits of 1, 2 and 4 s; s3fs itself tries 5 times within each
_PERMANENT = {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE}
_ANSWERS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError")
_NO_BUCKET = "bucket does not exist"  # S3's words; a missing object is an ordinary answer


def attempt(action: Callable[[], T], where: str) -> T:
    """The action's result. FileNotFoundError; UserError for what no repetition mends; RunFailed
    when the last try failed too. where: the URL, for the message."""
    last = ""
    for number in range(TRIES):
        if number:
            time.sleep(WAIT_S * 2 ** (number - 1))
        try:
            return action()
        except Exception as error:
            cause = _real(error)
            if isinstance(cause, FileNotFoundError) and _NO_BUCKET not in str(cause):
                raise absent(where) from None
            if not _is_transient(cause):
                raise _refusal(cause, where) from None
            last = _safe(cause)
    raise RunFailed(f"{where}: {last} ({TRIES} tries); the same command goes on where it stopped")


def absent(where: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)


def _refusal(error: BaseException, where: str) -> BaseException:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{where}: the bucket does not exist; make it, or name another one")
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return UserError(
            f"no access to {where} ({_safe(error)}); check the credentials, such as "
            "AWS_ACCESS_KEY_ID or AWS_PROFILE, and what they may do"
        )
    if type(error).__name__ in _NO_CREDENTIALS:
        return UserError(
            f"no credentials for {where}; set those of its provider, such as AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    ours = isinstance(error, (UserError, RunFailed))
    if not ours and (_is_foreign(error) or isinstance(error, (OSError, NotImplementedError))):
        return UserError(f"{where}: {_safe(error)}; look at the URL")
    return error


def _real(error: BaseException) -> BaseException:
    """fsspec says 'not found' for whatever goes wrong when it asks HTTP for a size."""
    cause = error.__cause__
    hidden = isinstance(error, FileNotFoundError) and cause is not None
    if hidden and type(cause).__module__.startswith("aiohttp") and _status(cause) != 404:
        return cast(BaseException, cause)
    return error


def _status(error: BaseException | None) -> int | None:
    return getattr(error, "status", None)  # of aiohttp's ClientResponseError


def _is_foreign(error: BaseException) -> bool:
    return type(error).__module__ != "builtins"


def _is_transient(error: BaseException) -> bool:
    status = _status(error)
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    if type(error).__name__ in (*_NO_CREDENTIALS, "ParamValidationError"):
        return False
    if isinstance(error, _ANSWERS):
        return False
    if isinstance(error, OSError):
        return error.errno not in _PERMANENT
    return _is_foreign(error) and not isinstance(error, (UserError, RunFailed, ValueError))


def _safe(error: BaseException) -> str:
    """The error's words without the query of any URL in them."""
    return re.sub(r"\?[^\s'\"]+", "?...", str(error)) or type(error).__name__
