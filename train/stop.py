"""SIGINT and SIGTERM (a preempted job): noted, and obeyed where nothing is half done."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal asked the run to stop; its checkpoint is written. Like KeyboardInterrupt it is no
    Exception, so that no handler between here and the command swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """number: the signal that asked for the end; None: go on."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._at_once = False

    def listen(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that may be left at any point (decoding, a forward pass, a validation): minutes on a
        CPU, while a scheduler waits some 20 s. A signal raises Interrupted inside."""
        self._at_once = True
        try:
            if self.number is not None:
                raise Interrupted(self.number)
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._at_once:
            self._at_once = False  # a second signal does not disturb what the first one started
            raise Interrupted(number)
