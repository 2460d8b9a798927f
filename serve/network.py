"""A model that scores batches of images, several at a time.

On the CPU each batch runs on one thread from its first layer to its last, and as many batches as
there are threads run at a time: no thread waits for another after every layer, as the threads of
one batch do, longest where decoders share the cores. On a GPU two sessions take turns, so that one
batch is prepared and copied while the other computes, each through buffers that stay where they are
in the GPU's memory.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import onnxruntime

from serve.foreign import Foreign, as_probabilities, check_foreign, foreign_info, normalised
from serve.model_info import INPUT_NAME, PROBABILITIES_NAME
from serve.providers import (
    GpuOptions,
    Provider,
    create_session,
    provider_of,
    read_model_info,
    reason,
)
from shards.console import RunFailed, UserError

# On the CPU the activations of few images stay in the cache, and the memory of a thread is small: 4
# images are as fast as 1 or 8 (DenseNet121 at 224), 16 lose a quarter.
CPU_BATCH, GPU_BATCH = 4, 32
GPU_SESSIONS = 2


class Network:
    """sessions: of a model of ours, or with `foreign` of any other, of one thread on the CPU;
    as `open_sessions` gives them."""

    def __init__(
        self,
        sessions: Sequence[onnxruntime.InferenceSession],
        model: str,
        batch: int | None = None,
        foreign: Foreign | None = None,
        *,
        threads: int = 1,
    ) -> None:
        """model: its name in messages; batch: the most images of one call; threads: batches at a
        time, on the CPU. UserError when the model is not what is said of it."""
        session, self.foreign = sessions[0], foreign
        self.provider = provider_of(session)
        only_batch = None
        if foreign is None:
            self.info = read_model_info(session, model)
            self._input, self._output = INPUT_NAME, PROBABILITIES_NAME
            self._shape = (1, self.info.size, self.info.size)
            self._dtype = np.dtype(np.uint8)
        else:
            fits = check_foreign(session, model, foreign)
            self._input, self._output, only_batch, self._shape, self._dtype = fits
            outputs = [output.name for output in session.get_outputs()]
            self.info = foreign_info(foreign, model, outputs)
        if only_batch is not None and batch not in (None, only_batch):
            raise UserError(f"{model} takes batches of {only_batch}; leave out --batch")
        on_gpu = self.provider != "cpu"
        self.fixed_batch = only_batch
        self.batch = batch or only_batch or (GPU_BATCH if on_gpu else CPU_BATCH)
        self._padded = on_gpu or only_batch is not None
        if on_gpu:
            names, out = (self._input, self._output), (self.batch, len(self.info.labels))
            runs = [_OnGpu(each, names, out).run for each in sessions]
            # Always the same thread for a session: a CUDA graph belongs to that which captured it.
            self._lanes = [_Lane(run, 1) for run in runs]
        else:
            self._lanes = [_Lane(self._on_cpu(session), threads)]
        self._turns = cycle(self._lanes)

    def submit(self, images: list[np.ndarray]) -> Future[np.ndarray]:
        """`score` while the caller goes on; waits while as many batches wait as run."""
        stacked = np.stack(images)[:, None]
        lane = next(self._turns)
        lane.places.acquire()
        future = lane.threads.submit(self._run, stacked, lane.compute)
        future.add_done_callback(lambda _: lane.places.release())
        return future

    def score(self, images: list[np.ndarray]) -> np.ndarray:
        """At most `batch` images (S, S) uint8 -> (N, L) float32. RunFailed when it does not run."""
        return self.submit(images).result()

    def try_out(self) -> None:
        """Score a black image in each session, one after the other: CUDA captures a graph while
        nothing else runs, and the first to use TensorRT builds its engines, minutes long, which the
        others load. RunFailed when the network does not run."""
        for _ in self._lanes:
            self.score([np.zeros((self.info.size, self.info.size), np.uint8)])

    def _on_cpu(self, session: onnxruntime.InferenceSession) -> "_Compute":
        def run(values: np.ndarray) -> np.ndarray:
            (found,) = session.run([self._output], {self._input: values})
            return np.asarray(found)

        return run

    def _run(self, images: np.ndarray, compute: "_Compute") -> np.ndarray:
        """(N, 1, S, S) uint8 -> (N, L) float32."""
        count = len(images)
        if self._padded and count < self.batch:
            images = np.pad(images, ((0, self.batch - count), (0, 0), (0, 0), (0, 0)))
        values = images if self.foreign is None else normalised(images, self.foreign.normalise)
        values = np.broadcast_to(values, (len(values), *self._shape))  # of one channel three
        values = np.ascontiguousarray(values, self._dtype)
        try:
            found = compute(values)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise RunFailed(f"the network does not run: {reason(error)}") from error
        wanted = (len(values), len(self.info.labels))
        if found.shape != wanted:
            raise RunFailed(f"the network's output is {found.shape}, expected {wanted}")
        found = found[:count]
        return found if self.foreign is None else as_probabilities(found, self.foreign.outputs)


_Compute = Callable[[np.ndarray], np.ndarray]  # the network's input -> its output


class _Lane:
    """Threads that compute, and the places of the batches that run or wait there."""

    def __init__(self, compute: _Compute, threads: int) -> None:
        self.compute = compute
        self.threads = ThreadPoolExecutor(threads, "network")
        self.places = BoundedSemaphore(2 * threads)


class _OnGpu:
    """A batch's input and output in the GPU's memory, at the same places for every batch: nothing
    is allocated after the first, and a CUDA graph may be replayed. Not before it either: memory
    that is not there is then told as all else that keeps the network from running.

    The images come from memory that is not pinned: ONNX Runtime gives Python pinned memory for
    providers that are plugins alone, which CUDA in onnxruntime-gpu 1.31 is not ("No shared
    allocator found"), and a batch is copied while the other session computes."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        names: tuple[str, str],
        out: tuple[int, int],
    ) -> None:
        """names: of the input and the output; out: the output's shape."""
        self.session, self.names, self.out = session, names, out
        self.bound: Any = None  # the binding, its input and its output

    def run(self, images: np.ndarray) -> np.ndarray:
        """images: a whole batch, of the shape and type that the network takes."""
        if self.bound is None:
            self.bound = self._bind(images)
        binding, values, scores = self.bound
        values.update_inplace(images)
        self.session.run_with_iobinding(binding)
        return np.asarray(scores.numpy())

    def _bind(self, images: np.ndarray) -> Any:
        make = onnxruntime.OrtValue
        values = make.ortvalue_from_numpy(images, "cuda")
        scores = make.ortvalue_from_shape_and_type(list(self.out), np.float32, "cuda")
        binding = self.session.io_binding()
        binding.bind_ortvalue_input(self.names[0], values)
        binding.bind_ortvalue_output(self.names[1], scores)
        return binding, values, scores


def open_sessions(
    path: Path, provider: Provider, gpu: GpuOptions, count: int = GPU_SESSIONS
) -> list[onnxruntime.InferenceSession]:
    """One of one thread on the CPU, where all batches share it; so many on a GPU. UserError as
    create_session has it."""
    session = create_session(path, provider, 1, gpu)
    if provider_of(session) == "cpu":
        return [session]
    same: Provider = "cuda" if provider == "auto" else provider
    return [session, *(create_session(path, same, 1, gpu) for _ in range(count - 1))]


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
