"""Batches of affine maps of the plane: (K, 3, 3) float64, input pixel -> output pixel.

Pixel centres are at whole numbers, x points right, y down. In numpy, since the whole step's maps
are one call of a few microseconds per copy and need no tensor; the tests hold them against
Kornia's builders, which are the reference.
"""

import numpy as np


def rotation(degrees: np.ndarray) -> np.ndarray:
    """Counter-clockwise as one looks at the picture, about the origin."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return linear(cos, sin, -sin, cos)


def shear(degrees: np.ndarray) -> np.ndarray:
    """x moves by tan(degrees) for each pixel of y."""
    one, none = np.ones(len(degrees)), np.zeros(len(degrees))
    return linear(one, np.tan(np.deg2rad(degrees)), none, one)


def scaling(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Larger by these factors."""
    none = np.zeros(len(x))
    return linear(x, none, none, y)


def linear(xx: np.ndarray, xy: np.ndarray, yx: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """The map x' = xx x + xy y, y' = yx x + yy y; (K,) each."""
    maps = np.zeros((len(xx), 3, 3))
    maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1] = xx, xy, yx, yy
    maps[:, 2, 2] = 1.0
    return maps


def translation(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """To the right and down, in pixels."""
    maps = np.tile(np.eye(3), (len(dx), 1, 1))
    maps[:, 0, 2], maps[:, 1, 2] = dx, dy
    return maps


def mirror(mirrored: np.ndarray, size: int) -> np.ndarray:
    """Left and right change places where `mirrored` (K,) bool says so."""
    maps = np.tile(np.eye(3), (len(mirrored), 1, 1))
    maps[mirrored, 0, 0], maps[mirrored, 0, 2] = -1.0, size - 1
    return maps


def crop(box: np.ndarray, size: int) -> np.ndarray:
    """The part `box` (K, 4) of the image (left, top, width, height, as shares of the side) becomes
    the whole image. Pixels are squares here: their edges, not their centres, meet the box."""
    left, top, width, height = box.T
    moved = translation(0.5 - left * size, 0.5 - top * size)
    back = np.full(len(box), -0.5)
    return then(moved, scaling(1 / width, 1 / height), translation(back, back))


def about(maps: np.ndarray, centre: float) -> np.ndarray:
    """The same linear maps about the point (centre, centre)."""
    moved = maps.copy()
    moved[:, :2, 2] += centre - maps[:, :2, :2].sum(axis=2) * centre
    return moved


def then(*maps: np.ndarray) -> np.ndarray:
    """One map after another, in the order given, as one map."""
    composed = maps[0]
    for following in maps[1:]:
        composed = following @ composed
    return composed


def inverse(maps: np.ndarray) -> np.ndarray:
    """(K, 2, 3) float32, output pixel -> input pixel: what a warp takes."""
    (a, b, tx), (c, d, ty) = np.moveaxis(maps[:, :2], 0, 2)
    determinant = a * d - b * c
    inverted = np.empty((len(maps), 2, 3), np.float32)
    inverted[:, 0, 0], inverted[:, 0, 1] = d / determinant, -b / determinant
    inverted[:, 1, 0], inverted[:, 1, 1] = -c / determinant, a / determinant
    inverted[:, 0, 2] = (b * ty - d * tx) / determinant
    inverted[:, 1, 2] = (c * tx - a * ty) / determinant
    return inverted
