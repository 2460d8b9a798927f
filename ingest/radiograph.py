"""One synthetic chest radiograph: `draw(seed, findings)` -> (size, size) uint8, grey.

A picture is a sum of attenuations (body, air, bones, vessels), posed, exposed and given film
noise. Anatomy, findings and film each have their own random numbers, so that a finding changes
the lungs and nothing else: no exposure, noise, marker or border tells a class. About 10 ms each.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from ingest import anatomy as shape
from ingest.anatomy import SIDES, Anatomy
from ingest.findings import CANVAS, MARGIN, Opacity, opacify, to_canvas

_ANATOMY, _FINDINGS, _FILM, _DETAIL = range(4)  # streams of random numbers of one seed


@dataclass(frozen=True)
class Box:
    """Around one shadow, in pixels of the drawn image: upper left corner, width, height."""

    finding: str
    x: float
    y: float
    w: float
    h: float


def draw(
    seed: int, findings: frozenset[str], *, size: int = 512, view: str = "PA", film: int = 0
) -> np.ndarray:
    """The radiograph of patient `seed`: (size, size) uint8, the same for the same arguments."""
    return draw_with_boxes(seed, findings, size=size, view=view, film=film)[0]


def draw_with_boxes(
    seed: int, findings: frozenset[str], *, size: int = 512, view: str = "PA", film: int = 0
) -> tuple[np.ndarray, list[Box]]:
    """`draw`, and where its masses and nodules are. View PA, AP or L; no boxes in L.

    Another `film` is the same patient another day: new pose, exposure, noise and findings' places.

    ValueError: an unknown finding or view.
    """
    if view not in ("PA", "AP", "L"):
        raise ValueError(f"no view {view!r}; there are: PA, AP, L")
    normal = shape.random_anatomy(np.random.default_rng([_ANATOMY, seed]))
    if view == "AP":  # the heart is farther from the film, and so its shadow is wider
        normal = replace(normal, heart=normal.heart * 1.1)
    changed = np.random.default_rng([_FINDINGS, seed, film])
    patient = shape.reshape(normal, findings, changed)
    opacity = opacify(findings, patient, changed)
    detail = np.random.default_rng([_DETAIL, seed])
    frontal = view != "L"
    attenuation = _frontal(patient, opacity, detail) if frontal else _lateral(opacity, detail)
    exposure = np.random.default_rng([_FILM, seed, film])
    pose = _pose(exposure, size)
    posed = cv2.warpAffine(
        attenuation, pose, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    image = _expose(posed, exposure)
    boxes = _boxes(opacity, pose, size) if frontal else []
    return image, boxes


def _fill(*outlines: np.ndarray) -> np.ndarray:
    """Closed outlines in the unit square -> (CANVAS, CANVAS) float32, 1 inside any of them."""
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    for outline in outlines:
        cv2.fillPoly(mask, [to_canvas(outline)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) * np.float32(1 / 255)


def _blur(field: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with sigma in the unit square; wide ones on a quarter of the resolution."""
    pixels = sigma * CANVAS
    if pixels < 4:
        return cv2.GaussianBlur(field, (0, 0), pixels)
    small = cv2.resize(field, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), pixels / 4, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, field.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _full(coarse: np.ndarray) -> np.ndarray:
    return cv2.resize(coarse, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)


def _bones(outlines: list[np.ndarray], inside: int, edge: int) -> np.ndarray:
    """Hollow bones: (CANVAS, CANVAS) float32, pale inside and brighter at the edges."""
    layer = np.zeros((CANVAS, CANVAS), np.uint8)
    for outline in outlines:
        cv2.fillPoly(layer, [to_canvas(outline)], inside, cv2.LINE_AA, 4)
        cv2.polylines(layer, [to_canvas(outline)], True, edge, 1, cv2.LINE_AA, 4)
    return layer.astype(np.float32) * np.float32(1 / 255)


