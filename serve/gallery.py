"""The report's gallery: which test images to show, their pixels, and heat maps laid over them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.explain.overlay import encode, overlay
from serve.predictions import Joined
from shards.codec import decode_grey
from shards.console import UserError, progress
from shards.labels import NO, YES, Vocabulary
from shards.manifest import Manifest, load_manifest, shard_path
from shards.preprocess import prepare
from shards.reader import read_component, read_index
from shards.sample import LABELS_EXTENSION, META_EXTENSION

ERRORS_SHARE = 2 / 3  # of the gallery at most, so that right calls are to be seen too


@dataclass(frozen=True)
class Picture:
    """One gallery entry. pixels: JPEG bytes, image and overlay side by side."""

    key: str
    truth: str
    called: str
    probability: float
    wrong: bool
    pixels: bytes


def wrong_calls(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,) bool: the most probable label is known not to be there. truth, probabilities: (N, L)."""
    return truth[np.arange(len(truth)), probabilities.argmax(1)] == NO


def choose(truth: np.ndarray, probabilities: np.ndarray, size: int) -> np.ndarray:
    """Positions of at most `size` images: wrong calls first, the surest first; then right calls,
    one of each label in turn, in the order of the data."""
    called, surest = probabilities.argmax(1), probabilities.max(axis=1)
    wrong = np.flatnonzero(wrong_calls(truth, probabilities))
    wrong = wrong[np.argsort(-surest[wrong], kind="stable")][: int(size * ERRORS_SHARE)]
    by_label = [
        np.flatnonzero((called == i) & (truth[:, i] == YES)).tolist() for i in range(truth.shape[1])
    ]
    right: list[int] = []
    while len(right) < size - len(wrong) and any(by_label):
        right += [queue.pop(0) for queue in by_label if queue]
    return np.r_[wrong, np.array(right[: size - len(wrong)], np.int64)].astype(np.int64)


def read_images(
    folder: Path, manifest: Manifest, split: str, keys: Iterable[str], size: int
) -> dict[str, np.ndarray]:
    """key -> (size, size) uint8, prepared, for the keys that the split has. Reads only these."""
    wanted, found = set(keys), {}
    for shard in manifest.of_split(split):
        path = shard_path(folder, shard)
        if not path.is_file():
            raise UserError(f"{path} is missing; ingest again, or name the shards with --shards")
        with path.open("rb") as file:
            for components in read_index(path):
                if components[0].key not in wanted:
                    continue
                image = next(
                    c for c in components if c.extension not in (LABELS_EXTENSION, META_EXTENSION)
                )
                grey = decode_grey(read_component(file.fileno(), image, path))
                found[image.key] = prepare(grey, manifest.shorter_side, size)
    return found


def make_pictures(
    run: Path, folder: Path, split: str, joined: Joined, size: int
) -> tuple[list[Picture], int]:
    """At most `size` scored images of a split, with Grad-CAM for the label that each was called;
    and how many wrong calls there are in all.

    folder: of the data set's shards. The probabilities are the scores', the heat maps are of the
    run's own model. UserError when its labels are not those of the scores.
    """
    from serve.explain.command import heat_maps
    from train.runs import load_run_model

    model, spec = load_run_model(run)
    vocabulary = Vocabulary(spec.labels, spec.exclusive)
    scored = np.flatnonzero(~np.isnan(joined.probabilities).any(axis=1))
    chosen = scored[choose(joined.targets[scored], joined.probabilities[scored], size)]
    all_wrong = int(wrong_calls(joined.targets[scored], joined.probabilities[scored]).sum())
    if not chosen.size:
        return [], all_wrong
    keys = [joined.keys[i] for i in chosen]
    found = read_images(folder, load_manifest(folder), split, keys, spec.size)
    images = np.stack([found[key] for key in keys])
    called = joined.probabilities[chosen].argmax(1)
    targets = [vocabulary.index(joined.labels[c]) for c in called]
    wrong = wrong_calls(joined.targets[chosen], joined.probabilities[chosen])
    pictures = []
    with progress("heat maps", len(chosen)) as advance:
        maps = heat_maps(model, images, targets)
        for i, c, is_wrong, image, heat in zip(chosen, called, wrong, images, maps):
            picture = Picture(
                key=joined.keys[i],
                truth=_names(joined.labels, joined.targets[i]),
                called=joined.labels[c],
                probability=float(joined.probabilities[i, c]),
                wrong=bool(is_wrong),
                pixels=_pair(image, heat),
            )
            pictures.append(picture)
            advance()
    return pictures, all_wrong


def _pair(image: np.ndarray, heat: np.ndarray) -> bytes:
    """The image, and beside it the image under its heat map, as JPEG."""
    grey = np.repeat(image[:, :, None], 3, axis=2)
    return encode(np.hstack([grey, overlay(image, heat)]), ".jpg")


def _names(labels: Sequence[str], truth: np.ndarray) -> str:
    present = [label for label, value in zip(labels, truth) if value == YES]
    return ", ".join(present) or "none of the labels"
