"""The checkpoint that a run goes on from: every process reads it, and all read the same one."""

from pathlib import Path

from shards.console import RunFailed
from train.checkpoint import Checkpoint, latest_checkpoint, numbers_of
from train.dist import World
from train.shared import gather

_NONE, _DAMAGED = 0, -1  # in the place of a number: nothing is there; nothing can be read


def agreed_checkpoint(folder: Path, world: World) -> Checkpoint | None:
    """The newest checkpoint that every process can read, None where there is none at all; all
    processes of the world call it together.

    A damage, or a file system that another machine does not see, may be one process's alone: each
    left to itself would go on from another step. RunFailed, on every process, where all checkpoints
    are damaged for one of them, and where two do not see the same.
    """
    last: int | None = None
    while True:
        found = latest_checkpoint(folder, last)
        everyone = gather(_numbers(folder, found), world)
        numbers = [number for number, _ in everyone]
        least = min(numbers)
        if least <= 0 < max(numbers) or least == _DAMAGED:
            raise RunFailed(_unreadable(folder, numbers))
        if least == max(numbers):
            _check_same(folder, everyone)
            return found
        last = least


def _numbers(folder: Path, found: Checkpoint | None) -> list[int]:
    """What this process tells the others: the checkpoint's number, and 63 bits of its hash."""
    if found:
        return [found.number, int(found.check[:16], 16) >> 1]
    return [_DAMAGED if numbers_of(folder) else _NONE, 0]


def _unreadable(folder: Path, numbers: list[int]) -> str:
    if max(numbers) == _DAMAGED:
        return f"no checkpoint in {folder} can be read; delete the run to start again"
    words = {_NONE: "finds none", _DAMAGED: "finds none that it can read"}
    seen = [
        f"rank {numbers.index(number)} {words.get(number, f'reads {number:06d}')}"
        for number in (min(numbers), max(numbers))
    ]
    return (
        f"the processes do not see the same checkpoints in {folder}: {', '.join(seen)}; give all "
        "machines the same run folder (a shared file system), or delete the run to start again"
    )


def _check_same(folder: Path, everyone: list[list[int]]) -> None:
    """RunFailed where the number is the same and the content is not."""
    for rank, (number, digest) in enumerate(everyone):
        if digest != everyone[0][1]:
            raise RunFailed(
                f"checkpoint {number:06d} in {folder} is not the same for rank {rank} as for rank "
                "0; give all machines the same run folder (a shared file system)"
            )