def _vessels(patient: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Branching vessels from both hila, (CANVAS, CANVAS) float32."""
    layer = np.zeros((CANVAS, CANVAS), np.uint8)
    for side in SIDES:
        for angle in np.linspace(-1.35, 1.35, 7) + rng.normal(0, 0.2, 7):
            down = 0.50 + 0.07 * angle + rng.normal(0, 0.015)
            root = np.array(patient.inside(side, rng.uniform(0.02, 0.14), down))
            _branch(layer, rng, root, side, float(angle), rng.uniform(0.07, 0.12), 3)
    return layer.astype(np.float32) * np.float32(1 / 255)


def _branch(
    layer: np.ndarray,
    rng: np.random.Generator,
    start: np.ndarray,
    side: int,
    angle: float,
    length: float,
    depth: int,
) -> None:
    """Draw one vessel and its branches; thickness and brightness fall with the depth left."""
    bend = angle + rng.normal(0, 0.2)
    middle = start + 0.5 * length * np.array([side * np.cos(angle), np.sin(angle)])
    end = middle + 0.5 * length * np.array([side * np.cos(bend), np.sin(bend)])
    line = to_canvas(np.array([start, middle, end]))
    cv2.polylines(layer, [line], False, 60 + 50 * depth, depth, cv2.LINE_AA, 4)
    if depth > 1:
        for turn in (-0.35, 0.35):
            turned = bend + turn + rng.normal(0, 0.12)
            _branch(layer, rng, end, side, turned, length * 0.75, depth - 1)


def _frontal(patient: Anatomy, opacity: Opacity, rng: np.random.Generator) -> np.ndarray:
    """Attenuation of a chest from the front: (CANVAS, CANVAS) float32, 0 is the air outside."""
    arms = [shape.arm(patient, side) for side in SIDES]
    body = _blur(_fill(shape.torso(patient), *arms), 0.004)
    lungs = _blur(_fill(*(shape.lung(patient, side) for side in SIDES)), 0.005)
    abdomen = _abdomen(patient, body, rng)
    heart = _blur(_fill(shape.heart(patient)), 0.005)
    haze = _full(opacity.haze)
    # Lungs are thin at the edges and hold most air in the middle.
    air = lungs * (0.55 + 0.45 * _blur(lungs, 0.05)) * (1 - 0.85 * heart)
    total = body * (0.10 + 0.78 * _blur(body, 0.12)) + 0.34 * abdomen + _texture(rng) * body
    total -= 0.60 * air * (1 - haze)
    total += heart * (1 - 0.85 * np.clip(abdomen, 0, 1)) * (0.10 + 0.18 * _blur(heart, 0.05))
    seen = air * (1 - 0.6 * np.clip(haze, 0, 1))
    vessels = _blur(_vessels(patient, rng), 0.0025) * _full(opacity.vessels)
    total += 0.16 * seen * vessels + _full(opacity.solid)
    total += 0.17 * lungs * cv2.GaussianBlur(opacity.lines, (3, 3), 0) * np.float32(1 / 255)
    total += _breasts(patient, rng)
    # Where the trunk is thick, scatter drowns the bones.
    return total + _skeleton(patient, rng) * body * (1 - 0.6 * np.clip(abdomen, 0, 1))


def _abdomen(patient: Anatomy, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The denser organs under the diaphragm, with the stomach's air (below 0) in some."""
    domes = [shape.dome(patient, side) for side in SIDES]
    right, left = domes[0][0, 0], domes[1][0, 0]
    low = _fill(np.vstack([domes[0], domes[1][::-1], [[left + 0.2, 1.3], [right - 0.2, 1.3]]]))
    organs = _blur(low * body, 0.006) * _blur(low, 0.06)
    x, y = patient.midline + rng.uniform(0.12, 0.2), patient.dome[1] + rng.uniform(0.05, 0.07)
    bubble = _ellipse(x, y, rng.uniform(0.04, 0.08), rng.uniform(0.025, 0.045))
    return organs - rng.uniform(0.5, 1.2) * (rng.random() < 0.5) * _blur(_fill(bubble), 0.008)


def _breasts(patient: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Faint shadows over the lower lungs, stronger in half of the patients."""
    y = max(patient.dome) - rng.uniform(0.10, 0.16)
    radius = rng.uniform(0.13, 0.17)
    outlines = [_ellipse(patient.midline + s * 0.22, y, radius, radius * 0.95) for s in SIDES]
    return rng.choice([0.01, 0.06]) * _blur(_fill(*outlines), 0.012)


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Uneven tissue, coarse and fine, (CANVAS, CANVAS) float32 around 0."""
    coarse = rng.standard_normal((7, 7), dtype=np.float32) * np.float32(0.025)
    half = CANVAS // 2
    raw = np.frombuffer(rng.bytes(half * half), np.int8).reshape(half, half)
    fine = cv2.GaussianBlur(raw.astype(np.float32), (0, 0), 0.8) * np.float32(0.0005)
    fine += cv2.resize(coarse, (half, half), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(fine, (CANVAS, CANVAS), interpolation=cv2.INTER_LINEAR)


def _skeleton(patient: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Ribs, collar bones, shoulders and spine, (CANVAS, CANVAS) float32."""
    pairs = [shape.rib(patient, side, number) for side in SIDES for number in range(11)]
    back = _bones([shape.band(back, 0.023) for back, _ in pairs], 120, 200)
    front = _bones([shape.band(front, 0.025) for _, front in pairs], 100, 140)
    collars = [shape.band(shape.clavicle(patient, side), 0.026) for side in SIDES]
    blades = [shape.scapula(patient, side) for side in SIDES]
    heads = [_ellipse(*shape.shoulder(patient, side), 0.045, 0.048) for side in SIDES]
    bones = 0.20 * back + 0.13 * front + 0.22 * _bones(collars, 150, 230)
    bones += 0.09 * _bones(blades, 90, 220) + 0.16 * _bones(heads, 130, 230)
    return _blur(bones, 0.0028) + _spine(patient, rng)


def _spine(patient: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Vertebrae with end plates, and the windpipe's air above the heart."""
    layer = np.zeros((CANVAS, CANVAS), np.uint8)
    step = rng.uniform(0.055, 0.062)
    for top in np.arange(-0.1, 1.1, step):
        width = 0.034 + 0.008 * max(top, 0)
        u = np.array([-1, 1, 1, -1]) * width
        y = top + np.array([0.10, 0.10, 0.9, 0.9]) * step
        outline = to_canvas(np.column_stack([patient.midline + u, y]))
        cv2.fillPoly(layer, [outline], 150, cv2.LINE_AA, 4)
        cv2.polylines(layer, [outline], True, 220, 1, cv2.LINE_AA, 4)
    y = np.array([-0.2, patient.apex + 0.05, patient.apex + 0.20])
    x = patient.midline + np.array([0.0, 0.0, -0.006])
    windpipe = _fill(shape.band(np.column_stack([x, y]), 0.040))
    column = _blur(layer.astype(np.float32) * np.float32(1 / 255), 0.004)
    return 0.17 * column - 0.20 * _blur(windpipe, 0.006)


def _lateral(opacity: Opacity, rng: np.random.Generator) -> np.ndarray:
    """Attenuation of a chest from the side: breast bone at the left, spine at the right."""
    trunk = shape.curve(
        np.array([[0.38, -0.2], [0.34, 0.08], [0.22, 0.22], [0.12, 0.45], [0.12, 0.8], [0.16, 1.2]])
    )
    back = shape.curve(
        np.array([[0.84, 1.2], [0.86, 0.8], [0.90, 0.5], [0.86, 0.22], [0.68, 0.05], [0.62, -0.2]])
    )
    body = _blur(_fill(np.vstack([trunk, back])), 0.006)
    outline = [[0.46, 0.14], [0.32, 0.24], [0.22, 0.44], [0.19, 0.66], [0.28, 0.70], [0.44, 0.66]]
    outline += [[0.60, 0.70], [0.74, 0.80], [0.80, 0.84], [0.81, 0.6], [0.76, 0.3], [0.60, 0.13]]
    wobble = rng.normal(0, 0.008, (len(outline), 2))
    lung = np.array(outline) + wobble
    lungs = _blur(_fill(shape.curve(np.vstack([lung, lung[:1]]))), 0.007)
    size = opacity.anatomy.heart
    x, y = 0.36 + wobble[0, 0], 0.56 + wobble[0, 1]
    heart = _blur(_fill(_ellipse(x, y, 0.12 * size, 0.15 * size)), 0.014)
    haze = np.clip(_full(opacity.haze), -0.3, 1)
    total = body * (0.5 + 0.5 * _blur(body, 0.1)) + _texture(rng) * body
    total -= 0.5 * lungs * (1 - 0.75 * heart) * (1 - haze)
    vertebrae = []
    for top in np.arange(-0.1, 1.1, 0.062):
        left = np.interp(top, [-0.1, 0.1, 0.5, 0.9, 1.1], [0.51, 0.62, 0.76, 0.74, 0.71])
        corners = [[left, top], [left + 0.075, top + 0.01], [left + 0.07, top + 0.055]]
        vertebrae.append(np.array([*corners, [left, top + 0.05]]))
    t = np.linspace(0, 1, 12)
    sweep = np.column_stack([0.78 - 0.5 * t, 0.14 + 0.16 * t**1.3])
    step = np.array([0, 0.066])
    ribs = [shape.band(sweep + number * step, 0.02) for number in range(9)]
    total += 0.22 * _blur(_bones(vertebrae, 150, 230), 0.005) * body
    return total + 0.10 * _blur(_bones(ribs, 110, 190), 0.003) * body


def _ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40)
    return np.column_stack([x + rx * np.cos(t), y + ry * np.sin(t)])


def _pose(rng: np.random.Generator, size: int) -> np.ndarray:
    """How the patient stands: (2, 3) float64, canvas pixel -> image pixel."""
    scale = rng.uniform(0.94, 1.08) * (1 + 2 * MARGIN) * size / CANVAS
    turn = cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), rng.normal(0, 1.6), scale)
    turn[:, 2] += size / 2 - CANVAS / 2 + rng.normal(0, 0.012, 2) * size
    return turn


def _expose(attenuation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Attenuation -> grey levels with the film's response, noise and marker, uint8."""
    size = attenuation.shape[0]
    strength, gamma = rng.uniform(1.2, 1.8), rng.uniform(1.15, 1.7)
    dark, bright = rng.uniform(2, 22), rng.uniform(215, 252)
    levels = np.arange(1024, dtype=np.float32) * np.float32(1.7 / 1023)
    response = (1 - np.exp(-strength * levels)) / (1 - np.exp(-strength * 1.45))
    table = dark + (bright - dark) * np.clip(response, 0, 1.05) ** gamma
    index = np.clip(attenuation * np.float32(1023 / 1.7), 0, 1023).astype(np.int16)
    image = table[index].astype(np.float32)
    raw = np.frombuffer(rng.bytes(size * size), np.int8).reshape(size, size)
    grain = cv2.GaussianBlur(raw.astype(np.float32), (3, 3), 0.7)
    image += grain * np.float32(rng.uniform(0.02, 0.06))
    image = np.clip(image, 0, 255).astype(np.uint8)
    _mark(image, rng)
    return image


def _mark(image: np.ndarray, rng: np.random.Generator) -> None:
    """The radiographer's lead letter in an upper corner: L at the right or R at the left."""
    size = image.shape[0]
    letter = "L" if rng.random() < 0.6 else "R"
    x = rng.uniform(0.89, 0.94) if letter == "L" else rng.uniform(0.03, 0.07)
    origin = (round(x * size), round(rng.uniform(0.07, 0.13) * size))
    scale, thickness = size / 512 * rng.uniform(0.6, 1.0), max(1, round(size / 256))
    grey = int(rng.integers(215, 256))
    cv2.putText(
        image, letter, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, grey, thickness, cv2.LINE_AA
    )


def _boxes(opacity: Opacity, pose: np.ndarray, size: int) -> list[Box]:
    """The shadows' boxes in the posed image, cut at its borders."""
    zoom = float(np.hypot(pose[0, 0], pose[0, 1])) * CANVAS / (1 + 2 * MARGIN)
    boxes = []
    for blob in opacity.blobs:
        x, y = pose @ np.append(to_canvas(np.array([blob.x, blob.y])) / 16, 1)
        reach = blob.radius * zoom
        low = np.clip([x - reach, y - reach], 0, size)
        high = np.clip([x + reach, y + reach], 0, size)
        boxes.append(Box(blob.finding, *map(float, low), *map(float, high - low)))
    return boxes
