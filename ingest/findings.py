"""What each finding does to the air in the lungs of a synthetic radiograph.

`opacify(...)` -> `Opacity`: a low-resolution map of how much air is replaced, thin lines at full
resolution, and boxes around masses and nodules. Where a finding moves a border instead (heart,
diaphragm), `anatomy.reshape` does it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np

from ingest.anatomy import SIDES, Anatomy

CANVAS: Final = 320  # pixels per side on which outlines and lines are drawn
COARSE: Final = 80  # and on which soft shadows are computed: 16 times fewer pixels
MARGIN: Final = 0.07  # the canvas shows this much on each side of the unit square
_AXIS: Final = (np.arange(COARSE, dtype=np.float32) + 0.5) * ((1 + 2 * MARGIN) / COARSE) - MARGIN
_X, _Y = np.meshgrid(_AXIS, _AXIS)


def to_canvas(points: np.ndarray) -> np.ndarray:
    """Points of the unit square (N, 2) -> canvas pixels in cv2's 4-bit fixed point, int32."""
    return np.rint((points + MARGIN) * (CANVAS * 16 / (1 + 2 * MARGIN))).astype(np.int32)


@dataclass(frozen=True)
class Blob:
    """A round shadow to be boxed: centre and radius in the unit square."""

    finding: str
    x: float
    y: float
    radius: float


@dataclass
class Opacity:
    """What lies in the lungs of one patient."""

    anatomy: Anatomy
    rng: np.random.Generator
    haze: np.ndarray  # (COARSE, COARSE) float32, share of the air replaced; below 0: more air
    lines: np.ndarray  # (CANVAS, CANVAS) uint8, thin bright lines
    vessels: np.ndarray  # (COARSE, COARSE) float32, factor on the normal vessels
    solid: np.ndarray  # (COARSE, COARSE) float32, attenuation added, also behind the heart
    blobs: list[Blob] = field(default_factory=list)

    def cover(self, share: np.ndarray) -> None:
        """Replace a share of the air that is left."""
        self.haze = 1 - (1 - self.haze) * (1 - np.clip(share, 0, 0.97))

    def hump(self, x: float, y: float, rx: float, ry: float, power: float = 1.0) -> np.ndarray:
        """A soft bump of height 1; a higher power makes its top flat and its edge sharp."""
        squared = ((_X - x) / rx) ** 2 + ((_Y - y) / ry) ** 2
        return np.exp(-0.7 * squared**power)

    def cloud(self, cells: int, amount: float) -> np.ndarray:
        """Uneven texture around 1, `cells` lumps per side."""
        noise = self.rng.standard_normal((cells, cells), dtype=np.float32)
        smooth = cv2.resize(noise, (COARSE, COARSE), interpolation=cv2.INTER_CUBIC)
        return np.clip(1 + amount * smooth, 0.1, 2)

    def line(self, points: np.ndarray, brightness: float, thickness: float = 1) -> None:
        """Draw an open line through points of the unit square, (N, 2)."""
        grey, width = int(brightness), int(thickness)
        cv2.polylines(self.lines, [to_canvas(points)], False, grey, width, cv2.LINE_AA, 4)

    def side(self) -> int:
        """One of the two sides."""
        return SIDES[self.rng.integers(2)]

    def half(self, side: int) -> np.ndarray:
        """1 on one side of the midline, 0 on the other."""
        return (side * (_X - self.anatomy.midline) > 0).astype(np.float32)


def _step(distance: np.ndarray, width: float) -> np.ndarray:
    """0 where `distance` is well below 0, 1 well above; `width` is the edge's."""
    return 0.5 + 0.5 * np.tanh(distance / (2 * width))


def _pneumonia(o: Opacity) -> None:
    """Hazy and streaky around the hila, one side worse."""
    worse = o.side()
    for side in SIDES:
        strength = o.rng.uniform(0.65, 0.9) if side == worse else o.rng.uniform(0.35, 0.65)
        x, y = o.anatomy.inside(side, o.rng.uniform(0.15, 0.3), o.rng.uniform(0.5, 0.65))
        shape = o.hump(x, y, o.rng.uniform(0.10, 0.13), o.rng.uniform(0.17, 0.24), 1.4)
        o.cover(strength * shape * o.cloud(24, 0.3))
        for _ in range(12):
            angle = o.rng.uniform(-1.3, 1.3)
            begin = np.array([x, y + o.rng.uniform(-0.08, 0.08)])
            t = np.linspace(0, o.rng.uniform(0.05, 0.13), 6)[:, None]
            bend = o.rng.normal(0, 0.01, (6, 2))
            streak = begin + t * np.array([side * np.cos(angle), np.sin(angle)]) + bend
            o.line(streak, o.rng.uniform(60, 150), o.rng.uniform(1, 3))


