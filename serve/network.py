"""A model that scores batches of images, several at a time.

On the CPU each batch runs on one thread from its first layer to its last, and as many batches as
there are threads run at a time: no thread waits for another after every layer, as the threads of
one batch do, longest where decoders share the cores. On a GPU one batch of a fixed size runs
at a time, through buffers that stay where they are in the GPU's memory.
"""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore

import numpy as np
import onnxruntime

from serve.foreign import Foreign, as_probabilities, check_foreign, foreign_info, normalised
from serve.model_info import INPUT_NAME, PROBABILITIES_NAME
from serve.providers import provider_of, read_model_info
from shards.console import RunFailed, UserError

# On the CPU the activations of few images stay in the cache, and the memory of a thread is small: 4
# images are as fast as 1 or 8 (DenseNet121 at 224), 16 lose a quarter.
CPU_BATCH, GPU_BATCH = 4, 32


class Network:
    """session: of a model of ours, or with `foreign` of any other; of one thread on the CPU."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        model: str,
        batch: int | None = None,
        foreign: Foreign | None = None,
        *,
        threads: int = 1,
        device: int = 0,
    ) -> None:
        """model: its name in messages; batch: the most images of one call; threads: batches at a
        time, on the CPU. UserError when the model is not what is said of it."""
        self.session, self.foreign = session, foreign
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
        self.at_a_time = 1 if on_gpu else threads
        self._padded = on_gpu or only_batch is not None
        self._on_gpu = None
        if on_gpu:
            names, out = (self._input, self._output), (self.batch, len(self.info.labels))
            images = np.zeros((self.batch, *self._shape), self._dtype)
            self._on_gpu = _OnGpu(session, names, images, out, device)
        # Always the same thread for a GPU: a CUDA graph belongs to the thread that captured it.
        self._threads = ThreadPoolExecutor(self.at_a_time, "network")
        self._places = BoundedSemaphore(2 * self.at_a_time)

    def submit(self, images: list[np.ndarray]) -> Future[np.ndarray]:
        """`score` while the caller goes on; waits while as many batches wait as run."""
        stacked = np.stack(images)[:, None]
        self._places.acquire()
        future = self._threads.submit(self._run, stacked)
        future.add_done_callback(lambda _: self._places.release())
        return future

    def score(self, images: list[np.ndarray]) -> np.ndarray:
        """At most `batch` images (S, S) uint8 -> (N, L) float32. RunFailed when it does not run."""
        return self.submit(images).result()

    def _run(self, images: np.ndarray) -> np.ndarray:
        """(N, 1, S, S) uint8 -> (N, L) float32."""
        count = len(images)
        if self._padded:
            images = np.pad(images, ((0, self.batch - count), (0, 0), (0, 0), (0, 0)))
        values = images if self.foreign is None else normalised(images, self.foreign.normalise)
        values = np.broadcast_to(values, (len(values), *self._shape))  # of one channel three
        values = np.ascontiguousarray(values, self._dtype)
        try:
            if self._on_gpu is not None:
                found = self._on_gpu.run(values)
            else:
                (found,) = self.session.run([self._output], {self._input: values})
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise RunFailed(f"the network does not run: {' '.join(str(error).split())}") from error
        wanted = (len(values), len(self.info.labels))
        if found.shape != wanted:
            raise RunFailed(f"the network's output is {found.shape}, expected {wanted}")
        found = found[:count]
        return found if self.foreign is None else as_probabilities(found, self.foreign.outputs)


class _OnGpu:
    """A batch's input and output in the GPU's memory, at the same places for every batch: nothing
    is allocated in between, and a CUDA graph may be replayed."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        names: tuple[str, str],
        images: np.ndarray,
        out: tuple[int, int],
        device: int,
    ) -> None:
        """names: of the input and the output; images: of the shape and type that it takes."""
        make = onnxruntime.OrtValue
        self.session = session
        self.images = make.ortvalue_from_numpy(images, "cuda", device)
        self.scores = make.ortvalue_from_shape_and_type(list(out), np.float32, "cuda", device)
        self.binding = session.io_binding()
        self.binding.bind_ortvalue_input(names[0], self.images)
        self.binding.bind_ortvalue_output(names[1], self.scores)

    def run(self, images: np.ndarray) -> np.ndarray:
        self.images.update_inplace(images)
        self.session.run_with_iobinding(self.binding)
        return np.asarray(self.scores.numpy())


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
