"""A model that scores batches of one fixed size, through buffers that it is bound to once.

On the CPU the buffers are its own; on a GPU the input has a place in the GPU's memory. A model
without our metadata is used with what the user says of it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from serve.model_info import INPUT_NAME, MAX_SIZE, PREFIX, PROBABILITIES_NAME, ModelInfo
from serve.providers import provider_of, read_model_info
from shards import preprocess
from shards.console import RunFailed, UserError, warn

Normalise = Literal["imagenet", "0-1", "xrv", "none"]
Outputs = Literal["probabilities", "sigmoid", "softmax"]
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Foreign:
    """What the user says of a model without our metadata."""

    labels: tuple[str, ...]
    size: int
    normalise: Normalise
    outputs: Outputs


def foreign_of(
    labels: str | None, size: int | None, normalise: Normalise, outputs: Outputs
) -> Foreign | None:
    """labels: joined by commas. None when nothing is said; UserError when only half is."""
    if labels is None and size is None:
        return None
    if labels is None or size is None:
        raise UserError("--labels and --size go together: a model without metadata needs both")
    names = tuple(name.strip() for name in labels.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"--labels {labels!r}; allowed: different names joined by commas")
    if not 1 <= size <= MAX_SIZE:
        raise UserError(f"--size {size}; allowed: 1 to {MAX_SIZE} pixels")
    return Foreign(names, size, normalise, outputs)


class Network:
    """session: of a model of ours, or with `foreign` of any other."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        model: str,
        batch: int,
        foreign: Foreign | None = None,
        device: int = 0,
    ) -> None:
        """model: its name in messages. UserError when it is not what is said of it."""
        self.session, self.batch, self.foreign = session, batch, foreign
        self.provider = provider_of(session)
        if foreign is None:
            self.info = read_model_info(session, model)
            self._input, self._output = INPUT_NAME, PROBABILITIES_NAME
            shape, dtype = (batch, 1, self.info.size, self.info.size), np.dtype(np.uint8)
        else:
            self._input, self._output, shape, dtype = _check_foreign(session, model, batch, foreign)
            self.info = _foreign_info(foreign, model)
        self._images = np.zeros(shape, dtype)
        self._scores = np.zeros((batch, len(self.info.labels)), np.float32)
        self._binding = session.io_binding()
        self._on_gpu: Any = None
        if self.provider == "cpu":
            pointer = self._images.ctypes.data
            self._binding.bind_input(self._input, "cpu", 0, dtype.type, shape, pointer)
        else:
            self._on_gpu = onnxruntime.OrtValue.ortvalue_from_numpy(self._images, "cuda", device)
            self._binding.bind_ortvalue_input(self._input, self._on_gpu)
        target, place = self._scores.shape, self._scores.ctypes.data
        self._binding.bind_output(self._output, "cpu", 0, np.float32, target, place)

    def score(self, images: list[np.ndarray]) -> np.ndarray:
        """At most `batch` images (S, S) uint8 -> (N, L) float32. RunFailed when it does not run."""
        stacked = np.stack(images)[:, None]
        values = stacked if self.foreign is None else _normalised(stacked, self.foreign.normalise)
        self._images[: len(images)] = values
        self._images[len(images) :] = 0
        try:
            if self._on_gpu is not None:
                self._on_gpu.update_inplace(self._images)
            self.session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise RunFailed(f"the network does not run: {' '.join(str(error).split())}") from error
        found = self._scores[: len(images)].copy()
        return found if self.foreign is None else _as_probabilities(found, self.foreign.outputs)


def _check_foreign(
    session: onnxruntime.InferenceSession, model: str, batch: int, foreign: Foreign
) -> tuple[str, str, tuple[int, int, int, int], np.dtype]:
    """(input, output, shape and dtype of the input) of a model that takes grey or RGB images."""
    if any(key.startswith(PREFIX) for key in session.get_modelmeta().custom_metadata_map):
        raise UserError(f"{model} says its labels and size itself; leave out --labels and --size")
    inputs, output = session.get_inputs(), session.get_outputs()[0]
    node, size = inputs[0], foreign.size
    shape = node.shape
    fits = len(shape) == 4 and shape[1] in (1, 3)
    fits = fits and all(n == size or not isinstance(n, int) for n in shape[2:])
    known = node.type == "tensor(uint8)" or node.type in _FLOATS
    if len(inputs) != 1 or not fits or not known:
        found = ", ".join(f"{n.name} {n.type} {n.shape}" for n in inputs)
        raise UserError(
            f"{model}: expected one input (N, 1 or 3, {size}, {size}) of uint8 or floats, "
            f"found {found}"
        )
    if isinstance(shape[0], int) and shape[0] != batch:
        raise UserError(f"{model} takes batches of {shape[0]}; add --batch {shape[0]}")
    if output.type != "tensor(float)" or len(output.shape) != 2:
        raise UserError(f"{model}: its first output is {output.type} {output.shape}, not (N, L)")
    if isinstance(output.shape[1], int) and output.shape[1] != len(foreign.labels):
        raise UserError(
            f"{model} has {output.shape[1]} outputs, --labels names {len(foreign.labels)}"
        )
    if node.type == "tensor(uint8)" and foreign.normalise != "none":
        raise UserError(f"{model} takes uint8 images; add --normalise none")
    dtype = np.dtype(_FLOATS.get(node.type, np.uint8))
    return node.name, output.name, (batch, shape[1], size, size), dtype


def _foreign_info(foreign: Foreign, model: str) -> ModelInfo:
    warn(
        f"{model} says nothing of itself; taken as you say: labels {', '.join(foreign.labels)}; "
        f"whole images resized to {foreign.size} pixels, normalised as {foreign.normalise}; its "
        f"first output as {foreign.outputs}"
    )
    return ModelInfo(
        architecture="unknown",
        labels=foreign.labels,
        exclusive=foreign.outputs == "softmax",
        size=foreign.size,
        shorter_side=None,
        preprocessing_version=preprocess.VERSION,
        dataset="unknown",
        manifest_hash="",
        recipe="unknown",
        stage="",
        synthetic=False,
        weights_sha256="",
        run="",
        licence="unknown",
        intended_use="unknown",
        created_by="unknown",
        output="softmax" if foreign.outputs == "softmax" else "sigmoid",
    )


def _normalised(images: np.ndarray, normalise: Normalise) -> np.ndarray:
    """(N, 1, S, S) uint8 -> (N, 1 or 3, S, S)."""
    if normalise == "none":
        return images
    values = images.astype(np.float32) / 255
    if normalise == "imagenet":
        mean, std = (
            np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (preprocess.MEAN, preprocess.STD)
        )
        return (values - mean) / std
    return values if normalise == "0-1" else values * 2048 - 1024  # torchxrayvision's range


def _as_probabilities(found: np.ndarray, outputs: Outputs) -> np.ndarray:
    if outputs == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(found, -80, 80))), np.float32)
    if outputs == "softmax":
        powers = np.exp(found - found.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)
    known = found[np.isfinite(found)]
    if known.size and not (known.min() >= 0 and known.max() <= 1):
        raise RunFailed(
            f"the network's outputs are no probabilities ({known.min():.3g} to {known.max():.3g}); "
            "say --outputs sigmoid or --outputs softmax"
        )
    return found


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
