"""Maps as pictures: JET or blue-white-red colours, laid over the grey image, and strips."""

import cv2
import numpy as np

HEAT_WEIGHT = 0.5  # the DD2424 project lays JET over the image at half weight
# A signed map's colours end at this quantile of |values|: single pixels would leave the rest pale.
_SIGNED_QUANTILE = 0.995


def colour(heat: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """(S, S) float -> (S, S, 3) uint8 RGB.

    Of values in [0, 1], JET: blue is 0, red is 1. signed: white is 0, red is above, blue below.
    """
    if signed:
        return _blue_white_red(_to_unit(heat))
    levels = np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)


def overlay(image: np.ndarray, heat: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """image: (S, S) uint8 grey -> (S, S, 3) uint8 RGB: JET at half weight over it; of a signed
    map red and blue as dense as its values, so that the image shows where the map says nothing."""
    grey = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if not signed:
        return cv2.addWeighted(colour(heat), HEAT_WEIGHT, grey, 1 - HEAT_WEIGHT, 0)
    values = _to_unit(heat)
    density = (np.abs(values) * (1 - HEAT_WEIGHT / 2))[..., None]
    pure = np.where(values[..., None] > 0, (255.0, 0, 0), (0, 0, 255.0))
    return np.rint(grey * (1 - density) + pure * density).astype(np.uint8)


def strip(image: np.ndarray, heat: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """(S, 3 S, 3) uint8 RGB: the image, the map, and one over the other."""
    grey = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return np.hstack([grey, colour(heat, signed=signed), overlay(image, heat, signed=signed)])


def encode(picture: np.ndarray, extension: str) -> bytes:
    """(H, W, 3) uint8 RGB -> bytes. extension: `.png`, or `.jpg` where small counts."""
    done, data = cv2.imencode(extension, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"no picture of shape {picture.shape} as {extension}")
    return data.tobytes()


def _to_unit(heat: np.ndarray) -> np.ndarray:
    """Signed values -> [-1, 1]; 0 stays 0."""
    largest = float(np.quantile(np.abs(heat), _SIGNED_QUANTILE)) or float(np.abs(heat).max())
    return np.clip(heat / largest, -1, 1) if largest > 0 else np.zeros_like(heat)


def _blue_white_red(values: np.ndarray) -> np.ndarray:
    fade = 255 * (1 - np.abs(values))
    full = np.full_like(fade, 255)
    red, blue = np.where(values >= 0, full, fade), np.where(values <= 0, full, fade)
    return np.rint(np.stack([red, fade, blue], axis=-1)).astype(np.uint8)
