"""What to do where a step does not fit into memory: say which setting to lower, or lower it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from shards.console import RunFailed, one_line, warn
from train.runs import read_json
from train.settings import write_json

# What torch's allocators and CUDA's libraries say, where the type is RuntimeError or torch's
# AcceleratorError. cuDNN 9 has another name for it than 8; and where each of its algorithms ran out
# of memory, torch says that it found none (so it does where another cuDNN than its own is loaded:
# what was said is passed on).
_MESSAGES = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
)
_LEAST = 4  # images at once; batch norm has noise for statistics below it


def is_out_of_memory(error: Exception) -> bool:
    """On a GPU or the CPU; some say it by their type, some by their message alone."""
    of_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return of_type or any(message in str(error) for message in _MESSAGES)


def what_it_says(error: Exception) -> str:
    """Its first line; Python's own MemoryError often has none, but a name."""
    return one_line(str(error).split("\n")[0] or type(error).__name__)


@contextmanager
def making_optim_state() -> Iterator[None]:
    """RunFailed where memory runs out. An optimiser makes its state when it is built, or in its
    first step, when activations are gone: a smaller micro-batch gives it no room."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailed(
            f"out of memory for the optimiser's state ({what_it_says(error)}); take --input.store "
            "host, or in a new run --optim.name sgd, which keeps half of adam's, or no --ema-decay"
        ) from error


class MicroBatch:
    """How many images go through the network at once in this run: `asked`, or what
    --auto-micro-batch has found, which stands in RUN/micro-batch.json."""

    def __init__(self, run: Path, asked: int, *, auto: bool) -> None:
        self._path, self._asked, self._auto = run / "micro-batch.json", asked, auto

    @property
    def now(self) -> int:
        """It is part of what the run computes (batch norm), so that a resumed run keeps it."""
        if not self._path.is_file():
            return self._asked
        found = read_json(self._path)
        return int(found["micro_batch"]) if found.get("asked") == self._asked else self._asked

    def halve(self, tried: int, reason: str, *, alone: bool) -> int:
        """The next size to try. RunFailed without --auto-micro-batch, when there is none smaller,
        and with other processes: those wait for this one's gradients, so that all begin again.
        reason: what the error says.
        """
        smaller = max(_LEAST, tried // 2)
        if not self._auto:
            raise RunFailed(
                f"out of memory with {tried} images at once ({reason}); lower --micro-batch (now "
                f"{tried}) in a new run, or give this one --auto-micro-batch, which halves it and "
                "goes on"
            )
        if smaller == tried:
            raise RunFailed(
                f"out of memory with {tried} images at once, the least ({reason}); lower --size, "
                "or take --input.store host"
            )
        write_json(self._path, {"micro_batch": smaller, "asked": self._asked})
        if not alone:
            raise RunFailed(
                f"out of memory with {tried} images at once; --auto-micro-batch lowered it to "
                f"{smaller}: the same command (or torchrun --max-restarts) goes on with it"
            )
        warn(f"out of memory with {tried} images at once; going on with {smaller}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return smaller
