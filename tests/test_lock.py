"""shards.lock: one holder at a time, and a word where the file system knows no locks."""

import errno
import os
from pathlib import Path

import pytest

from shards.lock import hold


def test_one_holds_it_until_it_is_closed(tmp_path: Path):
    path = tmp_path / "lock"
    with path.open("w") as one:
        assert hold(one)
        with path.open("w") as other:
            assert not hold(other)
        assert hold(one)
    with path.open("w") as other:
        assert hold(other)


@pytest.mark.parametrize("name", ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "EIO", "EBADF"])
def test_what_is_no_word_about_locks_is_an_error(tmp_path: Path, monkeypatch, capsys, name: str):
    number = getattr(errno, name)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("shards.lock.fcntl.flock", refuse)
    with (tmp_path / "lock").open("w") as file:
        if name in ("EIO", "EBADF"):
            with pytest.raises(OSError, match=os.strerror(number)):
                hold(file)
        else:
            assert hold(file)
            assert f"lock cannot be locked ({os.strerror(number)})" in capsys.readouterr().err
