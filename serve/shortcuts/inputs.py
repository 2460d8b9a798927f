"""What the user hands in beside shards and model: masks of lungs, places of words."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from serve.decode import DecodePool, Task
from serve.shortcuts.samples import Listed
from shards.console import UserError

_MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")
MAX_MASK_BYTES = 64 * 2**20


def read_masks(folder: Path, samples: Sequence[Listed], size: int) -> dict[str, np.ndarray]:
    """Key -> (size, size) bool, true in the lungs, for the samples that have a mask: a picture
    named as the sample's file or key, white (over half of its brightest) in the lungs. UserError
    when the folder has none for any sample, several for one or one for several, or a mask does not
    decode."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; --masks names one with a picture per image")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _MASK_SUFFIXES:
            files.setdefault(path.stem, []).append(path)
    wanted = {one.key: mask for one in samples if (mask := _mask_of(one, files)) is not None}
    _refuse_shared(wanted)
    if not wanted:
        named = PurePosixPath(samples[0].meta.file).stem
        raise UserError(
            f"no mask in {folder} is named as an image (it has {len(files)} pictures); the mask of "
            f"{samples[0].meta.file} is {named}.png"
        )
    large = [path for path in wanted.values() if path.stat().st_size > MAX_MASK_BYTES]
    if large:
        raise UserError(f"{large[0]} is over {MAX_MASK_BYTES // 2**20} MiB; a mask is smaller")
    found = {}
    with DecodePool(1, None, size) as pool:  # a stranger's bytes: never decoded in this process
        tasks = (Task(key, [path.read_bytes()]) for key, path in wanted.items())
        for key, decoded in pool.run(tasks):
            if decoded.errors[0] is not None:
                raise UserError(
                    f"{wanted[key]}: {decoded.errors[0]}; save it with 8 bits, or take it out"
                )
            mask = decoded.images[0]
            if mask.any():
                found[key] = mask > mask.max() / 2
    return found


def _mask_of(sample: Listed, files: Mapping[str, list[Path]]) -> Path | None:
    """UserError when several pictures have its name: left and right lung, or images and masks."""
    stem = PurePosixPath(sample.meta.file).stem
    found = files.get(sample.key) or files.get(stem) or []
    if len(found) > 1:
        raise UserError(
            f"{found[0]} and {found[1]} could both be the mask of {sample.meta.file}; --masks "
            "names a folder with one picture per image (join the lungs)"
        )
    return found[0] if found else None


def _refuse_shared(wanted: Mapping[str, Path]) -> None:
    taken: dict[Path, str] = {}
    for key, path in wanted.items():
        if path in taken:
            raise UserError(
                f"{path} could be the mask of {taken[path]} and of {key}, two images with the same "
                "file name; name the masks by the keys"
            )
        taken[path] = key


def parse_point(text: str, what: str) -> tuple[int, int]:
    """`x,y` -> two whole numbers. UserError for anything else."""
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{what} is {text!r}; give x,y in pixels, such as 10,12") from None
    return x, y


def parse_box(text: str) -> tuple[float, float, float, float]:
    """`left,top,right,bottom`, shares of the image from 0 to 1. UserError for anything else."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
        fine = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    except ValueError:
        fine = False
    if not fine:
        raise UserError(f"--box is {text!r}; give left,top,right,bottom as shares, 0.1,0.1,0.9,0.9")
    return left, top, right, bottom
