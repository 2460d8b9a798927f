"""SIGTERM (a preempted job) and Ctrl-C before a training listens to them itself: importing torch
alone takes seconds, for which a scheduler does not wait. There is nothing to save yet."""

import os
import signal
import sys
from types import FrameType

_OTHERS = {"list", "show", "preview", "compare"}  # words that train nothing


def listen() -> None:
    """From now on either signal ends the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    """Without an exception, which an import may swallow. Status 0 for a preempted training. One of
    several processes ends as if the signal had ended it: then torchrun ends the others, which would
    wait for this one."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"stopped before it began; give the same command again\n")
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    trains = alone and not _OTHERS.intersection(sys.argv[1:2])
    os._exit(0 if number == signal.SIGTERM and trains else 128 + number)
