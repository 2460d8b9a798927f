"""A model without our metadata: what the user says of it, and whether it fits the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnxruntime

from serve.model_info import MAX_SIZE, PREFIX, ModelInfo
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
    labels: str | None, size: int | None, normalise: Normalise | None, outputs: Outputs | None
) -> Foreign | None:
    """labels: joined by commas. None when nothing is said; UserError when only half is."""
    if (labels, size, normalise, outputs) == (None, None, None, None):
        return None
    if labels is None or size is None:
        raise UserError(
            "--labels and --size go together, and --normalise and --outputs need them: they are "
            "for a model without metadata; leave all out for one of python -m serve export"
        )
    names = tuple(name.strip() for name in labels.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"--labels {labels!r}; allowed: different names joined by commas")
    if not 1 <= size <= MAX_SIZE:
        raise UserError(f"--size {size}; allowed: 1 to {MAX_SIZE} pixels")
    return Foreign(names, size, normalise or "imagenet", outputs or "probabilities")


def check_foreign(
    session: onnxruntime.InferenceSession, model: str, foreign: Foreign
) -> tuple[str, str, int | None, tuple[int, int, int], np.dtype]:
    """(input, output, the only batch it takes, shape and dtype of an image for it) of a model that
    takes grey or RGB images. UserError when it does not fit what is said of it."""
    if any(key.startswith(PREFIX) for key in session.get_modelmeta().custom_metadata_map):
        raise UserError(
            f"{model} says its labels and size itself; leave out --labels, --size, --normalise and "
            "--outputs"
        )
    inputs, output, size = session.get_inputs(), session.get_outputs()[0], foreign.size
    if len(inputs) != 1 or not _takes_images(inputs[0], size):
        found = ", ".join(f"{n.name} {n.type} {n.shape}" for n in inputs) or "none"
        raise UserError(
            f"{model}: expected one input (N, 1 or 3, {size}, {size}) of uint8 or floats, "
            f"found {found}"
        )
    node, shape = inputs[0], inputs[0].shape
    if output.type != "tensor(float)" or len(output.shape) != 2:
        raise UserError(f"{model}: its first output is {output.type} {output.shape}, not (N, L)")
    if isinstance(output.shape[1], int) and output.shape[1] != len(foreign.labels):
        raise UserError(
            f"{model} has {output.shape[1]} outputs, --labels names {len(foreign.labels)}"
        )
    if node.type == "tensor(uint8)" and foreign.normalise != "none":
        raise UserError(f"{model} takes uint8 images; add --normalise none")
    if shape[1] == 1 and foreign.normalise == "imagenet":
        raise UserError(
            f"{model} takes images of one channel, and --normalise imagenet (the default) makes "
            "three; say --normalise 0-1, xrv or none"
        )
    dtype = np.dtype(_FLOATS.get(node.type, np.uint8))
    only_batch = shape[0] if isinstance(shape[0], int) else None
    return node.name, output.name, only_batch, (shape[1], size, size), dtype


def _takes_images(node: onnxruntime.NodeArg, size: int) -> bool:
    shape = node.shape
    fits = len(shape) == 4 and shape[1] in (1, 3)
    fits = fits and all(n == size or not isinstance(n, int) for n in shape[2:])
    return fits and (node.type == "tensor(uint8)" or node.type in _FLOATS)


def foreign_info(foreign: Foreign, model: str, outputs: Sequence[str]) -> ModelInfo:
    """What scoring needs to know of the model, as said by the user; says it aloud. outputs: their
    names, of which the first is taken."""
    others = f", not {', '.join(outputs[1:])}" if len(outputs) > 1 else ""
    warn(
        f"{model} says nothing of itself; taken as you say: labels {', '.join(foreign.labels)}; "
        f"whole images resized to {foreign.size} pixels, normalised as {foreign.normalise}; its "
        f"first output, {outputs[0]}{others}, as {foreign.outputs}"
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


def normalised(images: np.ndarray, normalise: Normalise) -> np.ndarray:
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


def as_probabilities(found: np.ndarray, outputs: Outputs) -> np.ndarray:
    """(N, L) outputs -> probabilities. RunFailed when they are said to be some and are not."""
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
