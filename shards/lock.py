"""Locks: a file that one process at a time holds."""

import errno
import fcntl
from typing import IO, Any

from shards.console import warn

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}  # Lustre, some NFS


def hold(file: IO[Any]) -> bool:
    """Hold the file until it is closed, at the latest with the end of the process; False when
    another process holds it. Where the file system knows no locks, says so and goes on: True."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn(f"{file.name} cannot be locked ({error.strerror}); see that no other run writes there")
    return True
