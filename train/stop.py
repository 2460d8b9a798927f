"""SIGINT and SIGTERM (a preempted job): noted, and obeyed where nothing is half done."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from train.dist import World

_ASK_S = 0.5  # between two questions to the other ranks: each is a message over the network


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
        self._asked_at = float("-inf")

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

    @contextmanager
    def together(self, world: World) -> Iterator[None]:
        """The same for work of several ranks that holds no exchange: a rank that a signal meets
        leaves it at once, waits for the others to end theirs, and all raise Interrupted."""
        with suppress(Interrupted), self.at_once():
            yield
        if self.number is not None:
            world.tell_signal(self.number)
        number = int(world.max(float(self.number or 0)))
        if number:
            raise Interrupted(number)

    def heed(self, world: World) -> None:
        """Within long work of `together` (decoding a split): leave it where another rank was asked
        to stop, which is waiting."""
        if time.monotonic() - self._asked_at > _ASK_S:
            self._asked_at = time.monotonic()
            if number := world.told_signal():
                raise Interrupted(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._at_once:
            self._at_once = False  # a second signal does not disturb what the first one started
            raise Interrupted(number)