def _covid(o: Opacity) -> None:
    """Several rounded ground-glass patches, both sides, outer and lower."""
    for side in SIDES:
        for down in np.linspace(0.42, 0.95, o.rng.integers(3, 5)):
            across, step = o.rng.uniform(0.68, 0.9), o.rng.uniform(-0.06, 0.06)
            x, y = o.anatomy.inside(side, across, float(down) + step)
            radius = o.rng.uniform(0.055, 0.085)
            shape = o.hump(x, y, radius, radius * o.rng.uniform(0.85, 1.2), 2)
            o.cover(o.rng.uniform(0.55, 0.85) * shape * o.cloud(20, 0.15))


def _atelectasis(o: Opacity) -> None:
    """Plates of collapsed lung above a raised diaphragm (`reshape` raises it)."""
    height = [o.anatomy.lung_height(side) for side in SIDES]
    side = SIDES[int(np.argmin(height))]
    for down in o.rng.uniform(0.7, 0.97, 3):
        x, y = o.anatomy.inside(side, 0.5, float(down))
        t = np.linspace(-1, 1, 6)
        plate = np.column_stack([x + 0.1 * t, y + 0.03 * side * t - 0.01 * t**2])
        o.line(plate, 200, o.rng.uniform(3, 6))
    x, y = o.anatomy.inside(side, 0.4, 0.98)
    o.cover(0.6 * o.hump(x, y, 0.15, 0.06, 1.5))


def _effusion(o: Opacity) -> None:
    """Fluid that fills the angle and climbs the wall."""
    a, sides = o.anatomy, SIDES if o.rng.random() < 0.3 else (o.side(),)
    for side in sides:
        down = o.rng.uniform(0.62, 0.88)
        level = a.apex + down * a.lung_height(side)
        u = side * (_X - a.midline)
        meniscus = level - 0.16 * np.clip((u - 0.2 * a.chest) / 0.14, 0, 1.3) ** 2
        o.cover(0.96 * o.half(side) * _step(_Y - meniscus, 0.012))


def _infiltration(o: Opacity) -> None:
    """An ill-defined uneven patch."""
    for _ in range(o.rng.integers(1, 3)):
        x, y = o.anatomy.inside(o.side(), o.rng.uniform(0.35, 0.7), o.rng.uniform(0.35, 0.85))
        shape = o.hump(x, y, o.rng.uniform(0.09, 0.13), o.rng.uniform(0.09, 0.15))
        o.cover(o.rng.uniform(0.45, 0.65) * shape * o.cloud(22, 0.5))


def _round(o: Opacity, finding: str, count: int, radius: tuple[float, float]) -> None:
    for _ in range(count):
        side, down = o.side(), o.rng.uniform(0.2, 0.9)
        # On the left the heart hides what lies low and near the midline.
        across = o.rng.uniform(0.62 if side > 0 and down > 0.5 else 0.35, 0.8)
        x, y = o.anatomy.inside(side, across, down)
        r = o.rng.uniform(*radius)
        o.cover(0.88 * o.hump(x, y, r, r, 3))
        o.blobs.append(Blob(finding, x, y, r * 1.05))


def _mass(o: Opacity) -> None:
    _round(o, "Mass", 1, (0.055, 0.085))


def _nodule(o: Opacity) -> None:
    _round(o, "Nodule", int(o.rng.integers(1, 4)), (0.022, 0.036))


def _pneumothorax(o: Opacity) -> None:
    """Air without vessels outside a shrunken lung with a visible edge."""
    a, side = o.anatomy, o.side()
    x, y = a.inside(side, 0.18, 0.62)
    rx, ry = 0.13 * o.rng.uniform(0.9, 1.15), 0.62 * a.lung_height(side)
    outside = np.clip((((_X - x) / rx) ** 2 + ((_Y - y) / ry) ** 2 - 1) * 6, 0, 1) * o.half(side)
    o.vessels = o.vessels * (1 - outside)
    o.haze = o.haze - 0.42 * outside + 0.22 * (1 - outside) * o.half(side)
    t = np.linspace(-0.5, 0.35, 24) * np.pi
    edge = np.column_stack([x + side * rx * np.cos(t), y + ry * np.sin(t)])
    o.line(edge, 150, 1)


