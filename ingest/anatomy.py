"""The shape of one synthetic patient's chest: curves in the unit square, x to the right, y down.

A curve is (N, 2) float64; (0, 0) is the upper left corner of the film, and points may lie
outside it. `side` is -1 for the lung at the image's left (the patient's right), +1 for the other.
Lengths named `u` are distances from the midline.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

SIDES: Final = (-1, 1)
# Control points of a lung at the reference size: outer wall and inner border, apex to base.
_WALL_U: Final = np.array([0.115, 0.190, 0.245, 0.290, 0.322, 0.343, 0.352])
_WALL_V: Final = np.array([0.000, 0.030, 0.110, 0.270, 0.480, 0.750, 1.120])
_INNER_U: Final = np.array([0.090, 0.062, 0.052, 0.060, 0.075, 0.080])
_INNER_V: Final = np.array([0.005, 0.060, 0.250, 0.550, 0.800, 1.020])


@dataclass(frozen=True)
class Anatomy:
    """What differs between patients; pairs are (image's left, image's right)."""

    midline: float  # x
    apex: float  # y of the top of the lungs
    dome: tuple[float, float]  # y of the top of each half of the diaphragm
    chest: float  # factor on the width of the lungs
    heart: float  # factor on the width of the heart
    angle: float  # depth of the costophrenic angles below the domes
    body: float  # distance from the lungs' outer wall to the skin
    shoulder: float  # y of the shoulders' slope at the neck
    rib_gap: float  # factor on the distance between ribs
    rib_slope: float  # fall of a posterior rib from the spine to the wall

    def lung_height(self, side: int) -> float:
        """From apex to the top of the dome."""
        return self.dome[(side + 1) // 2] - self.apex

    def inside(self, side: int, across: float, down: float) -> tuple[float, float]:
        """A point (x, y) in a lung; `across` 0 inner border to 1 wall, `down` 0 apex to 1 dome."""
        inner = np.interp(down, _INNER_V, _INNER_U)
        wall = np.interp(down, _WALL_V, _WALL_U)
        u = (inner + across * (wall - inner)) * self.chest
        return self.midline + side * float(u), self.apex + down * self.lung_height(side)

    def place(self, side: int, u: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distances from the midline and heights -> a curve."""
        return np.column_stack([self.midline + side * u, y])


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """An adult of average build, give or take."""
    apex = rng.uniform(0.08, 0.15)
    right_dome = apex + rng.uniform(0.54, 0.66)
    return Anatomy(
        midline=rng.uniform(0.485, 0.515),
        apex=apex,
        dome=(right_dome, right_dome + rng.uniform(0.005, 0.035)),
        chest=rng.uniform(0.93, 1.14),
        heart=rng.uniform(0.84, 1.08),
        angle=rng.uniform(0.07, 0.12),
        body=rng.uniform(0.06, 0.20),
        shoulder=rng.uniform(-0.03, 0.08),
        rib_gap=rng.uniform(0.92, 1.06),
        rib_slope=rng.uniform(0.06, 0.14),
    )


def reshape(anatomy: Anatomy, findings: frozenset[str], rng: np.random.Generator) -> Anatomy:
    """The anatomy as the findings that move borders leave it: heart, diaphragm, chest."""
    heart, angle, dome = anatomy.heart, anatomy.angle, np.array(anatomy.dome)
    if "Cardiomegaly" in findings:
        heart = rng.uniform(1.45, 1.75)
    if "Emphysema" in findings:
        dome += rng.uniform(0.06, 0.09)
        angle *= 0.35
        heart *= 0.8
    if "Fibrosis" in findings:
        dome -= rng.uniform(0.04, 0.08)
    if "Atelectasis" in findings:
        dome[rng.integers(2)] -= rng.uniform(0.09, 0.14)
    return replace(anatomy, heart=heart, angle=angle, dome=(float(dome[0]), float(dome[1])))


def curve(points: np.ndarray, steps: int = 8) -> np.ndarray:
    """Catmull-Rom spline through (N, 2) points -> ((N - 1) * steps + 1, 2)."""
    ends = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (ends[i : len(ends) - 3 + i, None, :] for i in range(4))
    cubic = 3 * (p1 - p2) + p3 - p0
    spline = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * cubic))
    return np.vstack([spline.reshape(-1, 2), points[-1]])


def wall(anatomy: Anatomy, side: int) -> np.ndarray:
    """The outer wall of one lung, apex to costophrenic angle."""
    height = anatomy.lung_height(side)
    down = _WALL_V.copy()
    down[-1] = 1 + anatomy.angle / height
    return curve(anatomy.place(side, _WALL_U * anatomy.chest, anatomy.apex + down * height))


