"""The samples of shards: listed without reading an image, then read one at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.split_images import decode_stored
from shards.console import RunFailed
from shards.index import Component
from shards.manifest import Manifest, check_shards, shard_path
from shards.philox import name_words
from shards.reader import read_component, read_index
from shards.sample import LABELS_EXTENSION, META_EXTENSION, SampleMeta


@dataclass(frozen=True)
class Listed:
    """A sample in its shard. present: the names of its labels that are YES; labels: (L,) int8 in
    the order of its manifest."""

    key: str
    labels: np.ndarray
    present: tuple[str, ...]
    meta: SampleMeta
    shard: Path
    image: Component

    @property
    def group(self) -> str:
        """What stays together in a cross-validation: the patient's images, or the sample alone
        where the patient is not known."""
        return f"image {self.key}" if self.meta.patient is None else f"patient {self.meta.patient}"


def list_samples(folder: Path, manifest: Manifest, splits: Iterable[str]) -> Iterator[Listed]:
    """Every sample of the splits, in order. UserError when a shard is not as the manifest says."""
    for split in splits:
        check_shards(folder, manifest, (split,))
        for shard in manifest.of_split(split):
            path = shard_path(folder, shard)
            with path.open("rb") as file:
                for components in read_index(path):
                    yield _listed(file.fileno(), path, components, manifest)


def _listed(fd: int, path: Path, components: list[Component], manifest: Manifest) -> Listed:
    parts = {one.extension: one for one in components}
    try:
        image = (
            parts[manifest.image_extension] if manifest.image_extension in parts else components[0]
        )
        labels = np.frombuffer(read_component(fd, parts[LABELS_EXTENSION], path), np.int8)
        meta = SampleMeta.from_json(read_component(fd, parts[META_EXTENSION], path))
    except (KeyError, ValueError, TypeError) as error:
        raise RunFailed(f"{path}: sample {components[0].key} is damaged ({error})") from error
    present = manifest.vocabulary.decode(labels)
    return Listed(components[0].key, labels, present, meta, path, image)


def read_grey(sample: Listed) -> np.ndarray:
    """The stored image, (H, W) uint8. RunFailed when it does not decode."""
    with sample.shard.open("rb") as file:
        data = read_component(file.fileno(), sample.image, sample.shard)
    return decode_stored(data, sample.shard, sample.key)


def pick(samples: Sequence[Listed], most: int | None) -> list[Listed]:
    """At most so many, chosen by the hashes of their keys (so always the same ones), in order."""
    if most is None or len(samples) <= most:
        return list(samples)
    chosen = sorted(range(len(samples)), key=lambda i: name_words(samples[i].key))[:most]
    return [samples[i] for i in sorted(chosen)]
