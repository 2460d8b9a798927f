"""Heat maps as pictures: JET colours, laid over the grey image, and strips of all three."""

import cv2
import numpy as np

HEAT_WEIGHT = 0.5  # the DD2424 project lays JET over the image at half weight


def colour(heat: np.ndarray) -> np.ndarray:
    """(S, S) float in [0, 1] -> (S, S, 3) uint8 RGB: blue is 0, red is 1."""
    levels = np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """image: (S, S) uint8 grey; heat: (S, S) float in [0, 1] -> (S, S, 3) uint8 RGB."""
    grey = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(colour(heat), HEAT_WEIGHT, grey, 1 - HEAT_WEIGHT, 0)


def strip(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """(S, 3 S, 3) uint8 RGB: the image, the heat map, and one over the other."""
    grey = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return np.hstack([grey, colour(heat), overlay(image, heat)])


def encode(picture: np.ndarray, extension: str) -> bytes:
    """(H, W, 3) uint8 RGB -> bytes. extension: `.png`, or `.jpg` where small counts."""
    done, data = cv2.imencode(extension, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"no picture of shape {picture.shape} as {extension}")
    return data.tobytes()
