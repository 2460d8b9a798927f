"""Scoring on the machines of a Ray cluster: they decode and score, this process reads and commits.

A chunk is one batch: on CPUs one task; with GPUs one that decodes, on any machine's CPU, and one
that scores what the first gives, so that the GPUs do not wait while images are decoded. Ray tries
those again whose worker or machine died, so the rows are those of an undisturbed run. No machine
needs to see the archives or the folder of the scores.
"""

import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from serve.decode import Data, Decoded, DecodePool, Task
from serve.model_info import ModelInfo
from serve.network import CPU_BATCH, GPU_BATCH, Network
from serve.providers import Provider
from serve.score_run import Scored, Share, Tag, Work, take_in
from shards.console import UserError
from shards.ray_cluster import (
    IN_FLIGHT_BYTES,
    NOT_INSTALLED,
    PER_CPU,
    TRIES,
    Resource,
    connect,
    prepare,
    refuse,
    wait_for,
)

if TYPE_CHECKING:
    from serve.score import ScoreConfig

Sides = tuple[int | None, int, int | None]
_PACKAGES = ("numpy", "imagecodecs", "kornia-rs", "opencv-python-headless")


def run_on_ray(work: Work, network: Network, config: "ScoreConfig", workers: int) -> None:
    """Join the cluster, or start one of `workers` CPUs here, and score what is left. UserError when
    there is no Ray or no such cluster."""
    ray = _import_ray(config.ray_address)
    own = not ray.is_initialized()
    if own:
        connect(ray, workers, config.ray_address)
    try:
        gpu = config.provider in ("cuda", "tensorrt")
        if gpu and not ray.cluster_resources().get("GPU"):
            raise UserError(
                f"--provider {config.provider}, but no machine of the Ray cluster has a GPU; start "
                "ray on one that has, or use --provider cpu"
            )
        model = ray.put(config.model.read_bytes())
        batch = config.batch or network.fixed_batch or (GPU_BATCH if gpu else CPU_BATCH)
        provider: Provider = "cpu" if config.provider == "auto" else config.provider
        asked = replace(config, archives=(), engine="local", ray_address=None)
        asked = replace(asked, provider=provider, batch=batch, threads=1)
        submit = _chained(ray, uuid.uuid4().hex, [model], asked, network.info, gpu=gpu)
        tasks = work.tasks(Share(), most=batch)
        take_in(work, network, _in_order(ray, submit, tasks, network.info.size, gpu=gpu))
    finally:
        if own:
            ray.shutdown()


def _import_ray(address: str | None) -> Any:
    """The module ray. UserError when it is not installed, or for another kind of address."""
    prepare(address)
    try:
        import ray
    except ImportError:
        raise UserError(NOT_INSTALLED) from None
    return ray


def _chained(
    ray: Any, run: str, model: list[Any], asked: "ScoreConfig", info: ModelInfo, *, gpu: bool
) -> Callable[[Sequence[Data]], Any]:
    """images -> reference to their Scored."""
    sides, wanted = (info.shorter_side, info.size, info.depth), versions()
    if not gpu:
        both = ray.remote(num_cpus=1, max_retries=TRIES - 1)(score_chunk)
        return lambda images: both.remote(run, wanted, sides, model, asked, images)
    decode = ray.remote(num_cpus=1, max_retries=TRIES - 1)(decode_chunk)
    # max_calls 0: Ray else ends a process after each task on a GPU, and each batch would load CUDA
    # and the model anew, seconds long. Ray keeps these processes apart from those without a GPU.
    options = {"num_cpus": 0, "num_gpus": 1, "max_calls": 0, "max_retries": TRIES - 1}
    score = ray.remote(**options)(score_decoded)
    return lambda images: score.remote(
        run, wanted, model, asked, decode.remote(run, wanted, sides, images)
    )


def _in_order(
    ray: Any,
    submit: Callable[[Sequence[Data]], Any],
    tasks: Iterable[Task[Tag]],
    side: int,
    *,
    gpu: bool,
) -> Iterator[tuple[Tag, Scored]]:
    """side: of a decoded image."""
    resources: list[Resource] = ["CPU", "GPU"] if gpu else ["CPU"]
    under_way: deque[tuple[Task[Tag], Any, int]] = deque()
    held = 0
    for task in tasks:
        size = sum(len(image) for image in task.images if isinstance(image, bytes))
        size = max(size, len(task.images) * side**2)
        under_way.append((task, submit(task.images), size))
        held += size
        most = PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 0)))
        while len(under_way) >= most or held > IN_FLIGHT_BYTES:
            task, ref, size = under_way.popleft()
            held -= size
            yield task.tag, _collect(ray, ref, resources)
    while under_way:
        task, ref, _ = under_way.popleft()
        yield task.tag, _collect(ray, ref, resources)


def _collect(ray: Any, ref: Any, resources: Sequence[Resource]) -> Any:
    wait_for(ray, ref, resources)
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        refuse(error)


# Of this worker process, of its last run.
_pools: dict[str, DecodePool] = {}
_networks: dict[str, Network] = {}


def decode_chunk(run: str, wanted: dict[str, str], sides: Sides, images: Sequence[Data]) -> Decoded:
    """In a Ray worker: decode in a process of its own. sides: shorter side, size, depth."""
    if run not in _pools:
        _check_versions(versions(), wanted)
        for pool in _pools.values():
            pool.__exit__(None, None, None)
        _pools.clear()
        _pools[run] = DecodePool(1, *sides)
    ((_, found),) = _pools[run].run([Task(None, images)])
    return found


def score_decoded(
    run: str, wanted: dict[str, str], model: list[Any], config: "ScoreConfig", found: Decoded
) -> Scored:
    """In a Ray worker: score. model: [reference to its bytes], so that only a worker's first task
    fetches it."""
    if run not in _networks:
        _check_versions(versions(), wanted)
        _networks.clear()
        _networks[run] = _network(model[0], config)
    network = _networks[run]
    sound = [image for image, error in zip(found.images, found.errors) if error is None]
    none = np.zeros((0, len(network.info.labels)), np.float32)
    return Scored(found.errors, network.score(sound) if sound else none)


def score_chunk(
    run: str,
    wanted: dict[str, str],
    sides: Sides,
    model: list[Any],
    config: "ScoreConfig",
    images: Sequence[Data],
) -> Scored:
    """Both, on one CPU."""
    return score_decoded(run, wanted, model, config, decode_chunk(run, wanted, sides, images))


def _network(model: Any, config: "ScoreConfig") -> Network:
    import ray

    from serve.opened import open_network

    with tempfile.TemporaryDirectory(prefix="cxrstack-") as folder:
        path = Path(folder, config.model.name)
        path.write_bytes(ray.get(model))
        return open_network(replace(config, model=path))


def versions() -> dict[str, str]:
    """Of the packages that decide the scores; onnxruntime is one of two, which have the same."""
    return {name: version(name) for name in _PACKAGES} | {"onnxruntime": onnxruntime.__version__}


def _check_versions(here: dict[str, str], wanted: dict[str, str]) -> None:
    names = sorted(n for n in here.keys() | wanted.keys() if here.get(n) != wanted.get(n))
    if names:
        differ = ", ".join(f"{n} {here.get(n)} (asked by {wanted.get(n)})" for n in names)
        raise UserError(f"a machine of the Ray cluster has other versions: {differ}; make setup")
