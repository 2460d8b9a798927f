"""What every question of the bench shares: which images, how often, on how many processes."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from shards.console import UserError


@dataclass(frozen=True)
class BenchConfig:
    """Every question's options begin with these."""

    images: Path | None = None
    """Folder with raw images or their tar.gz archives, such as the NIH's.
    Default: synthetic radiographs."""
    number: int = 256
    """Use at most this many images."""
    side: int = 1024
    """Side of the synthetic radiographs in pixels."""
    shorter_side: int = 512
    """Shorter side in pixels that the shards store."""
    repeats: int = 5
    """Repetitions of ours and of the peer, in turns."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes or threads of either side."""
    quick: bool = False
    """A smoke test with few small images and a toy network: its rates mean nothing."""


@dataclass(frozen=True)
class NetworkBench(BenchConfig):
    """What every question about a network asks for."""

    architecture: str = "densenet121"
    """The network."""
    size: int = 224
    """Side of the network's input in pixels."""


# --quick: no setting is above these.
_QUICK = {
    "number": 12,
    "side": 160,
    "shorter_side": 96,
    "repeats": 3,
    "workers": 1,  # OpenMP's threads wait for each other for seconds on a busy machine
    "size": 32,
    "times": 2,
    "batch": 4,
}
_AT_LEAST = {
    "number": 2,
    "side": 64,
    "shorter_side": 32,
    "repeats": 1,
    "workers": 1,
    "size": 32,
    "times": 1,
    "batch": 2,
}
_AnyConfig = TypeVar("_AnyConfig", bound=BenchConfig)


def settle(config: _AnyConfig) -> _AnyConfig:
    """The config with --quick applied. UserError for a number below its minimum."""
    numbers = {name: getattr(config, name) for name in _QUICK if hasattr(config, name)}
    for name, value in numbers.items():
        if value < _AT_LEAST[name]:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {value}; at least {_AT_LEAST[name]} is needed")
    if not config.quick:
        return config
    return replace(config, **{name: min(value, _QUICK[name]) for name, value in numbers.items()})