def _consolidation(o: Opacity) -> None:
    """A lobe filled: dense, with one straight border and air-filled bronchi."""
    a, side = o.anatomy, o.side()
    lower = o.rng.random() < 0.6
    x, y = a.inside(side, 0.5, 0.8 if lower else 0.22)
    fissure = y + (-0.09 if lower else 0.09) + 0.15 * side * (_X - x)
    beyond = _step(_Y - fissure if lower else fissure - _Y, 0.008)
    o.cover(0.88 * o.hump(x, y, 0.17, 0.15, 3) * beyond * o.cloud(14, 0.12))


def _edema(o: Opacity) -> None:
    """Bat wings: both sides alike, fading outwards, with short lines at the lower wall."""
    strength = o.rng.uniform(0.5, 0.65)
    for side in SIDES:
        x, y = o.anatomy.inside(side, 0.3, 0.55)
        o.cover(strength * o.hump(x, y, 0.17, 0.27) * o.cloud(26, 0.25))
        for down in np.linspace(0.6, 1.0, 9):
            start = np.array(o.anatomy.inside(side, 0.86, float(down)))
            o.line(np.vstack([start, start + np.array([side * 0.035, 0.004])]), 190)


def _emphysema(o: Opacity) -> None:
    """More air, fewer vessels (`reshape` flattens the diaphragm)."""
    o.haze = o.haze - 0.28
    o.vessels = o.vessels * 0.45


def _fibrosis(o: Opacity) -> None:
    """A net of lines, outer and lower."""
    for side in SIDES:
        x, y = o.anatomy.inside(side, 0.75, 0.85)
        o.cover(0.35 * o.hump(x, y, 0.14, 0.22) * o.cloud(30, 0.5))
        for _ in range(110):
            down = 1.05 * o.rng.random() ** 0.45
            start = np.array(o.anatomy.inside(side, o.rng.random() ** 0.5, down))
            steps = np.cumsum(o.rng.normal(0, 0.009, (5, 2)), axis=0)
            o.line(start + steps, o.rng.uniform(110, 220))


def _pleural_thickening(o: Opacity) -> None:
    """A pale rim inside the wall and a cap on the apex."""
    sides = SIDES if o.rng.random() < 0.4 else (o.side(),)
    for side in sides:
        rim = np.array([o.anatomy.inside(side, 0.95, v) for v in np.linspace(0.05, 1.05, 14)])
        rim[:, 0] -= side * 0.006 * (1 + o.rng.random(14))
        o.line(rim, 255, o.rng.uniform(12, 18))
        x, y = o.anatomy.inside(side, 0.5, 0.03)
        o.cover(0.85 * o.hump(x, y, 0.10, 0.05, 2))


def _hernia(o: Opacity) -> None:
    """A round shadow behind the heart with air over a fluid level."""
    a = o.anatomy
    x, y = a.midline + o.rng.uniform(0.0, 0.06), max(a.dome) - 0.07
    radius = o.rng.uniform(0.085, 0.115)
    above = _step(y - 0.01 - _Y, 0.006)
    o.solid = o.solid + 0.16 * o.hump(x, y, radius, radius * 0.9, 4)
    o.solid = o.solid - 0.5 * above * o.hump(x, y, radius * 0.8, radius * 0.72, 4)


EFFECTS: Final[dict[str, Callable[[Opacity], None]]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": lambda o: None,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Viral Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Emphysema": _emphysema,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _pleural_thickening,
    "Hernia": _hernia,
    "COVID-19": _covid,
}
HEALTHY: Final = frozenset({"No Finding", "Normal"})


def opacify(findings: frozenset[str], anatomy: Anatomy, rng: np.random.Generator) -> Opacity:
    """What the findings leave in the lungs. ValueError: a name that is not in EFFECTS."""
    unknown = sorted(findings - EFFECTS.keys() - HEALTHY)
    if unknown:
        raise ValueError(f"no finding {unknown[0]!r}; there are: {', '.join(EFFECTS)}")
    nothing = np.zeros((COARSE, COARSE), np.float32)
    lines = np.zeros((CANVAS, CANVAS), np.uint8)
    opacity = Opacity(anatomy, rng, nothing, lines, nothing + 1, nothing)
    for finding in EFFECTS:  # in this order, whatever the set's
        if finding in findings:
            EFFECTS[finding](opacity)
    return opacity
