"""Image files -> heat maps: a strip (image, heat map, overlay) and the map itself for each image.

Run: python -m serve explain --run RUN --method gradcam --out DIR IMAGE...

`DIR/<key>-<method>-<label>.png` and `.npy` ((S, S) float32 in [0, 1]); the key is made of the
file's name, as in shards.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from serve.decode import DecodePool, Task
from serve.explain.overlay import encode, strip
from shards.console import RunFailed, UserError, progress, warn
from shards.labels import Vocabulary
from shards.sample import make_key
from shards.writer import write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

METHODS = ("gradcam",)
MAX_FILE_BYTES = 512 * 2**20
_BATCH = 8  # images through the network at once: bounds the memory


@dataclass(frozen=True)
class ExplainConfig:
    """Draw where in an image the network found a label."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files (PNG, JPEG, JPEG 2000, TIFF, ...)."""
    run: Path
    """Run folder of python -m train."""
    out: Path
    """Folder for the strips (.png) and the maps (.npy)."""
    method: str = "gradcam"
    """How to explain: gradcam."""
    label: str | None = None
    """The label to explain; by default each image's most probable one."""
    stage: str | None = None
    """Which stage's model; by default the last one."""


Explainer = Callable[["nn.Module", "Tensor", "Tensor"], "Tensor"]


def explainer(method: str) -> Explainer:
    """(model, images (N, 3, S, S), classes (N,)) -> maps (N, S, S). UserError when unknown."""
    if method not in METHODS:
        raise UserError(f"no method {method!r}; there are: {', '.join(METHODS)}")
    from serve.explain.gradcam import grad_cam

    return grad_cam


def heat_maps(
    model: "nn.Module", images: np.ndarray, targets: Sequence[int], method: str = "gradcam"
) -> np.ndarray:
    """images: (N, S, S) uint8, prepared; targets: the class to explain of each image.

    Returns (N, S, S) float32 in [0, 1].
    """
    import torch

    from train.warp import normalise

    draw, maps = explainer(method), []
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        batch = normalise(torch.tensor(images[part]))
        maps.append(draw(model, batch, torch.tensor(targets[part])).numpy())
    return np.concatenate(maps)


def probabilities_of(model: "nn.Module", image: np.ndarray) -> np.ndarray:
    """(S, S) uint8, prepared -> (L,) float32."""
    import torch

    from train.warp import normalise

    with torch.inference_mode():
        return model(normalise(torch.tensor(image[None])))[0].sigmoid().numpy()


def explain(config: ExplainConfig) -> None:
    """Write the files, and one line per image on standard output. RunFailed at the end when some
    images could not be read; the others are done."""
    explainer(config.method)
    keys = _keys(config.images)
    from train.runs import load_run_model

    model, spec = load_run_model(config.run, config.stage)
    target = None
    if config.label is not None:
        target = Vocabulary(spec.labels, spec.exclusive).index(config.label)
    config.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    tasks = (Task(path, [path.read_bytes()]) for path in config.images)
    with (
        DecodePool(1, spec.shorter_side, spec.size) as pool,
        progress("explain", len(config.images)) as advance,
    ):
        for path, decoded in pool.run(tasks):
            advance(1)
            if decoded.errors[0]:
                failed += 1
                warn(f"{path}: {decoded.errors[0]}")
                continue
            image = decoded.images[0]
            found = probabilities_of(model, image)
            shown = int(found.argmax()) if target is None else target
            heat = heat_maps(model, image[None], [shown], config.method)[0]
            label = spec.labels[shown]
            written = _write(config.out, f"{keys[path]}-{config.method}", label, image, heat)
            nothing = "" if heat.any() else " (no place speaks for it)"
            print(f"{path}: {label} {found[shown]:.4f}{nothing} -> {written}")
    if failed:
        raise RunFailed(f"{failed} of {len(config.images)} images could not be read (see above)")


def _keys(images: tuple[Path, ...]) -> dict[Path, str]:
    if not images:
        raise UserError("no image named; name one or more image files")
    keys: dict[Path, str] = {}
    taken: dict[str, Path] = {}
    for path in images:
        if not path.is_file():
            raise UserError(f"no file {path}; name image files (not folders or archives)")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} has over {MAX_FILE_BYTES} bytes; that is no radiograph")
        key = make_key(path.stem)
        if key in taken:
            raise UserError(
                f"{taken[key]} and {path} would be written to the same file; explain them in two "
                "commands with two --out folders"
            )
        keys[path], taken[key] = key, path
    return keys


def _write(out: Path, name: str, label: str, image: np.ndarray, heat: np.ndarray) -> Path:
    clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in label)[:40]
    path = out / f"{name}-{clean}.png"
    values = io.BytesIO()
    np.save(values, heat, allow_pickle=False)
    write_atomic(path.with_suffix(".npy"), values.getvalue())
    write_atomic(path, encode(strip(image, heat), ".png"))
    return path
