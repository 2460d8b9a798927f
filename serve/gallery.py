"""The report's gallery: which test images to show, their pixels, and heat maps laid over them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from serve.predictions import Joined
from serve.report_maps import NAME, Layer, StoredMap, image_webp, load_layer, stored_maps, to_layer
from serve.split_images import decode_stored
from shards.console import RunFailed, UserError, progress
from shards.labels import NO, UNKNOWN, YES, Vocabulary
from shards.manifest import Manifest, shard_path, shard_problem
from shards.preprocess import prepare
from shards.reader import read_component, read_index
from shards.sample import LABELS_EXTENSION, META_EXTENSION

ERRORS_SHARE = 2 / 3  # of the gallery at most, where there are right calls for the rest
METHOD = "gradcam"  # drawn for each image; others come from serve explain
_BATCH = 8  # images explained between two steps of the progress line


@dataclass(frozen=True)
class Picture:
    """One gallery entry. truth: the labels that hold (another one of the data set, where none of
    the network's does), None where none is known to and some label's truth is not known; wrong:
    None where the called label's is not; image: WebP; layers: its heat maps."""

    key: str
    truth: tuple[str, ...] | None
    called: str
    probability: float
    wrong: bool | None
    image: bytes
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Gallery:
    """labels: of the scores; wrong: wrong calls among all scored images; omitted: what was chosen
    and could not be read, a sentence each."""

    labels: tuple[str, ...]
    pictures: list[Picture]
    wrong: int
    omitted: tuple[str, ...] = ()


def wrong_calls(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,) bool: the most probable label is known not to be there. truth, probabilities: (N, L)."""
    return truth[np.arange(len(truth)), probabilities.argmax(1)] == NO


def choose(truth: np.ndarray, probabilities: np.ndarray, size: int) -> np.ndarray:
    """Positions of at most `size` images: wrong calls first, the surest first; then right calls,
    one of each label in turn, in the order of the data."""
    called, surest = probabilities.argmax(1), probabilities.max(axis=1)
    by_label = [
        np.flatnonzero((called == i) & (truth[:, i] == YES)).tolist() for i in range(truth.shape[1])
    ]
    most = max(int(size * ERRORS_SHARE), size - sum(map(len, by_label)))
    wrong = np.flatnonzero(wrong_calls(truth, probabilities))
    wrong = wrong[np.argsort(-surest[wrong], kind="stable")][:most]
    right: list[int] = []
    while len(right) < size - len(wrong) and any(by_label):
        right += [queue.pop(0) for queue in by_label if queue]
    return np.r_[wrong, np.array(right[: size - len(wrong)], np.int64)].astype(np.int64)


def choose_with(
    truth: np.ndarray, probabilities: np.ndarray, explained: np.ndarray, size: int
) -> np.ndarray:
    """As `choose`, but images that are explained already (N,) bool come in before others. Wrong
    calls still lead, the surest first."""
    first = np.flatnonzero(explained)
    if len(first) > size:
        first = first[choose(truth[first], probabilities[first], size)]
    others = np.flatnonzero(~explained)
    more = others[choose(truth[others], probabilities[others], size - len(first))]
    chosen = np.r_[first, more].astype(np.int64)
    wrong = chosen[wrong_calls(truth, probabilities)[chosen]]
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
    return np.r_[wrong, chosen[~np.isin(chosen, wrong)]]


def without_lost(folder: Path, manifest: Manifest, split: str) -> tuple[Manifest, list[str]]:
    """The manifest with those of the split's shards that are there and whole; what is to be said of
    the others, if there are any."""
    shards = manifest.of_split(split)
    lost = {shard: what for shard in shards if (what := shard_problem(folder, shard))}
    if not lost:
        return manifest, []
    kept = tuple(shard for shard in manifest.shards if shard not in lost)
    images, every = (sum(shard.samples for shard in some) for some in (lost, shards))
    more = f" (the first of {len(lost)} lost shards)" if len(lost) > 1 else ""
    said = f"{images} of {every} images cannot be shown: {next(iter(lost.values()))}{more}."
    return replace(manifest, shards=kept), [said]


def read_images(
    folder: Path, manifest: Manifest, split: str, keys: Iterable[str], size: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Of the keys that the split has: (key -> (size, size) uint8, prepared; key -> the reason, of
    those that cannot be read). Reads only these, of shards that are all there: see without_lost."""
    wanted, found, damaged = set(keys), {}, {}
    for shard in manifest.of_split(split):
        path = shard_path(folder, shard)
        with path.open("rb") as file:
            for components in read_index(path):
                if components[0].key not in wanted:
                    continue
                image = next(
                    c for c in components if c.extension not in (LABELS_EXTENSION, META_EXTENSION)
                )
                try:
                    data = read_component(file.fileno(), image, path)
                    grey = decode_stored(data, path, image.key)
                except RunFailed as error:
                    damaged[image.key] = str(error)
                    continue
                found[image.key] = prepare(grey, manifest.shorter_side, size)
    return found, damaged


def make_gallery(
    run: Path,
    folder: Path,
    manifest: Manifest,
    split: str,
    joined: Joined,
    size: int,
    explained: Path,
) -> Gallery:
    """At most `size` scored images of a split, with Grad-CAM for the label that each was called,
    and the maps of `explained` where that folder of serve explain exists (its Grad-CAM too).

    folder, manifest: of the data set's shards. The probabilities are the scores', the heat maps are
    of the run's own model. UserError when its labels are not those of the scores, or the maps are
    of another model.
    """
    from serve.explain.command import load

    ready = load(run, None, (METHOD,))
    stored: dict[str, list[StoredMap]] = {}
    if (explained / NAME).is_file():
        stored = stored_maps(explained, ready.spec.weights_sha256)
    scored = np.flatnonzero(~np.isnan(joined.probabilities).any(axis=1))
    truth, probabilities = joined.targets[scored], joined.probabilities[scored]
    has_maps = np.array([joined.keys[i] in stored for i in scored], bool)
    chosen = scored[choose_with(truth, probabilities, has_maps, size)]
    all_wrong = int(wrong_calls(truth, probabilities).sum())
    keys = [joined.keys[i] for i in chosen]
    found, damaged = read_images(folder, manifest, split, keys, ready.spec.size)
    omitted = [f"{key} is not shown: {why}." for key, why in damaged.items()]
    chosen = chosen[[key not in damaged for key in keys]]
    keys = [joined.keys[i] for i in chosen]
    vocabulary = Vocabulary(ready.spec.labels, ready.spec.exclusive)
    called = [joined.labels[c] for c in joined.probabilities[chosen].argmax(1)]
    loaded = [_load(key, stored.get(key, []), ready.spec.size, omitted) for key in keys]
    drawn = {i: one for i, layers in enumerate(loaded) for one in layers if _is_own(one, called[i])}
    todo = [i for i in range(len(keys)) if i not in drawn]
    with progress("heat maps", len(todo)) as advance:
        for start in range(0, len(todo), _BATCH):
            part = todo[start : start + _BATCH]
            targets = [vocabulary.index(called[i]) for i in part]
            maps = ready.explainers[METHOD](np.stack([found[keys[i]] for i in part]), targets).maps
            drawn |= {i: to_layer(METHOD, called[i], heat) for i, heat in zip(part, maps)}
            advance(len(part))
    pictures = []
    for i, (key, row) in enumerate(zip(keys, chosen)):
        layers = (drawn[i], *(one for one in loaded[i] if one.method != METHOD))
        pictures.append(_picture(joined, int(row), found[key], layers))
    return Gallery(joined.labels, pictures, all_wrong, tuple(omitted))


def _load(key: str, stored: Sequence[StoredMap], size: int, omitted: list[str]) -> list[Layer]:
    """An image's stored maps; those that cannot be used go to `omitted`."""
    layers = []
    for one in stored:
        try:
            layers.append(load_layer(one, size))
        except UserError as error:
            omitted.append(f"{key} lacks a map of {one.method}: {error}.")
    return layers


def _is_own(layer: Layer, called: str) -> bool:
    """Whether it is the map that is drawn for each image."""
    return (layer.method, layer.label) == (METHOD, called)


def _picture(joined: Joined, row: int, image: np.ndarray, layers: tuple[Layer, ...]) -> Picture:
    truth, probabilities = joined.targets[row], joined.probabilities[row]
    called = int(probabilities.argmax())
    present = tuple(name for name, value in zip(joined.labels, truth) if value == YES)
    other = joined.outside[row]
    if not present and other is not None:
        present = (other,)
    return Picture(
        key=joined.keys[row],
        truth=None if not present and (truth == UNKNOWN).any() else present,
        called=joined.labels[called],
        probability=float(probabilities[called]),
        wrong=None if truth[called] == UNKNOWN else bool(truth[called] == NO),
        image=image_webp(image),
        layers=layers,
    )
