"""The model of a request, ready to score on one GPU or the CPU. Needs no torch."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from serve.foreign import Foreign, foreign_of
from serve.network import GPU_SESSIONS, Network, open_sessions
from serve.providers import GpuOptions, Provider
from shards.console import RunFailed, UserError, warn

if TYPE_CHECKING:
    from serve.score import ScoreConfig


def open_network(config: "ScoreConfig") -> Network:
    """The model of a request, on the first GPU or the CPU. UserError when it does not run on the
    provider asked for: CUDA loads cuDNN, and a GPU's memory runs out, only when it computes."""
    provider = "cpu" if config.engine == "ray" else config.provider  # here only to look at it
    network = _open(config, provider, GpuOptions(config.fp16, graph=True))
    problem = None if network.provider == "cpu" else _problem(network)
    if problem is not None and network.provider == "cuda":
        warn(f"{problem}; trying without CUDA graphs")
        del network  # its memory, which the next one may lack
        network = _open(config, provider, GpuOptions(config.fp16))
        problem = _problem(network)
    if problem is None:
        return network
    if provider != "auto":
        raise UserError(f"the provider {provider} was asked for, but {problem}")
    warn(f"{problem}; going on with the CPU, as --provider auto allows")
    return _open(config, "cpu", GpuOptions())


def _problem(network: Network) -> str | None:
    """Why it does not run; None when it does."""
    try:
        network.try_out()
    except RunFailed as error:
        return str(error)
    return None


def _open(config: "ScoreConfig", provider: Provider, gpu: GpuOptions) -> Network:
    threads = config.threads or len(os.sched_getaffinity(0))
    sessions = open_sessions(config.model, provider, gpu, config.threads or GPU_SESSIONS)
    said = foreign(config)
    network = Network(sessions, str(config.model), config.batch, said, threads=threads)
    if config.depth is not None:
        network.info = replace(network.info, depth=config.depth)
    return network


def foreign(config: "ScoreConfig") -> Foreign | None:
    """What the request says of a model without our metadata."""
    return foreign_of(config.labels, config.size, config.normalise, config.outputs)
