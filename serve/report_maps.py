"""Heat maps for the report: those that `serve explain` wrote, and how any map becomes a layer.

A layer lies over the image in the page, so that a reader can fade it: colours as in
`serve.explain.overlay`, transparent where a signed map says nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from serve.explain.overlay import colour
from shards.console import UserError

NAME = "explanations.json"
SIGNED = ("lrp", "occlusion-drop")  # as serve.explain.methods, which needs torch
_MAP_QUALITY, _IMAGE_QUALITY = 60, 85  # of WebP: about 8 KB each at 224 pixels
_SIGNED_QUANTILE = 0.995
# WebP keeps densities without loss: 8 steps of a rough map take a third of the bytes of 256.
_STEPS = 8
_MOST_MAPS = 4  # of one image
_MOST_BYTES = 4 * 2**20  # a map of 1024 pixels; ours have 224 to 299


@dataclass(frozen=True)
class Layer:
    """A map of one method for one label, as WebP."""

    method: str
    label: str
    signed: bool
    webp: bytes


@dataclass(frozen=True)
class StoredMap:
    """Where serve explain left a map (S, S) float32."""

    method: str
    label: str
    path: Path


def stored_maps(folder: Path, weights: str) -> dict[str, list[StoredMap]]:
    """key -> its maps. UserError when the folder has none of the network with these weights."""
    path = folder / NAME
    try:
        content = json.loads(path.read_bytes())
        found: dict[str, list[StoredMap]] = {}
        for item in content["items"]:
            stored = StoredMap(item["method"], item["label"], folder / Path(item["map"]).name)
            found.setdefault(item["key"], []).append(stored)
        other = content["weights_sha256"] != weights
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); make it again") from error
    if other:
        raise UserError(
            f"{path} is of another network than the run's last stage; explain again, or name "
            "another folder with --explain"
        )
    return {key: maps[:_MOST_MAPS] for key, maps in found.items()}


def load_layer(stored: StoredMap, size: int) -> Layer:
    """UserError when the file is no map of (size, size)."""
    try:
        if stored.path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"over {_MOST_BYTES} bytes")
        heat = np.load(stored.path, allow_pickle=False)
        if heat.dtype != np.float32:
            raise ValueError(f"values of type {heat.dtype}")
        if heat.shape != (size, size) or not np.isfinite(heat).all():
            raise ValueError(f"no finite map of {size} by {size}")
    except (OSError, ValueError) as error:
        raise UserError(f"{stored.path} cannot be used ({error}); explain again") from error
    return to_layer(stored.method, stored.label, heat)


def to_layer(method: str, label: str, heat: np.ndarray) -> Layer:
    """heat: (S, S) float32."""
    signed = method in SIGNED
    return Layer(method, label, signed, _webp(_signed(heat) if signed else _plain(heat)))


def _plain(heat: np.ndarray) -> np.ndarray:
    """JET at half the side, (S/2, S/2, 3) BGR: these maps are smooth."""
    half = max(1, heat.shape[0] // 2)
    small = cv2.resize(heat, (half, half), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(colour(small), cv2.COLOR_RGB2BGR)


def _signed(heat: np.ndarray) -> np.ndarray:
    """Red above and blue below 0, as dense as the values, in steps: (S, S, 4) BGRA."""
    size = np.abs(heat)
    largest = float(np.quantile(size, _SIGNED_QUANTILE)) or float(size.max()) or 1.0
    out = np.zeros((*heat.shape, 4), np.uint8)
    out[..., 2] = np.where(heat > 0, 255, 0)
    out[..., 0] = np.where(heat > 0, 0, 255)
    density = np.rint(np.clip(size / largest, 0, 1) * _STEPS)
    out[..., 3] = density * (255 / _STEPS)
    return out


def image_webp(image: np.ndarray) -> bytes:
    """(S, S) uint8 grey -> WebP."""
    return _webp(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), _IMAGE_QUALITY)


def _webp(pixels: np.ndarray, quality: int = _MAP_QUALITY) -> bytes:
    done, data = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not done:
        raise ValueError(f"no picture of shape {pixels.shape} as WebP")
    return data.tobytes()