def dome(anatomy: Anatomy, side: int) -> np.ndarray:
    """Half of the diaphragm, from the costophrenic angle to the midline's side."""
    top = anatomy.dome[(side + 1) // 2]
    angle_u = _WALL_U[-1] * anatomy.chest
    u = np.array([1.0, 0.90, 0.72, 0.52, 0.34, 0.20]) * angle_u
    fall = np.array([1.0, 0.55, 0.13, 0.0, 0.10, 0.28]) * anatomy.angle
    return curve(anatomy.place(side, u, top + fall))


def lung(anatomy: Anatomy, side: int) -> np.ndarray:
    """The closed outline of one lung; the heart is not cut out."""
    height = anatomy.lung_height(side)
    inner = anatomy.place(side, _INNER_U * anatomy.chest, anatomy.apex + _INNER_V * height)
    return np.vstack([wall(anatomy, side), dome(anatomy, side), curve(inner)[::-1]])


def heart(anatomy: Anatomy) -> np.ndarray:
    """Heart, great vessels and upper mediastinum as one closed outline."""
    a, size = anatomy, anatomy.heart
    bottom = max(a.dome) + 0.03
    height = bottom - a.apex
    right_u = np.array([0.045, 0.050, 0.046, 0.058, 0.088, 0.100, 0.070])
    right_v = np.array([-0.1, 0.18, 0.38, 0.52, 0.68, 0.84, 1.0])
    left_u = np.array([0.120, 0.215, 0.218, 0.165, 0.110, 0.078, 0.062, 0.078, 0.062, 0.045])
    left_v = np.array([1.06, 0.99, 0.91, 0.74, 0.60, 0.48, 0.40, 0.30, 0.21, -0.1])
    # Only the heart grows: the great vessels above keep their width.
    right_u = right_u * (1 + (size - 1) * np.clip((right_v - 0.4) / 0.25, 0, 1))
    left_u = left_u * (1 + (size - 1) * np.clip((left_v - 0.4) / 0.25, 0, 1))
    left_u = np.minimum(left_u, [0.27, 0.32, 0.31, 1, 1, 1, 1, 1, 1, 1])  # within the chest
    right = a.place(-1, right_u, a.apex + right_v * height)
    left = a.place(1, left_u, a.apex + left_v * height)
    return curve(np.vstack([right, left]))


def torso(anatomy: Anatomy) -> np.ndarray:
    """Neck, shoulders and trunk as one closed outline that runs out of the film below."""
    a = anatomy
    skin = _WALL_U[-1] * a.chest + a.body
    u = np.array([0.13, 0.125, 0.16, 0.30, 0.44, 0.52, 0.54, skin + 0.05, skin, skin, skin + 0.03])
    y = np.array([-0.3, -0.05, 0.03, 0.08, 0.13, 0.20, 0.28, 0.42, 0.55, 0.80, 1.3])
    y = y + a.shoulder * ((y > -0.2) & (y < 0.5))
    half = curve(np.column_stack([u, y]))
    right = a.place(1, half[:, 0], half[:, 1])
    left = a.place(-1, half[:, 0], half[:, 1])
    return np.vstack([right, left[::-1]])


def arm(anatomy: Anatomy, side: int) -> np.ndarray:
    """The upper arm beside the trunk, closed."""
    skin = _WALL_U[-1] * anatomy.chest + anatomy.body
    u = np.array([0.40, 0.53, 0.66, 0.80, 0.60, skin + 0.09, skin + 0.04, 0.40])
    y = np.array([0.22, 0.24, 0.38, 1.20, 1.20, 0.70, 0.45, 0.30]) + anatomy.shoulder
    return anatomy.place(side, u, y)


def _wall_u(anatomy: Anatomy, down: np.ndarray | float) -> np.ndarray:
    return np.interp(down, _WALL_V, _WALL_U) * anatomy.chest + 0.006


def rib(anatomy: Anatomy, side: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre lines of one rib: (posterior from the spine to the wall, anterior from there on)."""
    gap = 0.066 * anatomy.rib_gap * (0.72 + 0.045 * number)
    start = anatomy.apex - 0.012 + number * gap
    fall = anatomy.rib_slope + 0.008 * number
    height = anatomy.lung_height(side)
    end_u = float(_wall_u(anatomy, (start + fall - anatomy.apex) / height))
    t = np.linspace(0, 1, 14)
    back_u = 0.035 + (end_u - 0.035) * np.sin(t * np.pi / 2)
    back_y = start + fall * t**2.4 - 0.022 * np.sin(np.pi * t)
    front_fall = 0.035 + 0.012 * number
    front_u = end_u - (end_u - 0.13) * (1 - np.cos(t * np.pi / 2)) ** 0.8
    front_y = start + fall + front_fall * np.sin(t * np.pi / 2) + 0.02 * t**2
    return anatomy.place(side, back_u, back_y), anatomy.place(side, front_u, front_y)


def clavicle(anatomy: Anatomy, side: int) -> np.ndarray:
    """Centre line of one collar bone, breast bone to shoulder."""
    u = np.array([0.035, 0.10, 0.19, 0.29, 0.38, 0.44])
    y = np.array([0.085, 0.072, 0.052, 0.018, 0.000, 0.012]) + anatomy.apex
    return curve(anatomy.place(side, u * anatomy.chest, y))


def scapula(anatomy: Anatomy, side: int) -> np.ndarray:
    """The shoulder blade beside and over the outer upper lung, closed."""
    u = np.array([0.43, 0.33, 0.285, 0.325, 0.375, 0.405, 0.43])
    y = np.array([0.04, 0.05, 0.16, 0.30, 0.39, 0.22, 0.04]) + anatomy.apex
    return anatomy.place(side, u * anatomy.chest, y)


def shoulder(anatomy: Anatomy, side: int) -> tuple[float, float]:
    """Centre of the head of the upper arm's bone."""
    return anatomy.midline + side * 0.46 * anatomy.chest, anatomy.apex + 0.055


def band(centre: np.ndarray, width: float) -> np.ndarray:
    """A closed outline `width` wide around a centre line."""
    along = np.gradient(centre, axis=0)
    across = np.column_stack([-along[:, 1], along[:, 0]])
    across *= width / 2 / np.linalg.norm(across, axis=1, keepdims=True)
    return np.vstack([centre + across, (centre - across)[::-1]])
