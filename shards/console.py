"""What every command shares: errors for users, exit statuses, progress bars."""

import errno
import io
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from types import FrameType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
# Full, not ours to write, no folder where one is needed, or failing: nothing that a trace explains.
_OF_THE_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,  # with a name: /proc/x, or a file that somebody took away
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EFBIG,  # beyond ulimit -f, or what the file system can hold
    errno.EIO,
    errno.ESTALE,
}
_NAMED = {errno.ENOENT, errno.EEXIST, errno.EINVAL}  # where the name of the file explains enough

stderr = Console(stderr=True, highlight=False, markup=False)


class UserError(Exception):
    """The request was wrong: one line that says what was found and the way out. Exit status 2."""


class RunFailed(Exception):
    """The request was right and the run failed: one line that says why. Exit status 1."""


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt it is no Exception, so no handler swallows it."""


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def run(main: Callable[[], None]) -> None:
    """Run a command's main and exit: 0 done, 1 failed, 2 wrong request, 130 Ctrl-C, 143 SIGTERM
    (unless the command has a handler of its own)."""
    if not callable(signal.getsignal(signal.SIGTERM)):
        signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        main()
    except UserError as error:
        fail(str(error), 2)
    except RunFailed as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C; the same command goes on where it stopped", 130)
    except Terminated:
        fail("stopped by SIGTERM; the same command goes on where it stopped", 143)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.errno not in _OF_THE_DISK or (error.errno in _NAMED and not error.filename):
            raise
        where = f" ({error.filename})" if error.filename else ""
        fail(f"{error.strerror}{where}; mend that, and the same command goes on", 1)


def parse(read: Callable[[], T]) -> T:
    """Call tyro; what it would print as a box of several lines becomes a UserError of one."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return read()
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise UserError(_unboxed(printed.getvalue())) from None


def _unboxed(text: str) -> str:
    """The first part of tyro's box of '│ ... │' lines, which rules divide, and of the others those
    that name options. The options' own help, 8 columns in, is left to --help."""
    parts: list[list[str]] = [[]]
    for line in (line.strip("│")[1:].rstrip() for line in text.splitlines() if line[:1] == "│"):
        if line and set(line) <= {"─"}:
            parts.append([])
        elif not line.startswith(" " * 8) and line.strip() != "[...]":
            parts[-1].append(line.strip())
    said = [" ".join(part) for part in parts if part]
    named = [part for part in said[1:] if part.startswith(("Unrecognized", "Perhaps"))]
    return "; ".join([*(said[:1] or [text]), *named, "--help tells what there is"])


def check_command(arguments: Sequence[str], commands: Iterable[str]) -> None:
    """UserError where the first word of a command line is none of the commands."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        raise UserError(f"no command {arguments[0]!r}; there are: {', '.join(commands)}")


def fail(message: str, status: int) -> None:
    """Print one line on standard error and exit."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(status)


def warn(message: str) -> None:
    """Print one line on standard error."""
    print(f"warning: {one_line(message)}", file=sys.stderr)


def first_few(names: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """The first names for a sentence, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def one_line(message: str) -> str:
    """What a terminal may get of a message that quotes a stranger's file: no control characters,
    and where it is long, its first 1,000 and last 300 characters."""
    line = " ".join(message.split())
    if len(line) > 1400:
        line = f"{line[:1000]} ... {line[-300:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


Advance = Callable[
    ..., None
]  # advance(n=1, note="") moves the bar and shows a short note behind it


_bars = True  # of this command


def show_progress(shown: bool) -> None:
    """Whether this command shows bars at all, those of a source's own passes too."""
    global _bars
    _bars = shown


@contextmanager
def progress(label: str, total: int | None, *, shown: bool = True) -> Iterator[Advance]:
    """A progress bar on standard error with count, rate of completion and time left."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=30) if total is not None else SpinnerColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    hidden = not (shown and _bars)
    with Progress(*columns, console=stderr, disable=hidden, refresh_per_second=4) as bar:
        task = bar.add_task(label, total=total, note="")

        def advance(n: int = 1, note: str | None = None) -> None:
            if note is not None:
                bar.update(task, note=note)
            bar.advance(task, n)

        yield advance
