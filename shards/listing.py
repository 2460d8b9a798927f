"""The samples of a finished data set, one after the other or one by its key.

Run: python -m shards ls DIR | show DIR KEY
"""

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shards.codec import decode_grey, encode
from shards.console import UserError
from shards.fetched import local_shard
from shards.index import Component
from shards.labels import UNKNOWN, YES
from shards.manifest import Manifest, ShardInfo, load_manifest
from shards.reader import read_component, read_index
from shards.sample import LABELS_EXTENSION, META_EXTENSION, Sample, SampleMeta
from shards.stats import split_names


@dataclass(frozen=True)
class Place:
    """Where a sample lies: its shard and its members in it."""

    path: Path
    shard: ShardInfo
    components: tuple[Component, ...]

    @property
    def key(self) -> str:
        return self.components[0].key

    def read(self) -> Sample:
        """The sample. RunFailed when the shard does not match its index."""
        with self.path.open("rb") as file:
            parts = {c.extension: self._part(file.fileno(), c) for c in self.components}
        image = self.components[0].extension
        labels = np.frombuffer(parts[LABELS_EXTENSION], np.int8)
        return Sample(
            self.key, parts[image], image, labels, SampleMeta.from_json(parts[META_EXTENSION])
        )

    def read_labels(self) -> np.ndarray:
        """(L,) int8, without reading the image."""
        found = next(c for c in self.components if c.extension == LABELS_EXTENSION)
        with self.path.open("rb") as file:
            return np.frombuffer(self._part(file.fileno(), found), np.int8)

    def _part(self, fd: int, component: Component) -> bytes:
        return read_component(fd, component, self.path)


def places(folder: Path, manifest: Manifest) -> Iterator[Place]:
    """Every sample of a data set, split after split, in the order of its shards. Where the folder
    is a URL, a place can be read only until the next one is taken."""
    for split in split_names(manifest):
        for shard in manifest.of_split(split):
            with local_shard(folder, shard) as path:
                for components in read_index(path):
                    yield Place(path, shard, tuple(components))


def find(folder: Path, key: str) -> tuple[Manifest, Place]:
    """The sample of this key. UserError when there is none, with keys that look alike."""
    manifest = load_manifest(folder)
    keys = []
    for place in places(folder, manifest):
        if place.key == key:
            return manifest, place
        keys.append(place.key)
    alike = difflib.get_close_matches(key, keys[:20_000], 3) or keys[:3]
    raise UserError(f"no sample {key!r} in {folder}; there are, for example: {', '.join(alike)}")


def print_list(folder: Path, manifest: Manifest) -> None:
    """A line for each sample: key, split, labels, separated by tabs."""
    for place in places(folder, manifest):
        labels = manifest.vocabulary.decode(place.read_labels())
        print(place.key, place.shard.split, "|".join(labels), sep="\t")


def print_sample(manifest: Manifest, place: Place) -> None:
    """What is known of a sample, a line for each thing."""
    sample = place.read()
    height, width = decode_grey(sample.image).shape
    names = {YES: "yes", UNKNOWN: "unknown"}
    lines = {
        "key": sample.key,
        "shard": f"{place.shard.split}/{place.shard.name}",
        "image": f".{sample.extension}, {width} x {height}, {len(sample.image)} bytes",
    }
    for name, value in zip(manifest.labels, sample.labels):
        lines[f"label {name}"] = names.get(int(value), "no")
    for name, value in asdict(sample.meta).items():
        lines[name] = "not known" if value is None else str(value)
    for name, text in lines.items():
        print(f"{name}: {printable(text)}")


def printable(text: str) -> str:
    """The text without control characters: names in archives may hold any."""
    return "".join(c if c.isprintable() else "?" for c in text)


def picture(place: Place) -> bytes:
    """The image as PNG."""
    return encode(decode_grey(place.read().image), "png")
