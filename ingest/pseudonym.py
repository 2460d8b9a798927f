"""Keyed hashes in place of identifiers: the same under one key, and nothing without it.

The key is a file of 32 random bytes, readable by its owner alone. Who holds it can tell whether a
known patient is in a data set; who lost it cannot add to a data set under the same pseudonyms.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from pathlib import Path

from shards.console import UserError

KEY_BYTES = 32
_HEX_DIGITS = 32  # 128 of 256 bits: 10^9 images collide with a probability of 10^-21


class Pseudonyms:
    """HMAC-SHA256 under one key. `purpose` keeps a patient and a file of the same name apart."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, purpose: str, *parts: str) -> str:
        """32 hexadecimal digits."""
        message = json.dumps([purpose, *parts]).encode()  # unambiguous, and ASCII for any name
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_HEX_DIGITS]


def load_key(path: Path) -> bytes:
    """The key in a file, which is made when it is not there. UserError when others may read it."""
    if not path.exists():
        _make_key(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = file.read(KEY_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise UserError(f"cannot read the key {path}: {error.strerror}") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise UserError(
            f"others can read the key {path} (mode {mode:o}); allowed: 600; if nobody has read it, "
            f"chmod 600 {path}, else name another --key-file and ingest again"
        )
    if len(key) != KEY_BYTES:
        raise UserError(
            f"{path} is no key ({status.st_size} bytes); a key has {KEY_BYTES}; name the right "
            "--key-file, or one that is not there yet, to have it made"
        )
    return key


def _make_key(path: Path) -> None:
    """Whole or not at all, and never over another one: two commands may begin at once."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass  # the other command was first; its key is the one
    except OSError as error:
        raise UserError(
            f"cannot make the key {path}: {error.strerror}; name a --key-file in a folder that "
            "is there and where you may write"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
